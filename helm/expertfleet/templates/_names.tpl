{{/* Names of objects, and the labels by which they find each other. */}}

{{/*
At most 32 characters: with a group's name and what Kubernetes appends it must stay a label's value. A Service's name has no dot and
begins with a letter, which is more than a release's has to. What had to be changed ends with a hash of what it was, so that two
releases do not meet under one name.
*/}}
{{- define "expertfleet.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride -}}
{{- $plain := regexReplaceAll "^([0-9])" (replace "." "-" $full) "r${1}" -}}
{{- if or (ne $plain $full) (gt (len $plain) 32) -}}
{{- $plain = printf "%s-%s" (trunc 25 $plain | trimSuffix "-") (sha256sum $full | trunc 6) -}}
{{- end -}}
{{- $plain -}}
{{- end }}

{{- define "expertfleet.serviceAccount" -}}
{{- $account := .Values.serviceAccount -}}
{{- $account.name | default (ternary (include "expertfleet.fullname" .) "default" $account.create) -}}
{{- end }}

{{- define "expertfleet.priorityClass" -}}
{{- .Values.priorityClassName | default (printf "%s-%s" .Release.Namespace (include "expertfleet.fullname" .)) -}}
{{- end }}

{{/* Takes root, role and, for expert shards, group. */}}
{{- define "expertfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .role }}
app.kubernetes.io/component: {{ . | quote }}
{{- end }}
{{- with .group }}
expertfleet/group: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "expertfleet.labels" -}}
{{ include "expertfleet.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{/* Of an object. Takes root and name, and what it has besides: role, group, labels, annotations. */}}
{{- define "expertfleet.metadata" -}}
{{- $chosen := include "expertfleet.labels" . | fromYaml -}}
{{- $labels := include "expertfleet.merged" (list (default dict .root.Values.commonLabels) (default dict .labels) $chosen) | fromJson -}}
{{- $annotations := include "expertfleet.merged" (list (default dict .root.Values.commonAnnotations) (default dict .annotations)) | fromJson -}}
name: {{ .name | quote }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes root, device and, for gateways, tag. */}}
{{- define "expertfleet.image" -}}
{{- $image := .root.Values.image -}}
{{- $target := ternary "cuda" "cpu" (hasPrefix "cuda" (default "cpu" .device)) -}}
{{- $tag := coalesce .tag $image.tag .root.Chart.AppVersion -}}
{{- $digest := get $image.digests $target -}}
{{- if and $digest (not .tag) -}}
{{ $image.repository }}@{{ $digest }}
{{- else -}}
{{ $image.repository }}:{{ $tag }}-{{ $target }}
{{- end -}}
{{- end }}

{{/* The controller, by the name of its Service, which stays while the pod moves. */}}
{{- define "expertfleet.controller" -}}
{{ include "expertfleet.fullname" . }}-head:7411
{{- end }}

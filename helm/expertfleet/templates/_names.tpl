{{/* Names of objects, and the labels by which they find each other. */}}

{{/* At most 32 characters: with a group's name and what Kubernetes appends it must stay a label's value. */}}
{{- define "expertfleet.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 32 | trimSuffix "-" -}}
{{- end }}

{{/* Takes root, role and, for expert shards, group. */}}
{{- define "expertfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .role }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .group }}
expertfleet/group: {{ . }}
{{- end }}
{{- end }}

{{- define "expertfleet.labels" -}}
{{ include "expertfleet.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
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

{{- define "expertfleet.priorityClass" -}}
{{- $class := .Values.priorityClass -}}
{{- $class.name | default (ternary (printf "%s-%s" .Release.Namespace (include "expertfleet.fullname" .)) "" $class.create) -}}
{{- end }}

{{/* The controller, by the name of its Service, which stays while the pod moves. */}}
{{- define "expertfleet.controller" -}}
{{ include "expertfleet.fullname" . }}-head:7411
{{- end }}

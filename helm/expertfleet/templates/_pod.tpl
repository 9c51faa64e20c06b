{{/* What the pods of all roles have in common. "A pod" is a map of root, role, workers and, for expert shards, group. */}}

{{/*
Takes a pod. Its values as JSON: the top level's, with the role's own over them. Maps are laid over each other key by key, lists
follow each other (of two variables with one name the role's counts), and all else is the role's if it says it. A pull has neither
the priority of the others nor their sidecars, which would keep its Job from ending; the head and a pull are one pod, which is not
spread.
*/}}
{{- define "expertfleet.podValues" -}}
{{- $common := .root.Values -}}
{{- $own := .workers -}}
{{- $unshared := get (dict "pull" (list "containers" "priorityClassName" "topologySpreadConstraints") "head" (list "topologySpreadConstraints")) .role | default list -}}
{{- $all := dict -}}
{{- range $key := list "podLabels" "podAnnotations" "nodeSelector" "securityContext" -}}
{{- $_ := set $all $key (include "expertfleet.merged" (list (get $common $key | default dict) (get $own $key | default dict)) | fromJson) -}}
{{- end -}}
{{- range $key := list "tolerations" "hostAliases" "env" "envFrom" "volumes" "volumeMounts" "initContainers" "containers" -}}
{{- $shared := ternary list (get $common $key | default list) (has $key $unshared) -}}
{{- $theirs := get $own $key | default list -}}
{{- if eq $key "env" -}}
{{- $shared = include "expertfleet.withoutNames" (list $shared $theirs) | fromJsonArray -}}
{{- end -}}
{{- $_ := set $all $key (concat $shared $theirs) -}}
{{- end -}}
{{- range $key := list "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "schedulerName" "dnsPolicy" "dnsConfig" "podSecurityContext" -}}
{{- if hasKey $own $key -}}
{{- $_ := set $all $key (get $own $key) -}}
{{- else if and (hasKey $common $key) (not (has $key $unshared)) -}}
{{- $_ := set $all $key (get $common $key) -}}
{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}

{{/* The first list without those whose name is in the second, as JSON. */}}
{{- define "expertfleet.withoutNames" -}}
{{- $names := list -}}
{{- range index . 1 -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $left := list -}}
{{- range index . 0 -}}
{{- if not (has .name $names) -}}
{{- $left = append $left . -}}
{{- end -}}
{{- end -}}
{{- toJson $left -}}
{{- end }}

{{/* Takes a pod. No label names a version: a new version of this chart alone must not replace pods. */}}
{{- define "expertfleet.podMetadata" -}}
{{- $pod := include "expertfleet.podValues" . | fromJson -}}
labels:
  {{- include "expertfleet.selectorLabels" . | nindent 2 }}
{{- with $pod.podLabels }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Takes a pod. No process here talks to Kubernetes, so no pod gets a token. Without enableServiceLinks: false every Service of the
namespace would be an environment variable, some of them named like settings of this fleet.
*/}}
{{- define "expertfleet.podStart" -}}
{{- $pod := include "expertfleet.podValues" . | fromJson -}}
{{- $made := and .root.Values.priorityClass.create (ne .role "pull") -}}
serviceAccountName: {{ include "expertfleet.serviceAccount" .root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName | default (ternary (include "expertfleet.priorityClass" .root) "" $made) }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- range $key := list "runtimeClassName" "schedulerName" "dnsPolicy" }}
{{- with get $pod $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "hostAliases" "dnsConfig" }}
{{- with get $pod $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- include "expertfleet.spread" (list . $) | nindent 4 }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "expertfleet.podSecurity" $pod | nindent 2 }}
{{- end }}

{{/* Takes a constraint and a pod. One that does not say which pods it counts counts those of its own group. */}}
{{- define "expertfleet.spread" -}}
{{- $selector := dict "matchLabels" (include "expertfleet.selectorLabels" (index . 1) | fromYaml) -}}
{{- include "expertfleet.overlaid" (list (dict "labelSelector" $selector) (index . 0)) | fromJson | toYaml -}}
{{- end }}

{{/*
Takes a pod's values. Where nothing is said it is the image's own user; null or an empty map, of which Helm's --set makes a list,
leaves it to the cluster.
*/}}
{{- define "expertfleet.podSecurity" -}}
{{- $user := dict "runAsUser" 10001 "runAsGroup" 10001 "fsGroup" 10001 "fsGroupChangePolicy" "OnRootMismatch" -}}
{{- if hasKey . "podSecurityContext" -}}
{{- $given := get . "podSecurityContext" -}}
{{- $user = include "expertfleet.merged" (list (ternary $given dict (kindIs "map" $given))) | fromJson -}}
{{- end -}}
{{- $restricted := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- include "expertfleet.overlaid" (list $restricted $user) | fromJson | toYaml -}}
{{- end }}

{{/* Takes a pod. */}}
{{- define "expertfleet.containerSecurity" -}}
{{- (include "expertfleet.podValues" . | fromJson).securityContext | toYaml -}}
{{- end }}

{{/* What the values give besides, as it stands. Takes a pod, and one of env, volumeMounts, volumes and containers. */}}
{{- define "expertfleet.given" -}}
{{- with get (include "expertfleet.podValues" (index . 0) | fromJson) (index . 1) -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}

{{/* Takes a pod. */}}
{{- define "expertfleet.envFrom" -}}
{{- with (include "expertfleet.podValues" . | fromJson).envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Takes a pod and image. Pods that start before the checkpoint is there wait for it, instead of failing again and again; after the
containers that the values give.
*/}}
{{- define "expertfleet.initContainers" -}}
{{- $root := .root -}}
{{- $given := (include "expertfleet.podValues" . | fromJson).initContainers -}}
{{- $waits := eq $root.Values.model.source "pull" -}}
{{- if or $given $waits }}
initContainers:
  {{- with $given }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if $waits }}
  - name: await-model
    image: {{ .image | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [sh, -c, 'until [ -e "$0" ]; do sleep 5; done', {{ include "expertfleet.pullMark" $root | quote }}]
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {cpu: 100m, memory: 32Mi}
    securityContext:
      {{- include "expertfleet.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "expertfleet.modelMount" $root | trim | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Takes a role's resources. */}}
{{- define "expertfleet.resources" -}}
{{- range $key := list "requests" "limits" }}
{{ $key }}:
  {{- include "expertfleet.merged" (list (get $ $key)) | fromJson | toYaml | nindent 2 }}
{{- end }}
{{- end }}

{{- define "expertfleet.env" -}}
- name: EXPERTFLEET_CLUSTER_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.clusterToken.existingSecret | quote }}
      key: {{ .Values.clusterToken.key | quote }}
- name: HOME
  value: /tmp
{{- end }}

{{- define "expertfleet.podAddress" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}

{{/* The root file system is read-only. Ray keeps its logs and sockets in /tmp. */}}
{{- define "expertfleet.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- include "expertfleet.modelMount" . }}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: /tls
  readOnly: true
{{- end }}
{{- end }}

{{/* NOTE: the TLS secret is mounted whole (and so are the gateway's keys), as a subPath would not follow its renewal. */}}
{{- define "expertfleet.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 4Gi
{{- include "expertfleet.modelVolume" . }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* What Ray needs besides: its small object store lies in /dev/shm. */}}
{{- define "expertfleet.rayMounts" -}}
- name: shm
  mountPath: /dev/shm
- name: run
  mountPath: /run/expertfleet
{{- end }}

{{- define "expertfleet.rayVolumes" -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: 256Mi
- name: run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}

{{/* What the pods of all roles have in common. */}}

{{/*
Takes root, role, workers and, for expert shards, group. No label names a version: a new version of this chart alone must not
replace pods.
*/}}
{{- define "expertfleet.podMetadata" -}}
labels:
  {{- include "expertfleet.selectorLabels" . | nindent 2 }}
{{- with .workers.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
No process here talks to Kubernetes, so no pod gets a token. Without enableServiceLinks: false every Service of the namespace
would be an environment variable, some of them named like settings of this fleet.
*/}}
{{- define "expertfleet.podStart" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ include "expertfleet.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- if ne .role "pull" }}
{{- with include "expertfleet.priorityClass" .root }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
{{- with .workers.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .workers.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .workers.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "expertfleet.podSecurity" . | nindent 2 }}
{{- end }}

{{- define "expertfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "expertfleet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Takes root, role and, for expert shards, group. */}}
{{- define "expertfleet.spread" -}}
{{- $spread := .root.Values.topologySpread -}}
topologySpreadConstraints:
  - topologyKey: {{ $spread.topologyKey }}
    maxSkew: {{ $spread.maxSkew }}
    whenUnsatisfiable: {{ $spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "expertfleet.selectorLabels" . | nindent 8 }}
{{- end }}

{{- define "expertfleet.env" -}}
- name: EXPERTFLEET_CLUSTER_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.clusterToken.existingSecret }}
      key: {{ .Values.clusterToken.key }}
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
    secretName: {{ . }}
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

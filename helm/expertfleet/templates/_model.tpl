{{/* Where the checkpoint lies, and how a pod gets at it. */}}

{{- define "expertfleet.modelPath" -}}
{{- if eq .Values.model.source "bundled" -}}
/opt/expertfleet/nano-k2
{{- else -}}
{{ list "/model" .Values.model.subPath | compact | join "/" }}
{{- end -}}
{{- end }}

{{- define "expertfleet.modelMount" -}}
{{- if ne .Values.model.source "bundled" }}
- name: model
  mountPath: /model
  readOnly: true
{{- end }}
{{- end }}

{{- define "expertfleet.modelVolume" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "hostPath" }}
- name: model
  hostPath:
    path: {{ $model.hostPath.path }}
    type: Directory
{{- else if ne $model.source "bundled" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ ternary (printf "%s-model" (include "expertfleet.fullname" .)) $model.existingClaim.name (eq $model.source "pull") }}
{{- end }}
{{- end }}

{{- define "expertfleet.sharedModelFlag" -}}
{{- with .Values.model.shared }}
{{- if .existingClaim }}
- --shared-model={{ list "/shared-model" .subPath | compact | join "/" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "expertfleet.sharedModelMount" -}}
{{- if .Values.model.shared.existingClaim }}
- name: shared-model
  mountPath: /shared-model
  readOnly: true
{{- end }}
{{- end }}

{{- define "expertfleet.sharedModelVolume" -}}
{{- with .Values.model.shared.existingClaim }}
- name: shared-model
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- end }}

{{/* The empty file that says that a pull is complete. */}}
{{- define "expertfleet.pullMark" -}}
/model/.{{ .Values.model.subPath }}.complete
{{- end }}

{{/* Pods that start before the checkpoint is there wait for it, instead of failing again and again. Takes root and image. */}}
{{- define "expertfleet.awaitModel" -}}
{{- if eq .root.Values.model.source "pull" }}
initContainers:
  - name: await-model
    image: {{ .image }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [sh, -c, 'until [ -e "$0" ]; do sleep 5; done', {{ include "expertfleet.pullMark" .root | quote }}]
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {cpu: 100m, memory: 32Mi}
    securityContext:
      {{- include "expertfleet.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "expertfleet.modelMount" .root | trim | nindent 6 }}
{{- end }}
{{- end }}

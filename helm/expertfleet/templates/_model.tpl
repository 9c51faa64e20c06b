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
    path: {{ $model.hostPath.path | quote }}
    type: Directory
{{- else if ne $model.source "bundled" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ ternary (printf "%s-model" (include "expertfleet.fullname" .)) $model.existingClaim.name (eq $model.source "pull") | quote }}
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
    claimName: {{ . | quote }}
    readOnly: true
{{- end }}
{{- end }}

{{/* The empty file beside the checkpoint's folder that says that a pull is complete. */}}
{{- define "expertfleet.pullMark" -}}
{{- $folder := include "expertfleet.modelPath" . -}}
{{ dir $folder }}/.{{ base $folder }}.complete
{{- end }}

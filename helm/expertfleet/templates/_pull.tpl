{{/* The pod that copies the checkpoint into the model's volume and then leaves the mark for which the others wait. */}}
{{- define "expertfleet.pullPod" -}}
{{- $pull := .Values.model.pull -}}
{{- $image := include "expertfleet.image" (dict "root" .) -}}
{{- $pod := dict "root" . "role" "pull" "workers" $pull -}}
metadata:
  {{- include "expertfleet.podMetadata" $pod | nindent 2 }}
spec:
  {{- include "expertfleet.podStart" $pod | nindent 2 }}
  restartPolicy: OnFailure
  initContainers:
    {{- include "expertfleet.given" (list $pod "initContainers") | nindent 4 }}
    - name: pull
      image: {{ $image | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - checkpoint
        - pull
        - {{ $pull.url | quote }}
        - {{ include "expertfleet.modelPath" . | quote }}
        - --jobs={{ $pull.jobs }}
      env:
        - name: HOME
          value: /tmp
        {{- with $pull.token.existingSecret }}
        - name: EXPERTFLEET_PULL_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ . | quote }}
              key: {{ $pull.token.key | quote }}
        {{- end }}
        {{- include "expertfleet.given" (list $pod "env") | nindent 8 }}
      {{- include "expertfleet.envFrom" $pod | trim | nindent 6 }}
      resources:
        {{- include "expertfleet.resources" $pull.resources | trim | nindent 8 }}
      securityContext:
        {{- include "expertfleet.containerSecurity" $pod | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: model
          mountPath: /model
        {{- include "expertfleet.given" (list $pod "volumeMounts") | nindent 8 }}
  containers:
    - name: complete
      image: {{ $image | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [touch, {{ include "expertfleet.pullMark" . | quote }}]
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {cpu: 100m, memory: 32Mi}
      securityContext:
        {{- include "expertfleet.containerSecurity" $pod | nindent 8 }}
      volumeMounts:
        - name: model
          mountPath: /model
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    {{- include "expertfleet.modelVolume" . | trim | nindent 4 }}
    {{- include "expertfleet.given" (list $pod "volumes") | nindent 4 }}
{{- end }}

{{/* The pod that copies the checkpoint into the model's volume and then leaves the mark for which the others wait. */}}
{{- define "expertfleet.pullPod" -}}
{{- $pull := .Values.model.pull -}}
{{- $image := include "expertfleet.image" (dict "root" .) -}}
{{- $pod := dict "root" . "role" "pull" "workers" (dict) -}}
metadata:
  {{- include "expertfleet.podMetadata" $pod | nindent 2 }}
spec:
  {{- include "expertfleet.podStart" $pod | nindent 2 }}
  restartPolicy: OnFailure
  initContainers:
    - name: pull
      image: {{ $image }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - checkpoint
        - pull
        - {{ $pull.url | quote }}
        - {{ include "expertfleet.modelPath" . }}
        - --jobs={{ $pull.jobs }}
      env:
        - name: HOME
          value: /tmp
        {{- with $pull.token.existingSecret }}
        - name: EXPERTFLEET_PULL_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ . }}
              key: {{ $pull.token.key }}
        {{- end }}
      resources:
        {{- toYaml $pull.resources | nindent 8 }}
      securityContext:
        {{- include "expertfleet.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: model
          mountPath: /model
  containers:
    - name: complete
      image: {{ $image }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [touch, {{ include "expertfleet.pullMark" . | quote }}]
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {cpu: 100m, memory: 32Mi}
      securityContext:
        {{- include "expertfleet.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: model
          mountPath: /model
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    {{- include "expertfleet.modelVolume" . | trim | nindent 4 }}
{{- end }}

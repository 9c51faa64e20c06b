{{/*
The StatefulSet of a group of attention workers or expert shards: each pod is a node of Ray, its ordinal is its seat. Takes root,
role, name, workers, and for expert shards group and firstSeat: a pod besides.

A pod that is told to end leaves by itself: others load what it holds, then its process ends. All that is awaited within the grace
period, so scaling down, rolling over and draining a node lose no request. There is no liveness probe, as the process ends by
itself when its node of Ray is gone.
*/}}
{{- define "expertfleet.nodeStatefulSet" -}}
{{- $root := .root -}}
{{- $workers := .workers -}}
{{- $settings := $workers.settings -}}
{{- $image := include "expertfleet.image" (dict "root" $root "device" $settings.device) -}}
{{- $_ := set . "image" $image -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "expertfleet.metadata" . | nindent 2 }}
spec:
  {{- if include "expertfleet.ownsReplicas" $workers }}
  replicas: {{ $workers.replicas }}
  {{- end }}
  serviceName: {{ .name | quote }}
  podManagementPolicy: Parallel
  {{- with .firstSeat }}
  ordinals:
    start: {{ . }}
  {{- end }}
  # One pod after the other, each only when the one before serves again.
  updateStrategy:
    type: RollingUpdate
  minReadySeconds: 5
  selector:
    matchLabels:
      {{- include "expertfleet.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      {{- include "expertfleet.podMetadata" . | nindent 6 }}
    spec:
      {{- include "expertfleet.podStart" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ add (ceil $settings.leaveS) (ceil $settings.drainS) 15 }}
      {{- include "expertfleet.initContainers" . | trim | nindent 6 }}
      containers:
        - name: {{ .role }}
          image: {{ $image | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            {{- include "expertfleet.nodeFlags" . | nindent 12 }}
            {{- if eq .role "attention" }}
            {{- include "expertfleet.flags" (dict "maxModelLen" $root.Values.model.maxModelLen) | trim | nindent 12 }}
            # Pods share neither memory nor local sockets, even on one node.
            - --no-local-lanes
            {{- end }}
          env:
            {{- include "expertfleet.podAddress" $root | nindent 12 }}
            - name: NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
            - name: POD_INDEX
              valueFrom:
                fieldRef:
                  fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
            - name: TRITON_CACHE_DIR
              value: /var/cache/triton
            {{- include "expertfleet.env" $root | nindent 12 }}
            {{- include "expertfleet.given" (list . "env") | nindent 12 }}
          {{- include "expertfleet.envFrom" . | trim | nindent 10 }}
          ports:
            - name: grpc
              containerPort: 7412
          # The file is there exactly while the seat serves.
          startupProbe:
            exec:
              command: [cat, /run/expertfleet/ready]
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: {{ mul $workers.startupMinutes 12 }}
          readinessProbe:
            exec:
              command: [cat, /run/expertfleet/ready]
            periodSeconds: 5
            timeoutSeconds: 5
          resources:
            {{- include "expertfleet.resources" $workers.resources | trim | nindent 12 }}
          securityContext:
            {{- include "expertfleet.containerSecurity" . | nindent 12 }}
          volumeMounts:
            {{- include "expertfleet.mounts" $root | nindent 12 }}
            {{- with include "expertfleet.sharedModelMount" $root | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- include "expertfleet.rayMounts" $root | nindent 12 }}
            - name: triton
              mountPath: /var/cache/triton
            {{- include "expertfleet.given" (list . "volumeMounts") | nindent 12 }}
        {{- include "expertfleet.given" (list . "containers") | nindent 8 }}
      volumes:
        {{- include "expertfleet.volumes" $root | nindent 8 }}
        {{- with include "expertfleet.sharedModelVolume" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- include "expertfleet.rayVolumes" $root | nindent 8 }}
        - name: triton
          emptyDir:
            sizeLimit: 2Gi
        {{- include "expertfleet.given" (list . "volumes") | nindent 8 }}
{{- end }}

{{/* Names pods of a StatefulSet; nothing of the fleet resolves them. Takes root, role, name and group. */}}
{{- define "expertfleet.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "expertfleet.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "expertfleet.selectorLabels" . | nindent 4 }}
  ports:
    - name: grpc
      port: 7412
      targetPort: grpc
{{- end }}

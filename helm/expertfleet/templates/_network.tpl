{{/* Names are looked up on port 53, on OpenShift on 5353. */}}
{{- define "expertfleet.dnsEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
    - port: 5353
      protocol: UDP
    - port: 5353
      protocol: TCP
{{- end }}

{{/* Head, attention workers and expert shards: Ray draws ports among them. */}}
{{- define "expertfleet.rayPods" -}}
matchLabels:
  {{- include "expertfleet.selectorLabels" (dict "root" .) | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [head, attention, expert]
{{- end }}

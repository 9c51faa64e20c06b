{{/* Command lines: a camelCase key of values is the flag of the same name with dashes. */}}

{{/* Takes a map; null leaves a flag out. */}}
{{- define "expertfleet.flags" -}}
{{- range $name, $value := . }}
{{- $flag := regexReplaceAll "([A-Z])" $name "-${1}" | lower }}
{{- if kindIs "bool" $value }}
- {{ ternary "--" "--no-" $value }}{{ $flag }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%s" $flag (include "expertfleet.number" $value) | quote }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Helm reads every number as a float and would write large ones with an exponent. */}}
{{- define "expertfleet.number" -}}
{{- if eq (floor .) . -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* What every process of the fleet is told. */}}
{{- define "expertfleet.sharedFlags" -}}
- --model={{ include "expertfleet.modelPath" . }}
{{- if .Values.tls.existingSecret }}
- --tls-dir=/tls
{{- end }}
{{- end }}

{{/* What attention workers and expert shards are told. Takes root, role and workers. */}}
{{- define "expertfleet.nodeFlags" -}}
{{- $root := .root -}}
- node
- {{ .role }}
- --head={{ include "expertfleet.fullname" $root }}-head:6379
- --controller={{ include "expertfleet.controller" $root }}
- --seat={{ .role }}-$(POD_INDEX)
- --host=$(POD_IP)
- --port=7412
- --node=$(NODE_NAME)
- --ready-file=/run/expertfleet/ready
- --dtype={{ $root.Values.dtype }}
{{ include "expertfleet.sharedFlags" $root }}
{{- include "expertfleet.sharedModelFlag" $root }}
{{- include "expertfleet.flags" $root.Values.lanes }}
{{- include "expertfleet.flags" .workers.settings }}
{{- end }}

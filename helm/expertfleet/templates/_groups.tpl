{{/*
The groups of expert shards, as JSON: each is expertShards, or has from it what it does not say itself, settings key by key and
all else whole. Besides it says its name, the name of its objects, and its path in the values.
*/}}
{{- define "expertfleet.groups" -}}
{{- $full := include "expertfleet.fullname" . -}}
{{- $main := .Values.expertShards -}}
{{- $named := dict "name" (printf "%s-expert" $full) "group" "main" "path" "expertShards" -}}
{{- $groups := list (include "expertfleet.overlaid" (list $main $named) | fromJson) -}}
{{- $alone := dict "replicas" nil "minReplicas" 1 "autoscaling" (dict "enabled" false) -}}
{{- range $key, $given := .Values.expertGroups -}}
{{- if not (kindIs "invalid" $given) -}}
{{- $named := dict "name" (printf "%s-expert-%s" $full $key) "group" $key "path" (printf "expertGroups.%s" $key) -}}
{{- $settings := include "expertfleet.overlaid" (list $main.settings (default dict $given.settings)) | fromJson -}}
{{- $scaling := include "expertfleet.overlaid" (list $main.autoscaling (dict "enabled" false) (default dict $given.autoscaling)) | fromJson -}}
{{- $merged := dict "settings" $settings "autoscaling" $scaling -}}
{{- $groups = append $groups (include "expertfleet.overlaid" (list $main $alone $given $merged $named) | fromJson) -}}
{{- end -}}
{{- end -}}
{{- toJson $groups -}}
{{- end }}

{{/* Maps laid over each other, the last on top, as JSON. Unlike with merge, false, 0 and null count as said. */}}
{{- define "expertfleet.overlaid" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $_ := set $all $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}

{{/*
Maps laid over each other, and the maps inside of them, as JSON. A key that is null at last is left out: it takes away what a values
file before, or the top level, has said.
*/}}
{{- define "expertfleet.merged" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- $below := get $all $key -}}
{{- $_ := set $all $key (include "expertfleet.merged" (list (ternary $below dict (kindIs "map" $below)) $value) | fromJson) -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := unset $all $key -}}
{{- else -}}
{{- $_ := set $all $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}

{{/* Whether spec.replicas is Helm's to write: a number is given, and no autoscaler has it. */}}
{{- define "expertfleet.ownsReplicas" -}}
{{- if and (not (kindIs "invalid" .replicas)) (not (dig "autoscaling" "enabled" false .)) -}}
yes
{{- end -}}
{{- end }}

{{/* What cannot be meant in the pods' own values. "A pod" is as in _pod.tpl, with the path of its workers' values besides. */}}

{{- define "expertfleet.checkPods" -}}
{{- $root := . }}
{{- $pods := list (dict "role" "head" "path" "head" "workers" .Values.head) }}
{{- $pods = append $pods (dict "role" "attention" "path" "attention" "workers" .Values.attention) }}
{{- $pods = append $pods (dict "role" "gateway" "path" "gateway" "workers" .Values.gateway) }}
{{- $pods = append $pods (dict "role" "pull" "path" "model.pull" "workers" .Values.model.pull) }}
{{- range include "expertfleet.groups" . | fromJsonArray }}
{{- $pods = append $pods (dict "role" "expert" "path" .path "workers" . "group" .group) }}
{{- end }}
{{- range $pods }}
{{- $pod := set . "root" $root }}
{{- include "expertfleet.checkEnv" $pod }}
{{- include "expertfleet.checkVolumes" $pod }}
{{- include "expertfleet.checkContainers" $pod }}
{{- include "expertfleet.checkScheduling" $pod }}
{{- include "expertfleet.checkPrivileges" $pod }}
{{- include "expertfleet.checkReservedLabels" (list (printf "%s.podLabels" .path) (get .workers "podLabels" | default dict)) }}
{{- end }}
{{- include "expertfleet.checkTwice" (list "imagePullSecrets" .Values.imagePullSecrets) }}
{{- end }}

{{/* Takes a pod and a key: where it is said, in the role or for all. */}}
{{- define "expertfleet.pathOf" -}}
{{- $pod := index . 0 -}}
{{- ternary (printf "%s.%s" $pod.path (index . 1)) (index . 1) (hasKey $pod.workers (index . 1)) -}}
{{- end }}

{{/* Takes a sentence's beginning, a list of things, and the keys by which Kubernetes tells them apart; the name if none are given. */}}
{{- define "expertfleet.checkTwice" -}}
{{- $seen := list }}
{{- $keys := rest (rest .) | default (list "name") }}
{{- range $thing := index . 1 }}
{{- $words := list }}
{{- range $keys }}
{{- $words = append $words (get $thing .) }}
{{- end }}
{{- $word := join " " $words }}
{{- if has $word $seen }}
{{ index $ 0 }}: {{ $word }} is given twice
{{- end }}
{{- $seen = append $seen $word }}
{{- end }}
{{- end }}

{{- define "expertfleet.checkEnv" -}}
{{- $path := include "expertfleet.pathOf" (list . "env") }}
{{- $env := (include "expertfleet.podValues" . | fromJson).env }}
{{- include "expertfleet.checkTwice" (list $path $env) }}
{{- range $env }}
{{- if has .name (list "HOME" "POD_IP" "POD_INDEX" "NODE_NAME" "TRITON_CACHE_DIR") }}
{{ $path }}: {{ .name }} is the chart's own
{{- else if hasPrefix "EXPERTFLEET_" .name }}
{{ $path }}: {{ .name }} is a setting of the fleet; those are values of their own, each role's below its settings
{{- else if hasPrefix "RAY_" .name }}
{{ $path }}: {{ .name }} would have no effect, as the fleet configures Ray itself
{{- else if and (hasKey . "value") (hasKey . "valueFrom") }}
{{ $path }}: {{ .name }} has a value and a valueFrom; give one of them
{{- end }}
{{- end }}
{{- end }}

{{- define "expertfleet.checkVolumes" -}}
{{- $pod := include "expertfleet.podValues" . | fromJson }}
{{- $path := include "expertfleet.pathOf" (list . "volumes") }}
{{- $own := list "tmp" "model" "shared-model" "tls" "keys" "shm" "run" "triton" "storage" }}
{{- $given := list }}
{{- include "expertfleet.checkTwice" (list $path $pod.volumes) }}
{{- range $pod.volumes }}
{{- $given = append $given .name }}
{{- if has .name $own }}
{{ $path }}: {{ .name }} is the name of a volume of the chart's own
{{- end }}
{{- end }}
{{- $path = include "expertfleet.pathOf" (list . "volumeMounts") }}
{{- $places := list "/tmp" "/model" "/shared-model" "/tls" "/keys" "/dev/shm" "/run/expertfleet" "/var/cache/triton" "/var/lib/expertfleet" "/opt" "/opt/venv" "/opt/expertfleet" "/" "/bin" "/dev" "/etc" "/lib" "/lib64" "/proc" "/sbin" "/sys" "/usr" "/usr/local" }}
{{- range $pod.volumeMounts }}
{{- $place := clean .mountPath }}
{{- if not (has .name $given) }}
{{ $path }}: no volume among volumes is named {{ .name }}
{{- end }}
{{- if has $place $places }}
{{ $path }}: {{ .mountPath }} is taken already; mount {{ .name }} elsewhere
{{- end }}
{{- $places = append $places $place }}
{{- end }}
{{- end }}

{{/* Names of the volumes that a pod has by itself, as JSON. */}}
{{- define "expertfleet.ownVolumes" -}}
{{- $values := .root.Values -}}
{{- $isRay := has .role (list "head" "attention" "expert") -}}
{{- $names := list "tmp" (ternary "model" "" (ne $values.model.source "bundled")) (ternary "storage" "" (eq .role "head")) -}}
{{- if ne .role "pull" -}}
{{- $names = append $names (ternary "tls" "" (not (empty $values.tls.existingSecret))) -}}
{{- $names = append $names (ternary "keys" "" (and (eq .role "gateway") (not (empty $values.apiKeys.existingSecret)))) -}}
{{- end -}}
{{- if $isRay -}}
{{- $names = concat $names (list "shm" "run" (ternary "triton" "" (ne .role "head")) (ternary "shared-model" "" (not (empty $values.model.shared.existingClaim)))) -}}
{{- end -}}
{{- compact $names | toJson -}}
{{- end }}

{{- define "expertfleet.checkContainers" -}}
{{- $pod := include "expertfleet.podValues" . | fromJson }}
{{- $volumes := include "expertfleet.ownVolumes" . | fromJsonArray }}
{{- range $pod.volumes }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- $names := list .role "await-model" "complete" }}
{{- range $key := list "initContainers" "containers" }}
{{- $path := include "expertfleet.pathOf" (list $ $key) }}
{{- range get $pod $key }}
{{- if has .name $names }}
{{ $path }}: there is a container {{ .name }} already
{{- end }}
{{- $names = append $names .name }}
{{- $of := printf "%s: the container %s" $path .name }}
{{- include "expertfleet.checkTwice" (list (printf "%s, env" $of) .env) }}
{{- include "expertfleet.checkTwice" (list (printf "%s, volumeMounts" $of) .volumeMounts "mountPath") }}
{{- range .volumeMounts }}
{{- if not (has .name $volumes) }}
{{ $of }} mounts {{ .name }}, but no volume among volumes has that name (the chart's own are {{ include "expertfleet.ownVolumes" $ | fromJsonArray | join ", " }})
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "expertfleet.checkScheduling" -}}
{{- $pod := include "expertfleet.podValues" . | fromJson }}
{{- $path := include "expertfleet.pathOf" (list . "tolerations") }}
{{- range $pod.tolerations }}
{{- if and (eq (default "Equal" .operator) "Exists") .value }}
{{ $path }}: {{ default "every key" .key }} has the operator Exists, which takes no value, but the value {{ .value }}
{{- end }}
{{- if and (not .key) (ne (default "Equal" .operator) "Exists") }}
{{ $path }}: one without a key tolerates every taint and wants the operator Exists
{{- end }}
{{- if and (hasKey . "tolerationSeconds") (ne (default "" .effect) "NoExecute") }}
{{ $path }}: {{ default "every key" .key }} has tolerationSeconds, which want the effect NoExecute
{{- end }}
{{- end }}
{{- $path = include "expertfleet.pathOf" (list . "topologySpreadConstraints") }}
{{- include "expertfleet.checkTwice" (list $path $pod.topologySpreadConstraints "topologyKey" "whenUnsatisfiable") }}
{{- range $pod.topologySpreadConstraints }}
{{- if and .minDomains (ne .whenUnsatisfiable "DoNotSchedule") }}
{{ $path }}: {{ .topologyKey }} has minDomains, which want whenUnsatisfiable DoNotSchedule
{{- end }}
{{- end }}
{{- include "expertfleet.checkTwice" (list (include "expertfleet.pathOf" (list . "hostAliases")) $pod.hostAliases "ip") }}
{{- if and (eq (default "" $pod.dnsPolicy) "None") (not (dig "nameservers" list (default dict $pod.dnsConfig))) }}
{{ include "expertfleet.pathOf" (list . "dnsPolicy") }}: None wants dnsConfig.nameservers
{{- end }}
{{- end }}

{{/* What Kubernetes refuses together. */}}
{{- define "expertfleet.checkPrivileges" -}}
{{- $security := (include "expertfleet.podValues" . | fromJson).securityContext }}
{{- $grants := ternary "privileged: true" "" (default false $security.privileged) }}
{{- range dig "capabilities" "add" list $security }}
{{- $grants = ternary (printf "the capability %s" .) $grants (has (trimPrefix "CAP_" .) (list "SYS_ADMIN")) }}
{{- end }}
{{- if and $grants (not (dig "allowPrivilegeEscalation" true $security)) }}
{{ include "expertfleet.pathOf" (list . "securityContext") }}: {{ $grants }} does not go with allowPrivilegeEscalation: false
{{- end }}
{{- end }}

{{/* By these objects find each other. Takes a path and labels. */}}
{{- define "expertfleet.checkReservedLabels" -}}
{{- range $name, $value := index . 1 }}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|managed-by)|helm\\.sh/chart|expertfleet/.*)$" $name }}
{{ index $ 0 }}: {{ $name }} is the chart's own
{{- end }}
{{- end }}
{{- end }}

{{- define "expertfleet.checkLabels" -}}
{{- $values := .Values }}
{{- $labels := dict "commonLabels" $values.commonLabels "podLabels" $values.podLabels "gateway.service.labels" $values.gateway.service.labels }}
{{- $more := dict "gateway.ingress.labels" $values.gateway.ingress.labels "metrics.serviceMonitor.labels" $values.metrics.serviceMonitor.labels }}
{{- $last := dict "metrics.dashboard.labels" $values.metrics.dashboard.labels }}
{{- range $path, $given := merge $labels $more $last }}
{{- include "expertfleet.checkReservedLabels" (list $path (default dict $given)) }}
{{- end }}
{{- range $name, $value := $values.commonAnnotations }}
{{- if regexMatch "^(meta\\.)?helm\\.sh/" $name }}
commonAnnotations: {{ $name }} is Helm's own, and of all objects it cannot be meant
{{- end }}
{{- end }}
{{- end }}

{{/* How clients reach the gateways. */}}
{{- define "expertfleet.checkService" -}}
{{- $service := .Values.gateway.service }}
{{- $policy := default "" $service.ipFamilyPolicy }}
{{- $families := default list $service.ipFamilies }}
{{- if and (eq .Values.gateway.host "0.0.0.0") (or (has "IPv6" $families) (has $policy (list "PreferDualStack" "RequireDualStack"))) }}
gateway.host: 0.0.0.0 listens on IPv4 alone, but gateway.service asks for IPv6; :: listens on both
{{- end }}
{{- if and (gt (len $families) 1) (not (has $policy (list "PreferDualStack" "RequireDualStack"))) }}
gateway.service.ipFamilyPolicy: {{ default "empty" $policy }} is one family, but gateway.service.ipFamilies names two
{{- end }}
{{- if and $service.nodePort (eq $service.type "ClusterIP") }}
gateway.service.nodePort: {{ $service.nodePort }} is given, but gateway.service.type is ClusterIP
{{- end }}
{{- if and $service.externalTrafficPolicy (eq $service.type "ClusterIP") }}
gateway.service.externalTrafficPolicy: {{ $service.externalTrafficPolicy }} is given, but gateway.service.type is ClusterIP
{{- end }}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if and (get $service $key) (ne $service.type "LoadBalancer") }}
gateway.service.{{ $key }}: given, but gateway.service.type is {{ $service.type }}
{{- end }}
{{- end }}
{{- end }}

{{/*
What the schema cannot say: combinations of values that could not work. Each check gives sentences that begin with the path of
the value to change, one a line.
*/}}

{{- define "expertfleet.checkImage" -}}
{{- if not .Values.image.repository }}
image.repository: empty; name where you pushed the image
{{- end }}
{{- range $path, $tag := dict "image.tag" .Values.image.tag "gateway.image.tag" .Values.gateway.image.tag }}
{{- if eq $tag "latest" }}
{{ $path }}: latest names no version, so an upgrade could not be rolled back
{{- end }}
{{- end }}
{{- range $target, $digest := .Values.image.digests }}
{{- if and $digest $.Values.image.tag }}
image.tag: {{ $.Values.image.tag }} is given, but image.digests.{{ $target }} goes before it; an upgrade of the tag alone would change nothing
{{- end }}
{{- end }}
{{- end }}

{{- define "expertfleet.checkSecrets" -}}
{{- if not .Values.clusterToken.existingSecret }}
clusterToken.existingSecret: empty; make one with kubectl create secret generic NAME --from-literal=token=$(openssl rand -hex 32) and name it
{{- end }}
{{- if and .Values.apiKeys.existingSecret .Values.apiKeys.open }}
apiKeys.open: true serves whoever reaches the gateways, but apiKeys.existingSecret is {{ .Values.apiKeys.existingSecret }}; choose one of the two
{{- else if not (or .Values.apiKeys.existingSecret .Values.apiKeys.open) }}
apiKeys.existingSecret: empty; make one with kubectl create secret generic NAME --from-literal=keys=$(openssl rand -hex 24) and name it, or set apiKeys.open: true to serve whoever reaches the gateways
{{- end }}
{{- end }}

{{- define "expertfleet.checkModel" -}}
{{- $model := .Values.model }}
{{- $source := $model.source }}
{{- if not $source }}
model.source: empty; choose bundled, existingClaim, hostPath or pull
{{- end }}
{{- $places := dict "existingClaim" $model.existingClaim.name "hostPath" $model.hostPath.path "pull" $model.pull.url }}
{{- $keys := dict "existingClaim" "name" "hostPath" "path" "pull" "url" }}
{{- range $kind, $place := $places }}
{{- if and $place (ne $kind $source) }}
model.{{ $kind }}.{{ get $keys $kind }}: {{ $place }} is given, but model.source is {{ default "empty" $source }}
{{- else if and (not $place) (eq $kind $source) }}
model.{{ $kind }}.{{ get $keys $kind }}: empty, but model.source is {{ $source }}
{{- end }}
{{- end }}
{{- if and $model.pull.token.existingSecret (ne $source "pull") }}
model.pull.token.existingSecret: {{ $model.pull.token.existingSecret }} is given, but model.source is {{ default "empty" $source }}
{{- end }}
{{- include "expertfleet.checkAmounts" (list "model.pull" $model.pull.resources) }}
{{- if and (eq $source "pull") (not $model.subPath) }}
model.subPath: empty; a pull needs a folder of its own in the volume
{{- end }}
{{- if and (eq $source "bundled") $model.shared.existingClaim }}
model.shared.existingClaim: {{ $model.shared.existingClaim }} is given, but model.source is bundled
{{- end }}
{{- if and $model.shared.subPath (not $model.shared.existingClaim) }}
model.shared.subPath: {{ $model.shared.subPath }} is given, but no model.shared.existingClaim
{{- end }}
{{- if and (eq $source "bundled") $model.subPath }}
model.subPath: {{ $model.subPath }} is given, but model.source is bundled
{{- end }}
{{- end }}

{{- define "expertfleet.checkGroups" -}}
{{- if hasKey (default dict .Values.expertGroups) "main" }}
expertGroups.main: expertShards is the group main; give this one another name
{{- end }}
{{- $groups := include "expertfleet.groups" . | fromJsonArray }}
{{- $seats := dict }}
{{- $shards := 0 }}
{{- $known := true }}
{{- range $groups }}
{{- $first := printf "%v" .firstSeat }}
{{- if hasKey $seats $first }}
{{ .path }}.firstSeat: {{ $first }} is {{ get $seats $first }}'s as well; give each group another multiple of 100
{{- end }}
{{- $_ := set $seats $first .path }}
{{- if include "expertfleet.ownsReplicas" . }}
{{- $shards = add $shards .replicas }}
{{- if lt (int .replicas) (int .minReplicas) }}
{{ .path }}.replicas: {{ .replicas }} are fewer than the {{ .minReplicas }} of {{ .path }}.minReplicas that hold the model
{{- end }}
{{- else }}
{{- $known = false }}
{{- end }}
{{- include "expertfleet.checkScaling" (list .path .autoscaling) }}
{{- if .autoscaling.enabled }}
{{- if lt (int .autoscaling.minReplicas) (int .minReplicas) }}
{{ .path }}.autoscaling.minReplicas: {{ .autoscaling.minReplicas }} are fewer than the {{ .minReplicas }} of {{ .path }}.minReplicas that hold the model
{{- end }}
{{- if and (eq .autoscaling.metric "expertfleet_wanted_expert_shards") (gt (len $groups) 1) }}
{{ .path }}.autoscaling.metric: expertfleet_wanted_expert_shards counts the shards of all {{ len $groups }} groups; name a metric for this group alone
{{- end }}
{{- end }}
{{- include "expertfleet.checkDevice" . }}
{{- include "expertfleet.checkResources" (dict "path" .path "workers" . "gib" (ternary .settings.memoryGib nil (eq .settings.device "cpu")) "name" "memoryGib") }}
{{- end }}
{{- if and $known (gt (float64 .Values.expertReplicas) (float64 $shards)) }}
expertReplicas: {{ .Values.expertReplicas }} copies of each expert want as many shards, but all groups together have {{ $shards }}
{{- end }}
{{- end }}

{{/* Takes path and autoscaling. */}}
{{- define "expertfleet.checkScaling" -}}
{{- $path := index . 0 }}
{{- with index . 1 }}
{{- if and .enabled (lt (int .maxReplicas) (int .minReplicas)) }}
{{ $path }}.autoscaling.maxReplicas: {{ .maxReplicas }} are fewer than the {{ .minReplicas }} of {{ $path }}.autoscaling.minReplicas
{{- end }}
{{- end }}
{{- end }}

{{/* Names of extended resources among the limits, as JSON. Kubernetes writes them DOMAIN/NAME. */}}
{{- define "expertfleet.devices" -}}
{{- $found := list -}}
{{- range $name, $amount := .limits -}}
{{- if and (contains "/" $name) $amount -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{- define "expertfleet.checkDevice" -}}
{{- $device := .settings.device }}
{{- $backend := .settings.backend }}
{{- $devices := include "expertfleet.devices" .resources | fromJsonArray }}
{{- if and (eq $device "cpu") (eq $backend "triton") }}
{{ .path }}.settings.backend: triton computes on a GPU, but {{ .path }}.settings.device is cpu
{{- end }}
{{- if and (ne $device "cpu") (not (has $backend (list "auto" "triton"))) }}
{{ .path }}.settings.backend: {{ $backend }} computes on the CPU, but {{ .path }}.settings.device is {{ $device }}
{{- end }}
{{- if and (ne $device "cpu") (not $devices) }}
{{ .path }}.settings.device: {{ $device }} wants a GPU in {{ .path }}.resources.limits, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb
{{- end }}
{{- if eq $device "cpu" }}
{{- include "expertfleet.checkIdle" (list (printf "%s.settings.device: cpu" .path) .path .resources) }}
{{- end }}
{{- end }}

{{/* A GPU beside what computes on the CPU, by its name. Takes the sentence's beginning, path and resources. */}}
{{- define "expertfleet.checkIdle" -}}
{{- range include "expertfleet.devices" (index . 2) | fromJsonArray }}
{{- if regexMatch "gpu|/mig-" . }}
{{ index $ 0 }} leaves the {{ . }} of {{ index $ 1 }}.resources.limits idle
{{- end }}
{{- end }}
{{- end }}

{{/* What Kubernetes itself would refuse, but only in the pods' events. Takes path and resources. */}}
{{- define "expertfleet.checkAmounts" -}}
{{- $path := printf "%s.resources" (index . 0) }}
{{- $requests := (index . 1).requests }}
{{- $limits := (index . 1).limits }}
{{- if gt (include "expertfleet.cpus" $requests.cpu | float64) (include "expertfleet.cpus" $limits.cpu | float64) }}
{{ $path }}.requests.cpu: {{ $requests.cpu }} are more than the {{ $limits.cpu }} of {{ $path }}.limits.cpu
{{- end }}
{{- range $name := list "memory" "ephemeral-storage" }}
{{- if hasKey $requests $name }}
{{- if not (hasKey $limits $name) }}
{{ $path }}.requests.{{ $name }}: {{ get $requests $name }} is given, but no {{ $path }}.limits.{{ $name }}
{{- else if gt (include "expertfleet.mib" (get $requests $name) | int64) (include "expertfleet.mib" (get $limits $name) | int64) }}
{{ $path }}.requests.{{ $name }}: {{ get $requests $name }} is more than the {{ get $limits $name }} of {{ $path }}.limits.{{ $name }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $amount := $requests }}
{{- $limit := get $limits $name | default 0 }}
{{- if and (contains "/" $name) $amount (ne (int $amount) (int $limit)) }}
{{ $path }}.requests.{{ $name }}: {{ $amount }} must be the {{ $limit }} of {{ $path }}.limits.{{ $name }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes path, workers, and the GiB that the process itself will fill (null: not known) with the name of their setting. */}}
{{- define "expertfleet.checkResources" -}}
{{- $path := .path }}
{{- $requests := .workers.resources.requests }}
{{- $limits := .workers.resources.limits }}
{{- include "expertfleet.checkAmounts" (list $path .workers.resources) }}
{{- if ne (include "expertfleet.mib" $requests.memory) (include "expertfleet.mib" $limits.memory) }}
{{ $path }}.resources.requests.memory: {{ $requests.memory }} is not the {{ $limits.memory }} of {{ $path }}.resources.limits.memory; memory that a worker fills must be its own
{{- end }}
{{- if gt (float64 .workers.settings.threads) (include "expertfleet.cpus" $limits.cpu | float64) }}
{{ $path }}.settings.threads: {{ .workers.settings.threads }} are more than the {{ $limits.cpu }} CPUs of {{ $path }}.resources.limits.cpu
{{- end }}
{{- if not (kindIs "invalid" .gib) }}
{{- if gt (mulf (addf .gib 2) 1024) (include "expertfleet.mib" $limits.memory | float64) }}
{{ $path }}.settings.{{ .name }}: {{ .gib }} GiB and the 2 GiB that the process needs besides do not fit into the {{ $limits.memory }} of {{ $path }}.resources.limits.memory
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity of memory in MiB; the schema allows Mi, Gi and Ti. */}}
{{- define "expertfleet.mib" -}}
{{- $factor := get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (. | trimAll "0123456789") -}}
{{- mul (regexFind "^[0-9]+" .) $factor -}}
{{- end }}

{{/* A quantity of processors. */}}
{{- define "expertfleet.cpus" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{ divf (float64 (trimSuffix "m" $text)) 1000 }}
{{- else -}}
{{ $text }}
{{- end -}}
{{- end }}

{{- define "expertfleet.checkRest" -}}
{{- include "expertfleet.checkScaling" (list "gateway" .Values.gateway.autoscaling) }}
{{- include "expertfleet.checkResources" (dict "path" "attention" "workers" .Values.attention "gib" .Values.attention.settings.cacheGib "name" "cacheGib") }}
{{- range $path, $workers := dict "head" .Values.head "gateway" .Values.gateway }}
{{- include "expertfleet.checkAmounts" (list $path $workers.resources) }}
{{- end }}
{{- range $path, $workers := dict "head" .Values.head "gateway" .Values.gateway "attention" .Values.attention "model.pull" .Values.model.pull }}
{{- include "expertfleet.checkIdle" (list (printf "%s.resources: the CPU" $path) $path $workers.resources) }}
{{- end }}
{{- if and .Values.networkPolicy.egress (not .Values.networkPolicy.enabled) }}
networkPolicy.egress: given, but networkPolicy.enabled is false, so that everything may go out
{{- end }}
{{- if and .Values.serviceAccount.annotations (not .Values.serviceAccount.create) }}
serviceAccount.annotations: given, but serviceAccount.create is false
{{- end }}
{{- if and .Values.networkPolicy.clients (not .Values.networkPolicy.enabled) }}
networkPolicy.clients: given, but networkPolicy.enabled is false, so that everybody reaches the API
{{- end }}
{{- range .Values.networkPolicy.egress }}
{{- range .ports }}
{{- if and .endPort (lt (int .endPort) (int .port)) }}
networkPolicy.egress: endPort {{ .endPort }} is less than port {{ .port }}
{{- end }}
{{- end }}
{{- end }}
{{- $ingress := .Values.gateway.ingress }}
{{- range $key := list "hosts" "tlsSecret" "annotations" "labels" }}
{{- if and (get $ingress $key) (not $ingress.enabled) }}
gateway.ingress.{{ $key }}: given, but gateway.ingress.enabled is false
{{- end }}
{{- end }}
{{- if and $ingress.enabled (not $ingress.hosts) }}
gateway.ingress.hosts: empty, but gateway.ingress.enabled is true; name the hosts
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
metrics.serviceMonitor.enabled: true, but this cluster has no monitoring.coreos.com/v1; install Prometheus' operator first (helm template wants --api-versions monitoring.coreos.com/v1)
{{- end }}
{{- end }}

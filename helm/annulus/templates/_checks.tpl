{{/* Refuses what the schema cannot see: values that contradict one another. */}}
{{- define "annulus.checks" -}}
{{- $v := .Values -}}
{{- include "annulus.checkKubernetes" . -}}
{{- include "annulus.checkOptions" (dict "of" "coordinator" "command" "coordinator" "settings" $v.coordinator) -}}
{{- include "annulus.checkCluster" $v.coordinator.cluster -}}
{{- include "annulus.checkTls" $v.tls -}}
{{- include "annulus.checkAuth" . -}}
{{- if gt (int $v.network.firstPort) (int $v.network.lastPort) -}}
{{- fail (printf "network.lastPort: %d; expected at least network.firstPort, %d" (int $v.network.lastPort) (int $v.network.firstPort)) -}}
{{- end -}}
{{- if lt (int $v.network.heartbeatTimeoutMs) (mul 2 (int $v.network.heartbeatMs) | int) -}}
{{- fail (printf "network.heartbeatTimeoutMs: %d; expected at least twice network.heartbeatMs, %d" (int $v.network.heartbeatTimeoutMs) (int $v.network.heartbeatMs)) -}}
{{- end -}}
{{- range $port := list 7070 7071 7072 -}}
{{- if and (le (int $v.network.firstPort) $port) (ge (int $v.network.lastPort) $port) -}}
{{- fail (printf "network.firstPort: the range holds port %d, which the processes use themselves; expected another range" $port) -}}
{{- end -}}
{{- end -}}
{{- include "annulus.checkSizes" (dict "of" "coordinator" "settings" $v.coordinator
  "most" (dict "inFlightBytes" 1125899906842624 "bufferBytes" 1125899906842624
  "requestBytes" 1125899906842624)) -}}
{{- $inFlight := include "annulus.bytes" $v.coordinator.inFlightBytes | int64 -}}
{{- $buffer := include "annulus.bytes" $v.coordinator.bufferBytes | int64 -}}
{{- $request := include "annulus.bytes" $v.coordinator.requestBytes | int64 -}}
{{- /* piece_bytes_max (16Mi) of runtime/protocol/public/tensor_stream.h comes out of a half too. */ -}}
{{- if lt $buffer 33554432 -}}
{{- fail (printf "coordinator.bufferBytes: %v; expected at least 32Mi" $v.coordinator.bufferBytes) -}}
{{- end -}}
{{- if gt $request (div $inFlight 2) -}}
{{- fail (printf "coordinator.requestBytes: %v; expected at most half of coordinator.inFlightBytes, %v" $v.coordinator.requestBytes $v.coordinator.inFlightBytes) -}}
{{- end -}}
{{- if gt $request (div $buffer 2) -}}
{{- fail (printf "coordinator.requestBytes: %v; expected at most half of coordinator.bufferBytes, %v" $v.coordinator.requestBytes $v.coordinator.bufferBytes) -}}
{{- end -}}
{{- /* transport_bytes_max (256Mi) of runtime/server/limits.h and the program (256Mi), beside what calls
bring and take away (bufferBytes), what is packed for workers (inFlightBytes) and lists that calls name
by handles. */ -}}
{{- $lists := include "annulus.given" (dict "settings" $v.coordinator "option" "list-cache-bytes") | default "256M" -}}
{{- $lists = include "annulus.count" $lists | int64 -}}
{{- with (($v.coordinator.resources).limits).memory -}}
{{- $needed := add $inFlight $buffer $lists 536870912 -}}
{{- if lt (include "annulus.bytes" . | int64) $needed -}}
{{- fail (printf "coordinator.resources.limits.memory: %v; expected at least %d bytes: inFlightBytes, bufferBytes, list-cache-bytes and 512Mi" . $needed) -}}
{{- end -}}
{{- end -}}
{{- include "annulus.checkReflection" . -}}
{{- if and $v.route.enabled (not $v.route.parentRefs) -}}
{{- fail "route.parentRefs: empty; expected the gateways of the route, for route.enabled" -}}
{{- end -}}
{{- if and $v.benchmark.enabled (not $v.benchmark.image) -}}
{{- fail "benchmark.image: empty; expected an image with annulus_bench and mpirun, for benchmark.enabled" -}}
{{- end -}}
{{- $alerts := list -}}
{{- range (.Files.Get "files/rules.yaml" | fromYaml).groups }}{{ range .rules }}{{ $alerts = append $alerts .alert }}{{ end }}{{ end -}}
{{- range $v.monitoring.rules.disabled -}}
{{- if not (has . $alerts) -}}
{{- fail (printf "monitoring.rules.disabled: %q is no alert; expected some of %s" . (join ", " $alerts)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $v.pools -}}
{{- include "annulus.checkPool" (dict "root" $ "name" $name "pool" (include "annulus.pool" (dict "root" $ "name" $name) | fromYaml)) -}}
{{- end -}}
{{- include "annulus.checkChange" . -}}
{{- end -}}

{{/* A cluster file's content, the path of one that is mounted, or a name that the program knows. */}}
{{- define "annulus.knownClusters" -}}
h100x8 h200x8 a100x8 cpu-32 cpu-128
{{- end -}}
{{- define "annulus.checkCluster" -}}
{{- if contains "{" . -}}
{{- with (fromJson .).Error -}}
{{- fail (printf "coordinator.cluster: %s; expected JSON, as a cluster file's content" .) -}}
{{- end -}}
{{- else if and . (not (contains "/" .)) -}}
{{- $known := include "annulus.knownClusters" . | splitList " " -}}
{{- if not (has . $known) -}}
{{- fail (printf "coordinator.cluster: %q; expected one of %s, a cluster file's content, or a path of one that is mounted" . (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Who must say who they are are not told of services before. */}}
{{- define "annulus.checkReflection" -}}
{{- $given := include "annulus.given" (dict "settings" .Values.coordinator "option" "reflection" "alone" "true") -}}
{{- $asked := or .Values.auth.enabled .Values.tls.requireClientCertificates -}}
{{- if and $asked (regexMatch "^(?i)(true|t|yes|y|1)$" $given) -}}
{{- fail "coordinator.options.reflection: true with auth.enabled or tls.requireClientCertificates; expected false" -}}
{{- end -}}
{{- end -}}

{{- define "annulus.checkPool" -}}
{{- $pool := .pool -}}
{{- include "annulus.checkOptions" (dict "of" (printf "pools.%s" .name) "command" "worker" "settings" $pool) -}}
{{- include "annulus.checkSizes" (dict "of" (printf "pools.%s" .name) "settings" $pool "most" (dict
  "kvBytes" 1152921504606846975 "uploadBytes" 1125899906842624 "drainRate" 1152921504606846975
  "shmSize" 1152921504606846975)) -}}
{{- $rejoin := int $pool.rejoinSeconds -}}
{{- if le $rejoin (int .root.Values.coordinator.recoverySeconds) -}}
{{- fail (printf "pools.%s.rejoinSeconds: %d; expected more than coordinator.recoverySeconds, %d" .name $rejoin (int .root.Values.coordinator.recoverySeconds)) -}}
{{- end -}}
{{- with (($pool.resources).limits).memory -}}
{{- $needed := include "annulus.workerMemory" $pool | int64 -}}
{{- if lt (include "annulus.bytes" . | int64) $needed -}}
{{- fail (printf "pools.%s.resources.limits.memory: %v; expected at least %d bytes for kvBytes %v, its tables, memory kept, uploads and the program" $.name . $needed $pool.kvBytes) -}}
{{- end -}}
{{- else -}}
{{- fail (printf "pools.%s.resources.limits.memory: none; expected a limit that holds kvBytes" .name) -}}
{{- end -}}
{{- if and $pool.hostNetwork .root.Values.networkPolicy.enabled (not .root.Values.networkPolicy.nodeCidrs) -}}
{{- fail (printf "networkPolicy.nodeCidrs: empty; expected the addresses of the nodes, since pools.%s.hostNetwork comes from there" .name) -}}
{{- end -}}
{{- if and $pool.autoscaling.enabled (gt (int $pool.autoscaling.minReplicas) (int $pool.autoscaling.maxReplicas)) -}}
{{- fail (printf "pools.%s.autoscaling.maxReplicas: %d; expected at least minReplicas, %d" .name (int $pool.autoscaling.maxReplicas) (int $pool.autoscaling.minReplicas)) -}}
{{- end -}}
{{- $scaled := and $pool.autoscaling.enabled (not $pool.autoscaling.query) -}}
{{- if and $scaled (not .root.Values.monitoring.serviceMonitor.enabled) -}}
{{- fail (printf "pools.%s.autoscaling.query: empty; expected one, or monitoring.serviceMonitor.enabled, whose label service the chart's own query asks for" .name) -}}
{{- end -}}
{{- if and (eq $pool.backend "cuda") (lt (int $pool.gpus) 1) (not $pool.resourceClaims) -}}
{{- fail (printf "pools.%s.gpus: %d with backend cuda; expected at least 1, or resourceClaims" .name (int $pool.gpus)) -}}
{{- end -}}
{{- if and (ne $pool.backend "cuda") (gt (int $pool.gpus) 0) -}}
{{- fail (printf "pools.%s.gpus: %d with backend %s; expected 0, or backend cuda" .name (int $pool.gpus) $pool.backend) -}}
{{- end -}}
{{- end -}}

{{/* How workers reach the coordinator. Workers that run cannot follow another one (OnDelete), so an
upgrade that changes it is refused while nothing has changed yet. */}}
{{- define "annulus.joinBy" -}}
tls={{ ne .Values.tls.mode "disabled" }},tokens={{ and .Values.auth.enabled (ne .Values.auth.workerToken.source "none") }},mtls={{ .Values.tls.requireClientCertificates }}
{{- end -}}
{{- define "annulus.checkChange" -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace (printf "%s-coordinator" (include "annulus.fullname" .)) -}}
{{- $was := get (((($running).metadata).annotations) | default dict) "annulus/join-by" -}}
{{- $is := include "annulus.joinBy" . -}}
{{- if and $was (ne $was $is) (not .Values.tls.allowChange) -}}
{{- fail (printf "tls.allowChange: false, and this upgrade changes how workers reach the coordinator from %s to %s: those that run cannot follow, and their KV is lost; expected the same, or tls.allowChange true and workers that are deleted afterwards" $was $is) -}}
{{- end -}}
{{- end -}}

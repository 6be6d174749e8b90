{{/* The program's options. Those that values stand for are set by the chart's own arguments, which win
over files and environment: to give them in another way would pass in silence, or end the program
("expected once"). tests/chart/render/test_options.py compares the names with the program's. */}}

{{/* Options by the value that sets them; "-" where the chart alone knows the right one. */}}
{{- define "annulus.setOptions" -}}
http-listen: "-"
metrics-listen: "-"
config: "-"
transports: network.transports
net-devices: network.devices
tcp-port-range: network.firstPort and network.lastPort
heartbeat-ms: network.heartbeatMs
heartbeat-timeout-ms: network.heartbeatTimeoutMs
tls-cert: tls.mode
tls-key: tls.mode
reload-s: tls.reloadSeconds
insecure: tls.mode and auth.enabled
log-level: OF.logLevel
{{- if eq . "coordinator" }}
listen: "-"
tls-client-ca: tls.requireClientCertificates
auth: auth.enabled
recovery-s: OF.recoverySeconds
in-flight-bytes-max: OF.inFlightBytes
request-bytes-max: OF.requestBytes
buffer-bytes-max: OF.bufferBytes
evict: OF.evict
data-hosts: OF.dataHosts
cluster: OF.cluster
{{- else }}
coordinator: "-"
name: "-"
data-listen: "-"
tls-ca: tls.mode
plain-data: tls.plainData
token-file: auth.workerToken
backend: OF.backend
kv-memory: OF.kvMemory
kv-bytes-limit: OF.kvBytes
upload-bytes-max: OF.uploadBytes
rejoin-s: OF.rejoinSeconds
drain-s: OF.drainSeconds
threads: OF.threads
{{- end }}
{{- end -}}

{{/* All others. */}}
{{- define "annulus.freeOptions" -}}
client-stall-max client-rate-min connections-max trace-out
{{- if eq . "coordinator" }} contexts-max layers-max in-flight-max list-cache-bytes audit-log reflection json
{{- else }} place tls-client-ca auth
{{- end }}
{{- end -}}

{{/* (dict "of" "pools.cpu" "command" "worker" "settings" {…}) */}}
{{- define "annulus.checkOptions" -}}
{{- $set := include "annulus.setOptions" .command | fromYaml -}}
{{- $free := include "annulus.freeOptions" .command | splitList " " -}}
{{- range $option, $_ := .settings.options -}}
{{- include "annulus.checkNotSet" (dict "path" (printf "%s.options.%s" $.of $option) "option" $option "of" $.of "set" $set) -}}
{{- if not (has $option $free) -}}
{{- fail (printf "%s.options.%s: no option of annulus %s; expected one of %s" $.of $option $.command (sortAlpha $free | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- range $i, $word := .settings.extraArgs -}}
{{- if hasPrefix "--" $word -}}
{{- $option := trimPrefix "--" $word | splitList "=" | first -}}
{{- include "annulus.checkNotSet" (dict "path" (printf "%s.extraArgs.%d: %s" $.of $i $word) "option" $option "of" $.of "set" $set) -}}
{{- if hasKey $.settings.options $option -}}
{{- fail (printf "%s.extraArgs.%d: %s; expected it there or as %s.options.%s, and not both" $.of $i $word $.of $option) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $i, $env := .settings.extraEnv -}}
{{- $path := printf "%s.extraEnv.%d.name: %s" $.of $i $env.name -}}
{{- if hasPrefix "ANNULUS_" $env.name -}}
{{- $option := trimPrefix "ANNULUS_" $env.name | lower | replace "_" "-" -}}
{{- include "annulus.checkNotSet" (dict "path" $path "option" $option "of" $.of "set" $set) -}}
{{- else if and (eq $.command "worker") (has $env.name (list "POD_NAME" "POD_IP")) -}}
{{- fail (printf "%s; expected another name: the chart sets it" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "annulus.checkNotSet" -}}
{{- with get .set .option -}}
{{- if eq . "-" -}}
{{- fail (printf "%s; expected none: the chart sets --%s itself" $.path $.option) -}}
{{- end -}}
{{- fail (printf "%s; expected the value %s in its place, by which the chart sets --%s" $.path (replace "OF" $.of .) $.option) -}}
{{- end -}}
{{- end -}}

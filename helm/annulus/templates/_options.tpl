{{/* The program's options. Those that values stand for are set by the chart's own arguments, which win
over files and environment: to give them in another way would pass in silence, or end the program
("expected once"). tests/chart/render/test_options.py compares the names with the program's. */}}

{{/* Options by the value that sets them; "-" where the chart alone knows the right one. */}}
{{- define "annulus.setOptions" -}}
http-listen: "-"
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

{{/* All others, by what they take: an integer from … to …, true or false (switch), or a file's path. */}}
{{- define "annulus.freeOptions" -}}
client-stall-max: [1, 3600]
client-rate-min: [1, 1099511627776]
connections-max: [1, 1048576]
trace-out: file
{{- if eq . "coordinator" }}
contexts-max: [1, 16777216]
layers-max: [1, 4294967296]
in-flight-max: [1, 10000]
list-cache-bytes: [0, 1125899906842624]
audit-log: file
reflection: switch
json: switch
{{- else }}
place: [0, 65536]
tls-client-ca: file
auth: file
{{- end }}
{{- end -}}

{{/* (dict "of" "pools.cpu" "command" "worker" "settings" {…}) */}}
{{- define "annulus.checkOptions" -}}
{{- $set := include "annulus.setOptions" .command | fromYaml -}}
{{- $free := include "annulus.freeOptions" .command | fromYaml -}}
{{- range $option, $value := .settings.options -}}
{{- $path := printf "%s.options.%s" $.of $option -}}
{{- include "annulus.checkNotSet" (dict "path" $path "option" $option "of" $.of "set" $set) -}}
{{- if not (hasKey $free $option) -}}
{{- fail (printf "%s: no option of annulus %s; expected one of %s" $path $.command (keys $free | sortAlpha | join ", ")) -}}
{{- end -}}
{{- include "annulus.checkForm" (dict "path" $path "form" (get $free $option) "value" $value) -}}
{{- end -}}
{{- include "annulus.checkArguments" (dict "of" .of "settings" .settings "set" $set "free" $free) -}}
{{- range $i, $env := .settings.extraEnv -}}
{{- $path := printf "%s.extraEnv.%d.name: %s" $.of $i $env.name -}}
{{- if hasPrefix "ANNULUS_" $env.name -}}
{{- $option := trimPrefix "ANNULUS_" $env.name | lower | replace "_" "-" -}}
{{- include "annulus.checkNotSet" (dict "path" $path "option" $option "of" $.of "set" $set) -}}
{{- if and (hasKey $free $option) $env.value -}}
{{- $path = printf "%s.extraEnv.%d.value" $.of $i -}}
{{- include "annulus.checkForm" (dict "path" $path "form" (get $free $option) "value" $env.value) -}}
{{- end -}}
{{- else if and (eq $.command "worker") (has $env.name (list "POD_NAME" "POD_IP")) -}}
{{- fail (printf "%s; expected another name: the chart sets it" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* extraArgs, as --name=value or in two words. Options that this chart does not know are left to the
program, which may be newer. */}}
{{- define "annulus.checkArguments" -}}
{{- $given := list -}}
{{- range $i, $word := .settings.extraArgs -}}
{{- if hasPrefix "--" $word -}}
{{- $option := trimPrefix "--" $word | splitList "=" | first -}}
{{- $path := printf "%s.extraArgs.%d: %s" $.of $i $word -}}
{{- include "annulus.checkNotSet" (dict "path" $path "option" $option "of" $.of "set" $.set) -}}
{{- if hasKey $.settings.options $option -}}
{{- fail (printf "%s; expected it there or as %s.options.%s, and not both" $path $.of $option) -}}
{{- end -}}
{{- if has $option $given -}}
{{- fail (printf "%s; expected it once" $path) -}}
{{- end -}}
{{- $given = append $given $option -}}
{{- with get $.free $option -}}
{{- $text := include "annulus.argument" (dict "words" $.settings.extraArgs "at" $i) -}}
{{- if and (kindIs "string" .) (eq . "switch") -}}
{{- if and (contains "=" $word) (not (regexMatch "^(true|false)$" $text)) -}}
{{- fail (printf "%s; expected true or false" $path) -}}
{{- end -}}
{{- else -}}
{{- include "annulus.checkForm" (dict "path" (printf "%s.extraArgs.%d: --%s" $.of $i $option) "form" . "value" $text) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The value of the option at a place of extraArgs, in its word or the next one. */}}
{{- define "annulus.argument" -}}
{{- $word := index .words .at -}}
{{- if contains "=" $word -}}
{{- regexReplaceAll "^[^=]*=" $word "" -}}
{{- else if lt (add1 .at) (len .words) -}}
{{- index .words (add1 .at | int) -}}
{{- end -}}
{{- end -}}

{{/* A value of `options` as its file has it: helm reads numbers as float64, which print as 1e+06. */}}
{{- define "annulus.optionText" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . | trim }}{{ end -}}
{{- end -}}

{{/* A number of the program (8G, 512K, 100), or -1 where that is none. */}}
{{- define "annulus.count" -}}
{{- $text := . -}}
{{- if regexMatch "^[0-9]+[KMG]?$" $text -}}
{{- $unit := regexFind "[KMG]$" $text -}}
{{- $units := dict "" 1.0 "K" 1024.0 "M" 1048576.0 "G" 1073741824.0 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) | printf "%.0f" -}}
{{- else -}}
-1
{{- end -}}
{{- end -}}

{{/* Refuses what the program would not take. (dict "path" "…" "form" [1, 3600] "value" "10") */}}
{{- define "annulus.checkForm" -}}
{{- $text := include "annulus.optionText" .value -}}
{{- if kindIs "slice" .form -}}
{{- $low := index .form 0 | float64 }}{{ $high := index .form 1 | float64 -}}
{{- $number := include "annulus.count" $text | float64 -}}
{{- if or (lt $number $low) (gt $number $high) -}}
{{- fail (printf "%s: %s; expected an integer from %.0f to %.0f (K, M, G: 2^10, 2^20, 2^30)" .path $text $low $high) -}}
{{- end -}}
{{- else if eq .form "switch" -}}
{{- if not (regexMatch "^(?i)(true|t|yes|y|1|false|f|no|n|0)$" $text) -}}
{{- fail (printf "%s: %s; expected true or false" .path $text) -}}
{{- end -}}
{{- else if not (and (kindIs "string" .value) (regexMatch "^(/|$)" $text)) -}}
{{- fail (printf "%s: %s; expected a file's path, which begins with /" .path $text) -}}
{{- end -}}
{{- end -}}

{{/* What an option that has no value of its own is given as, by the strongest of extraArgs, extraEnv
and options; empty where it is not. `alone` is what the option means without a value.
(dict "settings" {…} "option" "reflection" "alone" "true") */}}
{{- define "annulus.given" -}}
{{- $text := "" -}}
{{- if hasKey .settings.options .option }}{{ $text = get .settings.options .option | include "annulus.optionText" }}{{ end -}}
{{- range .settings.extraEnv -}}
{{- if eq .name ($.option | upper | replace "-" "_" | print "ANNULUS_") }}{{ $text = .value | default $text }}{{ end -}}
{{- end -}}
{{- range $i, $word := .settings.extraArgs -}}
{{- if eq $word (print "--" $.option) -}}
{{- $text = $.alone | default (include "annulus.argument" (dict "words" $.settings.extraArgs "at" $i)) -}}
{{- else if hasPrefix (printf "--%s=" $.option) $word -}}
{{- $text = trimPrefix (printf "--%s=" $.option) $word -}}
{{- end -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- define "annulus.checkNotSet" -}}
{{- with get .set .option -}}
{{- if eq . "-" -}}
{{- fail (printf "%s; expected none: the chart sets --%s itself" $.path $.option) -}}
{{- end -}}
{{- fail (printf "%s; expected the value %s in its place, by which the chart sets --%s" $.path (replace "OF" $.of .) $.option) -}}
{{- end -}}
{{- end -}}

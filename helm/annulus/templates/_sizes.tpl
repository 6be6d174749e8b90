{{/* A quantity of Kubernetes (1Gi, 500M, 1073741824) in bytes, exact where it is a whole number of them;
the most that 64 bits hold where it is more. The schema has seen that it is a quantity. */}}
{{- define "annulus.bytes" -}}
{{- $text := . | toString -}}
{{- if kindIs "float64" . }}{{ $text = printf "%.0f" . }}{{ end -}}
{{- $unit := regexFind "[a-zA-Z]*$" $text -}}
{{- $number := trimSuffix $unit $text -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000
  "E" 1000000000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776
  "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $bytes := divf (include "annulus.nano" $text | float64) 1e9 -}}
{{- if ge $bytes 9.2e18 -}}
9223372036854775807
{{- else if or (contains "." $number) (not (hasKey $units $unit)) -}}
{{- $bytes | int64 -}}
{{- else -}}
{{- mul (int64 $number) (get $units $unit) -}}
{{- end -}}
{{- end -}}

{{/* Sizes that become options of the program must be ones that it takes.
(dict "of" "pools.cpu" "settings" {…} "most" (dict "kvBytes" 9223372036854775806)) */}}
{{- define "annulus.checkSizes" -}}
{{- range $key, $most := .most -}}
{{- $size := get $.settings $key -}}
{{- if ne (toString $size) "" -}}
{{- $bytes := include "annulus.bytes" $size | int64 -}}
{{- if or (lt $bytes 1) (gt $bytes (int64 $most)) -}}
{{- fail (printf "%s.%s: %v; expected 1 to %d bytes, as 512Mi or 2Gi" $.of $key $size (int64 $most)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (dict "under" {…} "over" {…}): maps merge, all else is replaced, by false and 0 too (which
mergeOverwrite leaves), and null takes a key away. */}}
{{- define "annulus.merged" -}}
{{- $both := .under -}}
{{- range $key, $value := .over -}}
{{- $under := get $both $key -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $both $key -}}
{{- else if and (kindIs "map" $value) (kindIs "map" $under) -}}
{{- $_ := set $both $key (include "annulus.merged" (dict "under" $under "over" $value) | fromYaml) -}}
{{- else -}}
{{- $_ := set $both $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $both -}}
{{- end -}}

{{/* The settings of one pool: its own over those of `worker`. (dict "root" $ "name" "cpu") */}}
{{- define "annulus.pool" -}}
{{- $own := get .root.Values.pools .name | default dict -}}
{{- $pool := include "annulus.merged" (dict "under" (deepCopy .root.Values.worker) "over" $own) | fromYaml -}}
{{- $image := dict "under" .root.Values.image "over" .root.Values.worker.image -}}
{{- $image = dict "under" (include "annulus.imageOver" $image | fromYaml) "over" $own.image -}}
{{- set $pool "image" (include "annulus.imageOver" $image | fromYaml) | toYaml -}}
{{- end -}}

{{/* Whether a pool's KV takes the pod's memory, "true" or "". */}}
{{- define "annulus.kvInMemory" -}}
{{- if or (ne .backend "cuda") (eq .kvMemory "host") }}true{{ end -}}
{{- end -}}

{{/* What a worker needs of the pod's memory: KV, tables of an eighth, freed memory that is kept (an
eighth of KV, from 128Mi to 1Gi), uploads, /dev/shm, and 256Mi for the program. */}}
{{- define "annulus.workerMemory" -}}
{{- $kv := include "annulus.bytes" .kvBytes | int64 -}}
{{- $kept := min (max (div $kv 8) 134217728) 1073741824 -}}
{{- $all := add $kept (include "annulus.bytes" .uploadBytes | int64) 268435456 -}}
{{- with .shmSize }}{{ $all = add $all (include "annulus.bytes" . | int64) }}{{ end -}}
{{- if include "annulus.kvInMemory" . }}{{ $all = add $all $kv (div $kv 8) }}{{ end -}}
{{- $all -}}
{{- end -}}

{{/* Seconds that a worker takes to hand over all that it may hold, and the pod's grace. */}}
{{- define "annulus.drainSeconds" -}}
{{- if ge (int .drainSeconds) 0 -}}
{{- int .drainSeconds -}}
{{- else -}}
{{- min (add 25 (div (include "annulus.bytes" .kvBytes | int64) (max 1 (include "annulus.bytes" .drainRate | int64)))) 86400 -}}
{{- end -}}
{{- end -}}

{{/* What a container's cpu is read from for --threads: limits.cpu, requests.cpu or nothing. */}}
{{- define "annulus.cpuOf" -}}
{{- if ((.resources).limits).cpu }}limits.cpu{{ else if ((.resources).requests).cpu }}requests.cpu{{ end -}}
{{- end -}}

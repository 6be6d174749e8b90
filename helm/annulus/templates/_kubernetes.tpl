{{/* Refuses what Kubernetes and its operators would refuse, or pass over, once it is rendered. */}}
{{- define "annulus.checkKubernetes" -}}
{{- include "annulus.checkName" . -}}
{{- include "annulus.checkService" .Values.service -}}
{{- include "annulus.checkPod" (dict "of" "coordinator" "settings" .Values.coordinator) -}}
{{- range $name, $_ := .Values.pools -}}
{{- $pool := include "annulus.pool" (dict "root" $ "name" $name) | fromYaml -}}
{{- include "annulus.checkPod" (dict "of" (printf "pools.%s" $name) "settings" $pool) -}}
{{- end -}}
{{- with .Values.tls.certManager -}}
{{- if eq $.Values.tls.mode "cert-manager" -}}
{{- if lt (include "annulus.seconds" .duration | int) 3600 -}}
{{- fail (printf "tls.certManager.duration: %s; expected at least 1h" .duration) -}}
{{- end -}}
{{- if lt (include "annulus.seconds" .renewBefore | int) 300 -}}
{{- fail (printf "tls.certManager.renewBefore: %s; expected at least 5m" .renewBefore) -}}
{{- end -}}
{{- if le (include "annulus.seconds" .duration | int) (include "annulus.seconds" .renewBefore | int) -}}
{{- fail (printf "tls.certManager.duration: %s; expected more than tls.certManager.renewBefore, %s" .duration .renewBefore) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.monitoring.serviceMonitor -}}
{{- if and .enabled (lt (include "annulus.seconds" .interval | int) (include "annulus.seconds" .scrapeTimeout | int)) -}}
{{- fail (printf "monitoring.serviceMonitor.scrapeTimeout: %s; expected at most monitoring.serviceMonitor.interval, %s" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Services are named by DNS-1035 labels. */}}
{{- define "annulus.checkName" -}}
{{- $name := include "annulus.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "fullnameOverride: %q, and the release %q makes the name %q; expected a name of a to z, 0 to 9 and -, which begins with a letter" .Values.fullnameOverride .Release.Name $name) -}}
{{- end -}}
{{- end -}}

{{- define "annulus.checkService" -}}
{{- $only := dict
  "nodePort" (list "NodePort" "LoadBalancer")
  "externalTrafficPolicy" (list "NodePort" "LoadBalancer")
  "loadBalancerClass" (list "LoadBalancer")
  "loadBalancerSourceRanges" (list "LoadBalancer") -}}
{{- range $key, $types := $only -}}
{{- $value := index $ $key -}}
{{- if and $value (not (has $.type $types)) -}}
{{- fail (printf "service.%s: %v with service.type %s; expected none, or service.type %s" $key $value $.type (join " or " $types)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (dict "of" "pools.cpu" "settings" {…}) */}}
{{- define "annulus.checkPod" -}}
{{- if and (eq .settings.dnsPolicy "None") (not .settings.dnsConfig.nameservers) -}}
{{- fail (printf "%s.dnsConfig.nameservers: empty; expected some, for dnsPolicy None" .of) -}}
{{- end -}}
{{- range $i, $env := .settings.extraEnv -}}
{{- if and $env.value $env.valueFrom -}}
{{- fail (printf "%s.extraEnv.%d.valueFrom: given with value; expected one of them" $.of $i) -}}
{{- end -}}
{{- end -}}
{{- include "annulus.checkOwn" . -}}
{{- $limits := .settings.resources.limits | default dict -}}
{{- range $name, $request := .settings.resources.requests -}}
{{- $limit := get $limits $name -}}
{{- if and $limit $request (lt (include "annulus.nano" $limit | float64) (include "annulus.nano" $request | float64)) -}}
{{- fail (printf "%s.resources.requests.%s: %v; expected at most its limit, %v" $.of $name $request $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Volumes, containers and mounts beside those that the chart makes. */}}
{{- define "annulus.checkOwn" -}}
{{- $volumes := list "config" "tls" "auth" "token" "shm" -}}
{{- range $i, $volume := .settings.extraVolumes -}}
{{- include "annulus.checkNew" (dict "path" (printf "%s.extraVolumes.%d.name" $.of $i) "name" $volume.name "taken" $volumes) -}}
{{- $volumes = append $volumes $volume.name -}}
{{- end -}}
{{- $containers := list "coordinator" "worker" -}}
{{- range $key := list "extraContainers" "initContainers" -}}
{{- range $i, $container := get $.settings $key -}}
{{- include "annulus.checkNew" (dict "path" (printf "%s.%s.%d.name" $.of $key $i) "name" $container.name "taken" $containers) -}}
{{- $containers = append $containers $container.name -}}
{{- end -}}
{{- end -}}
{{- $paths := list "/etc/annulus" "/etc/annulus/config" "/etc/annulus/tls" "/etc/annulus/auth" "/etc/annulus/token" -}}
{{- with .settings.shmSize }}{{ $paths = append $paths "/dev/shm" }}{{ end -}}
{{- range $i, $mount := .settings.extraVolumeMounts -}}
{{- $path := printf "%s.extraVolumeMounts.%d" $.of $i -}}
{{- include "annulus.checkNew" (dict "path" (printf "%s.mountPath" $path) "name" (clean $mount.mountPath) "taken" $paths) -}}
{{- $paths = append $paths (clean $mount.mountPath) -}}
{{- if not (has $mount.name $volumes) -}}
{{- fail (printf "%s.name: %s; expected a volume of %s.extraVolumes" $path $mount.name $.of) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- define "annulus.checkNew" -}}
{{- if has .name .taken -}}
{{- fail (printf "%s: %s; expected another: the chart, or one before it, has that" .path .name) -}}
{{- end -}}
{{- end -}}

{{/* A quantity (500m, 2Gi, 4) in billionths. */}}
{{- define "annulus.nano" -}}
{{- $text := . | toString -}}
{{- $unit := regexFind "[a-zA-Z]*$" $text -}}
{{- $units := dict "n" 1e0 "u" 1e3 "m" 1e6 "" 1e9 "k" 1e12 "M" 1e15 "G" 1e18 "T" 1e21 "P" 1e24 "E" 1e27
  "Ki" 1.024e12 "Mi" 1.048576e15 "Gi" 1.073741824e18 "Ti" 1.099511627776e21
  "Pi" 1.125899906842624e24 "Ei" 1.152921504606846976e27 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) -}}
{{- end -}}

{{/* A duration (1h30m) in seconds. */}}
{{- define "annulus.seconds" -}}
{{- $all := 0 -}}
{{- range $unit, $seconds := dict "h" 3600 "m" 60 "s" 1 -}}
{{- with regexFind (printf "[0-9]+%s" $unit) $ -}}
{{- $all = add $all (mul (trimSuffix $unit . | int) $seconds) -}}
{{- end -}}
{{- end -}}
{{- $all -}}
{{- end -}}

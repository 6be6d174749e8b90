{{/* Refuses what Kubernetes and its operators would refuse, or pass over, once it is rendered. */}}
{{- define "annulus.checkKubernetes" -}}
{{- include "annulus.checkName" . -}}
{{- include "annulus.checkService" .Values.service -}}
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

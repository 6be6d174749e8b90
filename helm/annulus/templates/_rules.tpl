{{/* The alerts of files/rules.yaml as this release's own. */}}

{{/* Labels of the release's series, as in a selector of PromQL: job="r",namespace="kv". */}}
{{- define "annulus.seriesOf" -}}
{{- $given := .Values.monitoring.rules.selector -}}
{{- $pairs := list -}}
{{- range $label, $value := $given | default (dict "namespace" .Release.Namespace "job" .Release.Name) -}}
{{- $pairs = append $pairs (printf "%s=%s" $label (toJson $value)) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Thresholds that follow from values: what the file has, and what this release has in its place. */}}
{{- define "annulus.thresholds" -}}
{{- $beat := mulf .Values.network.heartbeatMs 1.5 -}}
{{- $silent := divf .Values.network.heartbeatTimeoutMs 2 -}}
{{- $days := 7 }}{{ $ends := mul $days 86400 -}}
{{- if eq .Values.tls.mode "cert-manager" -}}
{{- $ends = min $ends (div (include "annulus.seconds" .Values.tls.certManager.renewBefore | int64) 2) -}}
{{- end -}}
AnnulusHeartbeatOld: {is: "> 0.5", becomes: "> {{ divf (maxf $beat $silent) 1000 }}"}
AnnulusRecoveryTooLong: {is: "> 5", becomes: "> {{ divf .Values.coordinator.recoverySeconds 2 }}"}
AnnulusCertificateExpires: {is: "< 7 * 86400", becomes: "< {{ $ends }}", for: "{{ min 600 (div $ends 4) }}s"}
{{- end -}}

{{/* Every metric of an expression with the release's labels: (dict "expr" "…" "series" "…") */}}
{{- define "annulus.ofRelease" -}}
{{- $expr := regexReplaceAll `(annulus_\w+)\{` .expr "${1}{SERIES," -}}
{{- $expr = regexReplaceAll `(annulus_\w+)([^\w{]|$)` $expr "${1}{SERIES}${2}" -}}
{{- replace "SERIES" .series $expr -}}
{{- end -}}

{{- define "annulus.rules" -}}
{{- $file := .Files.Get "files/rules.yaml" | fromYaml -}}
{{- $series := include "annulus.seriesOf" . -}}
{{- $thresholds := include "annulus.thresholds" . | fromYaml -}}
{{- range $group := $file.groups -}}
{{- range $rule := .rules -}}
{{- with get $thresholds $rule.alert -}}
{{- if ne (len (splitList .is $rule.expr)) 2 -}}
{{- fail (printf "files/rules.yaml: the expression of %s; expected one %s in it" $rule.alert .is) -}}
{{- end -}}
{{- $_ := set $rule "expr" (replace .is .becomes $rule.expr) -}}
{{- with .for }}{{ $_ := set $rule "for" . }}{{ end -}}
{{- end -}}
{{- $_ := set $rule "expr" (include "annulus.ofRelease" (dict "expr" $rule.expr "series" $series)) -}}
{{- with $.Values.monitoring.rules.runbookUrl -}}
{{- $url := $rule.annotations.runbook_url | replace "docs/pages" (trimSuffix "/" .) -}}
{{- $_ := set $rule.annotations "runbook_url" $url -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $file -}}
{{- end -}}

{{/* Values that are left blank (null), or that `helm --reuse-values` does not know yet, count as their
defaults. Helm renders templates in no order of ours, so each begins with this. */}}
{{- define "annulus.defaults" -}}
{{- $values := .Values -}}
{{- range $path, $default := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- $keys := splitList "." $path -}}
{{- $at := $values -}}
{{- range $key := initial $keys -}}
{{- if kindIs "invalid" (index $at $key) }}{{ $_ := set $at $key dict }}{{ end -}}
{{- $at = index $at $key -}}
{{- end -}}
{{- if kindIs "invalid" (index $at (last $keys)) -}}
{{- $_ := set $at (last $keys) $default -}}
{{- end -}}
{{- end -}}
{{- end -}}

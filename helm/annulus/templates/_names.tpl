{{/* Names and labels. What users, releases and pools are called is quoted wherever it is rendered: to YAML
on, 1e3 and 123 are no text. Names leave room for what Kubernetes adds: a StatefulSet's has 52 characters
at most, a pool's 20. A longer name ends in a hash of the whole, so that names which differ at their
end alone stay apart. */}}
{{- define "annulus.cut" -}}
{{- if le (len .) 31 -}}
{{- . -}}
{{- else -}}
{{- printf "%s-%s" (trunc 22 . | trimAll "-.") (sha256sum . | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- define "annulus.name" -}}
{{- include "annulus.cut" (default .Chart.Name .Values.nameOverride) -}}
{{- end -}}

{{- define "annulus.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- include "annulus.cut" .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- include "annulus.cut" .Release.Name -}}
{{- else -}}
{{- include "annulus.cut" (printf "%s-%s" .Release.Name $name) -}}
{{- end -}}
{{- end -}}

{{- define "annulus.selector" -}}
app.kubernetes.io/name: {{ include "annulus.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* All labels of an object or a pod: the chart's own win over others.
(dict "root" $ "component" "worker" "labels" {…}) */}}
{{- define "annulus.labels" -}}
{{- $own := include "annulus.selector" .root | fromYaml -}}
{{- with .component }}{{ $_ := set $own "app.kubernetes.io/component" . }}{{ end -}}
{{- merge $own .labels .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* metadata: (dict "root" $ "suffix" "-internal" "component" "coordinator" "labels" {} "annotations" {}) */}}
{{- define "annulus.metadata" -}}
{{- $root := .root -}}
name: {{ print (include "annulus.fullname" $root) .suffix | quote }}
namespace: {{ $root.Release.Namespace | quote }}
{{- $about := dict
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
labels:
  {{- include "annulus.labels" (dict "root" $root "component" .component "labels" (merge $about (.labels | default dict))) | nindent 2 }}
{{- with merge dict (.annotations | default dict) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "annulus.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "annulus.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image's settings over those that it inherits. A digest is of one image: who names another
tag or repository does not inherit it. (dict "under" {…} "over" {…}) */}}
{{- define "annulus.imageOver" -}}
{{- $over := .over | default dict -}}
{{- $under := .under -}}
{{- if or $over.tag $over.repository -}}
{{- $under = omit $under "digest" -}}
{{- end -}}
{{- merge dict $over $under | toYaml -}}
{{- end -}}

{{/* image: (dict "root" $ "image" {…}) with all keys of .Values.image */}}
{{- define "annulus.image" -}}
{{- $registry := .image.registry | default ((.root.Values.global | default dict).imageRegistry) -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "annulus.pullSecrets" -}}
{{- with concat .Values.imagePullSecrets ((.Values.global | default dict).imagePullSecrets | default list) }}
{{- $secrets := list }}
{{- range . }}{{ $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) }}{{ end }}
imagePullSecrets:
  {{- toYaml $secrets | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Hosts: where workers find the coordinator, and what a pool's pods are called by. */}}
{{- define "annulus.domain" -}}
{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}
{{- define "annulus.internalHost" -}}
{{ include "annulus.fullname" . }}-internal.{{ include "annulus.domain" . }}
{{- end -}}
{{- define "annulus.workersHost" -}}
{{ include "annulus.fullname" . }}-workers.{{ include "annulus.domain" . }}
{{- end -}}
{{- define "annulus.anyAddress" -}}
{{ if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}
{{- end -}}
{{/* Of a cluster with both families whose first is IPv4, Services would find no pod by IPv6. */}}
{{- define "annulus.ipFamilies" -}}
{{- if eq .Values.ipFamily "IPv6" -}}
ipFamilies: [IPv6]
{{- end -}}
{{- end -}}

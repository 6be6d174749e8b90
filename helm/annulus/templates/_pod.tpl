{{/* What pods of coordinator and workers share. */}}

{{/* The pod's settings that users choose: (dict "root" $ "of" <coordinator or pool>) */}}
{{- define "annulus.podSettings" -}}
serviceAccountName: {{ include "annulus.serviceAccount" .root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "annulus.pullSecrets" .root }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" "schedulerName" "dnsPolicy" }}
{{- with get $.of $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .of.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container's settings that users choose, after its own env and volumeMounts. */}}
{{- define "annulus.containerSettings" -}}
{{- with .root.Values.containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- define "annulus.probes" -}}
{{- range $name, $page := dict "startup" "startupz" "liveness" "livez" "readiness" "readyz" }}
{{- with get $.Values.probes $name }}
{{ $name }}Probe:
  httpGet: {path: /{{ $page }}, port: http}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Files of --config. */}}
{{- define "annulus.optionsFile" -}}
# key = value, as the options of the command are called
{{- range $key, $value := . }}
{{ $key }} = {{ include "annulus.optionText" $value }}
{{- end }}
{{- end -}}
{{- define "annulus.coordinatorConfig" -}}
{{- $files := dict "coordinator.conf" (include "annulus.optionsFile" .Values.coordinator.options) -}}
{{- if contains "{" .Values.coordinator.cluster -}}
{{- $_ := set $files "cluster.json" .Values.coordinator.cluster -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- define "annulus.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "cert-manager" -}}
{{ include "annulus.fullname" .root }}-{{ .of }}-tls
{{- else if eq .of "worker" -}}
{{ .root.Values.tls.workerSecret | default .root.Values.tls.coordinatorSecret }}
{{- else -}}
{{ .root.Values.tls.coordinatorSecret }}
{{- end -}}
{{- end -}}

{{/* Volumes of certificates; Secrets are readable by the pod's group alone. */}}
{{- define "annulus.tlsVolume" -}}
{{- if ne .root.Values.tls.mode "disabled" }}
- name: tls
  secret:
    secretName: {{ include "annulus.tlsSecret" . | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}
{{- define "annulus.tlsMount" -}}
{{- if ne .Values.tls.mode "disabled" }}
- {name: tls, mountPath: /etc/annulus/tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* Options that both processes have. */}}
{{- define "annulus.sharedArgs" -}}
- --http-listen={{ include "annulus.anyAddress" . }}:7071
- {{ printf "--transports=%s" .Values.network.transports | quote }}
{{- with .Values.network.devices }}
- {{ printf "--net-devices=%s" . | quote }}
{{- end }}
- --tcp-port-range={{ .Values.network.firstPort }}-{{ .Values.network.lastPort }}
- --heartbeat-ms={{ int .Values.network.heartbeatMs }}
- --heartbeat-timeout-ms={{ int .Values.network.heartbeatTimeoutMs }}
{{- if ne .Values.tls.mode "disabled" }}
- --tls-cert=/etc/annulus/tls/tls.crt
- --tls-key=/etc/annulus/tls/tls.key
- --reload-s={{ .Values.tls.reloadSeconds }}
{{- end }}
{{- end -}}

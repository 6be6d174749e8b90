{{/* The parts of a worker's container: (dict "root" $ "name" "cpu" "pool" {…} "drain" 41) */}}
{{- define "annulus.workerArgs" -}}
{{- $v := .root.Values -}}
{{- $pool := .pool -}}
{{- $tls := ne $v.tls.mode "disabled" -}}
{{- $own := "$(POD_IP)" -}}
{{- if $tls }}{{ $own = printf "$(POD_NAME).%s" (include "annulus.workersHost" .root) }}
{{- else if eq $v.ipFamily "IPv6" }}{{ $own = "[$(POD_IP)]" }}{{ end -}}
args:
  - worker
  - {{ printf "--coordinator=%s:7070" (include "annulus.internalHost" .root) | quote }}
  - --name=$(POD_NAME)
  - {{ printf "--data-listen=%s:7072" $own | quote }}
  {{- include "annulus.sharedArgs" .root | nindent 2 }}
  {{- if $tls }}
  - --tls-ca=/etc/annulus/tls/ca.crt
  {{- if $v.tls.plainData }}
  - --plain-data
  {{- end }}
  {{- if and $v.auth.enabled (ne $v.auth.workerToken.source "none") }}
  - --token-file=/etc/annulus/token/token
  {{- end }}
  {{- else }}
  - --insecure
  {{- end }}
  - --log-level={{ $pool.logLevel }}
  - --backend={{ $pool.backend }}
  - --kv-memory={{ $pool.kvMemory }}
  - --kv-bytes-limit={{ include "annulus.bytes" $pool.kvBytes }}
  - --upload-bytes-max={{ include "annulus.bytes" $pool.uploadBytes }}
  - --rejoin-s={{ $pool.rejoinSeconds }}
  - --drain-s={{ .drain }}
  {{- if $pool.threads }}
  - --threads={{ $pool.threads }}
  {{- end }}
  {{- if $pool.options }}
  - {{ printf "--config=/etc/annulus/config/worker-%s.conf" .name | quote }}
  {{- end }}
  {{- with $pool.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "annulus.workerEnv" -}}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  {{- if not .threads }}
  {{- with include "annulus.cpuOf" . }}
  # The program would count the node's cores.
  - name: ANNULUS_THREADS
    valueFrom: {resourceFieldRef: {resource: {{ . }}, divisor: "1"}}
  {{- end }}
  {{- end }}
  {{- with .extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "annulus.workerResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and (eq .backend "cuda") (gt (int .gpus) 0) -}}
{{- $limits := merge (dict .gpuResource (int .gpus)) ($resources.limits | default dict) -}}
{{- $resources = set $resources "limits" $limits -}}
{{- end -}}
{{- with .resourceClaims -}}
{{- $claims := list -}}
{{- range . }}{{ $claims = append $claims (dict "name" .name) }}{{ end -}}
{{- $resources = set $resources "claims" $claims -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "annulus.workerMounts" -}}
{{- if .pool.options }}
- {name: config, mountPath: /etc/annulus/config, readOnly: true}
{{- end }}
{{- include "annulus.tlsMount" .root }}
{{- if include "annulus.workerToken" .root }}
- {name: token, mountPath: /etc/annulus/token, readOnly: true}
{{- end }}
{{- if .pool.shmSize }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- with .pool.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "annulus.workerToken" -}}
{{- if and .Values.auth.enabled (ne .Values.auth.workerToken.source "none") }}true{{ end -}}
{{- end -}}

{{- define "annulus.workerVolumes" -}}
{{- if .pool.options }}
- name: config
  configMap: {name: {{ include "annulus.fullname" .root | quote }}}
{{- end }}
{{- include "annulus.tlsVolume" (dict "root" .root "of" "worker") }}
{{- if include "annulus.workerToken" .root }}
{{- $token := .root.Values.auth.workerToken }}
- name: token
  {{- if eq $token.source "projected" }}
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ $token.audience | quote }}
          expirationSeconds: {{ int64 $token.expirationSeconds }}
  {{- else }}
  secret:
    secretName: {{ $token.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ $token.key | quote }}, path: token}]
  {{- end }}
{{- end }}
{{- with .pool.shmSize }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . | quote }}}
{{- end }}
{{- with .pool.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Refuses TLS and tokens that contradict one another. What auth.json may hold is in the schema; here is
what it says of its entries together, and of them and the workers. */}}
{{- define "annulus.checkTls" -}}
{{- if and (eq .mode "secret") (not .coordinatorSecret) -}}
{{- fail "tls.coordinatorSecret: empty; expected the name of a Secret with tls.crt, tls.key and ca.crt, for tls.mode secret" -}}
{{- end -}}
{{- if and (eq .mode "cert-manager") (not .certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: empty; expected an issuer's, for tls.mode cert-manager" -}}
{{- end -}}
{{- if eq .mode "disabled" -}}
{{- range $key := list "coordinatorSecret" "workerSecret" -}}
{{- with get $ $key -}}
{{- fail (printf "tls.%s: %s with tls.mode disabled; expected none, or tls.mode secret" $key .) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "requireClientCertificates" "plainData" -}}
{{- if get $ $key -}}
{{- fail (printf "tls.%s: true with tls.mode disabled; expected secret or cert-manager" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "annulus.checkAuth" -}}
{{- $auth := .Values.auth -}}
{{- if not $auth.enabled -}}
{{- range $key := list "existingSecret" "config" "jwks" -}}
{{- if get $auth $key -}}
{{- fail (printf "auth.%s: given with auth.enabled false; expected none, or auth.enabled true" $key) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if eq .Values.tls.mode "disabled" -}}
{{- fail "auth.enabled: true with tls.mode disabled; expected secret or cert-manager, since tokens are not told in plain text" -}}
{{- end -}}
{{- if and (not $auth.existingSecret) (not $auth.config) -}}
{{- fail "auth.existingSecret: empty, and auth.config too; expected one of them, for auth.enabled" -}}
{{- end -}}
{{- if and $auth.existingSecret (or $auth.config $auth.jwks) -}}
{{- fail "auth.config: given with auth.existingSecret; expected one of them" -}}
{{- end -}}
{{- with $auth.config -}}
{{- include "annulus.checkAuthConfig" $auth -}}
{{- end -}}
{{- include "annulus.checkWorkerToken" . -}}
{{- end -}}
{{- end -}}

{{- define "annulus.checkAuthConfig" -}}
{{- $config := .config -}}
{{- if not (or $config.tokens $config.certificates $config.jwt) -}}
{{- fail "auth.config: nobody is known; expected tokens, certificates or jwt" -}}
{{- end -}}
{{- range $list, $key := dict "tokens" "sha256" "certificates" "name" -}}
{{- $seen := list -}}
{{- range $i, $entry := get $config $list | default list -}}
{{- $own := get $entry $key -}}
{{- if eq $key "sha256" }}{{ $own = lower $own }}{{ end -}}
{{- if has $own $seen -}}
{{- fail (printf "auth.config.%s.%d.%s: %s; expected one that no other has" $list $i $key $own) -}}
{{- end -}}
{{- $seen = append $seen $own -}}
{{- if and (eq $entry.role "tenant") (not $entry.tenant) -}}
{{- fail (printf "auth.config.%s.%d.tenant: none; expected a name, since the role is tenant" $list $i) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $config.jwt -}}
{{- if or (ne .jwks "jwks.json") (not $.jwks) -}}
{{- fail (printf "auth.config.jwt.jwks: %q with auth.jwks %s; expected jwks.json, and its content as auth.jwks" .jwks (ternary "given" "empty" (ne $.jwks ""))) -}}
{{- end -}}
{{- range $name, $rule := .claims -}}
{{- if and (kindIs "map" $rule) (not $rule.claim) (or $rule.map (not $rule.default)) -}}
{{- fail (printf "auth.config.jwt.claims.%s.claim: none; expected a claim's name, or only a default" $name) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if .jwks -}}
{{- fail "auth.jwks: given without auth.config.jwt; expected both" -}}
{{- end -}}
{{- end -}}
{{- with .jwks -}}
{{- with (fromJson .).Error -}}
{{- fail (printf "auth.jwks: %s; expected JSON with keys" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether any worker can join by it. Of an existing Secret nothing is known. */}}
{{- define "annulus.checkWorkerToken" -}}
{{- $auth := .Values.auth -}}
{{- $token := $auth.workerToken -}}
{{- if eq $token.source "secret" -}}
{{- if not $token.existingSecret -}}
{{- fail "auth.workerToken.existingSecret: empty; expected the name of a Secret with the workers' token, or another auth.workerToken.source" -}}
{{- end -}}
{{- else if eq $token.source "none" -}}
{{- if not .Values.tls.requireClientCertificates -}}
{{- fail "auth.workerToken.source: none with tls.requireClientCertificates false, so that no worker can join; expected secret or projected, or certificates of workers" -}}
{{- end -}}
{{- else if and $auth.config (not $auth.config.jwt) -}}
{{- fail "auth.workerToken.source: projected without auth.config.jwt, so that no worker can join; expected jwt, or another source" -}}
{{- else if $auth.config -}}
{{- if ne $auth.config.jwt.audience $token.audience -}}
{{- fail (printf "auth.config.jwt.audience: %q; expected auth.workerToken.audience, %q" $auth.config.jwt.audience $token.audience) -}}
{{- end -}}
{{- end -}}
{{- with $auth.config -}}
{{- $jwt := include "annulus.jwtJoins" . -}}
{{- if and (eq $token.source "secret") (not $jwt) (not (include "annulus.someJoins" .tokens)) -}}
{{- fail "auth.config.tokens: none of role worker, so that no worker can join; expected the SHA-256 of the token in auth.workerToken.existingSecret, with role worker" -}}
{{- else if and (eq $token.source "none") (not (include "annulus.someJoins" .certificates)) -}}
{{- fail "auth.config.certificates: none of role worker, so that no worker can join; expected names of the workers' certificates, with role worker" -}}
{{- else if and (eq $token.source "projected") (not $jwt) -}}
{{- fail "auth.config.jwt.claims.role: makes nobody a worker, so that none can join; expected a claim, or a map or default with role worker" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether one of these has a role that may join (runtime/identity/caller.h), "true" or "". */}}
{{- define "annulus.someJoins" -}}
{{- range . }}{{ if has .role (list "worker" "admin") }}true{{ end }}{{ end -}}
{{- end -}}

{{/* Whether signed tokens may have such a role: the claim's text where there is no map, and never
without a rule. */}}
{{- define "annulus.jwtJoins" -}}
{{- with ((.jwt).claims).role -}}
{{- if or (kindIs "string" .) (and .claim (not .map)) }}true
{{- else }}{{ range append (values (.map | default dict)) .default }}{{ if has . (list "worker" "admin") }}true{{ end }}{{ end }}
{{- end -}}
{{- end -}}
{{- end -}}

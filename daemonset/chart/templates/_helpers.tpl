{{- define "nodeproxy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "nodeproxy.pull" -}}
image: {{ include "nodeproxy.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* The agents' account and label: istiod and istioctl know ztunnel's. */}}
{{- define "nodeproxy.agent" -}}
{{ if eq .Values.controlPlane "istiod" }}ztunnel{{ else }}nodeproxy{{ end }}
{{- end }}

{{- define "nodeproxy.cni" -}}
{{ if and .Values.cni.enabled (eq .Values.controlPlane "controller") }}true{{ end }}
{{- end }}

{{- define "nodeproxy.check" -}}
{{- if not (has .Values.controlPlane (list "controller" "istiod" "file")) }}
{{- fail (printf "controlPlane: %q is none of controller, istiod and file" .Values.controlPlane) }}
{{- end }}
{{- end }}

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

{{- /* What config.yaml and the pods' environment set stands there once, or the program refuses to start. */}}
{{- define "nodeproxy.check" -}}
{{- $own := dict
  "agent" (list "source" "mesh" "ca" "xds-address" "enrolment" "cluster-id" "cluster-domain" "trust-domain" "network" "cgroup-root"
    "grace-s" "takeover" "wait-after-handover" "cni-conf-dir" "cni-bin-dir" "run-dir")
  "controller" (list "cluster-id" "cluster-domain" "trust-domain" "network" "node-accounts") }}
{{- range $who, $names := $own }}
{{- range $name, $_ := (get $.Values $who).settings }}
{{- if has $name $names }}
{{- fail (printf "%s.settings.%s: the chart sets this itself, by its other values (helm show values)" $who $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* JSON, for a number above a million would become 1e+06 by `quote`. */}}
{{- define "nodeproxy.settings" -}}
{{- range $name, $value := . }}
    {{ $name }}: {{ toJson $value }}
{{- end }}
{{- end }}

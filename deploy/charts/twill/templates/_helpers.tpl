{{/* Metadata of an object: the labels that flannel's objects have, and the user's. */}}
{{- define "twill.labels" -}}
{{- toYaml (merge (dict "app" "flannel" "k8s-app" "flannel" "tier" "node") .Values.labels) -}}
{{- end }}

{{- define "twill.annotations" -}}
{{- with .Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Options of the backend. A value of zero is left to the daemon. */}}
{{- define "twill.backend" -}}
{{- $f := .Values.flannel -}}
{{- $b := dict "Type" $f.backend -}}
{{- if $f.backendPort }}{{ $_ := set $b "Port" (int $f.backendPort) }}{{ end -}}
{{- if has $f.backend (list "auto" "vxlan") -}}
{{- if $f.vni }}{{ $_ := set $b "VNI" (int $f.vni) }}{{ end -}}
{{- if $f.mtu }}{{ $_ := set $b "MTU" (int $f.mtu) }}{{ end -}}
{{- if $f.GBP }}{{ $_ := set $b "GBP" true }}{{ end -}}
{{- if $f.directRouting }}{{ $_ := set $b "DirectRouting" true }}{{ end -}}
{{- end -}}
{{- toJson $b -}}
{{- end }}

{{- define "twill.netConf" -}}
{{- $c := dict "Backend" (include "twill.backend" . | fromJson) -}}
{{- if .Values.podCidr }}{{ $_ := set $c "Network" .Values.podCidr }}{{ else }}{{ $_ := set $c "EnableIPv4" false }}{{ end -}}
{{- if .Values.podCidrv6 }}{{ $_ := set $c "IPv6Network" .Values.podCidrv6 }}{{ $_ := set $c "EnableIPv6" true }}{{ end -}}
{{- if .Values.flannel.enableNFTables }}{{ $_ := set $c "EnableNFTables" true }}{{ end -}}
{{- toPrettyJson $c -}}
{{- end }}

{{- define "twill.image" -}}
{{ .Values.flannel.image.repository }}:{{ .Values.flannel.image.tag }}
{{- end }}

{{- define "twill.pluginImage" -}}
{{ .Values.flannel.flannel_cni.image.repository }}:{{ .Values.flannel.flannel_cni.image.tag }}
{{- end }}

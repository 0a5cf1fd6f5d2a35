{{/* Labels of every object. */}}
{{- define "parts.labels" -}}
app.kubernetes.io/part-of: marketdata
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
An account whose pods get no token of the API server. Takes: root, namespace, name.
*/}}
{{- define "parts.account" }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

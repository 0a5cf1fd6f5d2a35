{{/*
A namespace that only hardened pods get into. It is kept when the chart is removed: what is in it is not ours to delete.
Takes: root, name, labels, annotations.
*/}}
{{- define "platform.namespace" }}
---
apiVersion: v1
kind: Namespace
metadata:
  name: {{ .name }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
    {{- range $mode := list "enforce" "audit" "warn" }}
    pod-security.kubernetes.io/{{ $mode }}: restricted
    pod-security.kubernetes.io/{{ $mode }}-version: {{ $.root.Values.podSecurity.version }}
    {{- end }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    helm.sh/resource-policy: keep
    {{- with .annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/*
The bounds of a namespace: on requests and on limits alike, and what a container gets that says neither.
Takes: root, namespace, quota (cpu, memory, pods).
*/}}
{{- define "platform.quota" }}
---
apiVersion: v1
kind: ResourceQuota
metadata:
  name: quota
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  hard:
    requests.cpu: {{ .quota.cpu | quote }}
    limits.cpu: {{ .quota.cpu | quote }}
    requests.memory: {{ .quota.memory }}
    limits.memory: {{ .quota.memory }}
    pods: {{ .quota.pods | quote }}
---
apiVersion: v1
kind: LimitRange
metadata:
  name: defaults
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  limits:
    - type: Container
      defaultRequest: {cpu: 500m, memory: 512Mi}
      default: {cpu: 1000m, memory: 1Gi}
{{- end }}

{{/*
The account of task pods in a namespace: no token, and a role without a rule, so that there is one place to see it.
Takes: root, namespace, name.
*/}}
{{- define "platform.taskAccount" }}
{{- include "parts.account" (dict "root" .root "namespace" .namespace "name" .name) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}-role
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}-binding
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}-role}
subjects:
  - {kind: ServiceAccount, name: {{ .name }}, namespace: {{ .namespace }}}
{{- end }}

{{/*
A Secret by reference: fetched from a store, never written here. Takes: root, namespace, name, type, keys,
path.
*/}}
{{- define "platform.externalSecret" }}
---
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  refreshInterval: {{ .root.Values.externalSecrets.refreshInterval }}
  secretStoreRef:
    {{- toYaml .root.Values.externalSecrets.store | nindent 4 }}
  target:
    name: {{ .name }}
    creationPolicy: Owner
    {{- with .type }}
    template: {type: {{ . }}}
    {{- end }}
  data:
    {{- range .keys }}
    - secretKey: {{ . }}
      remoteRef: {key: {{ $.root.Values.externalSecrets.prefix }}/{{ $.path }}/{{ $.name }}, property: {{ . }}}
    {{- end }}
{{- end }}

{{/*
A peer of a network policy: the pods of a workload, wherever they are as seen from the namespace. Takes: workload,
tenant (id: the policy lies in that tenant's namespace).
*/}}
{{- define "parts.peer" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .workload.namespace }}
  podSelector:
    matchLabels:
      {{- toYaml (.workload.pods | default dict) | nindent 6 }}
{{- if .workload.tenants }}
- namespaceSelector:
    matchExpressions:
      - {key: tenant, operator: Exists}
  podSelector:
    matchLabels:
      {{- toYaml .workload.pods | nindent 6 }}
{{- end }}
{{- end }}

{{/* Peers that are ranges of addresses. Takes an address. */}}
{{- define "parts.ranges" -}}
{{- $except := .except }}
{{- range .ranges }}
- ipBlock:
    cidr: {{ . }}
    {{- with $except }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- end }}

{{/*
The ports of a call as JSON, for it has to be looked at before it is written: none may be left. Takes: caller, callee
(its name), names, facts.
*/}}
{{- define "parts.ports" -}}
{{- $callee := get (merge (dict) .facts.workloads .facts.addresses) .callee }}
{{- if not $callee }}
{{- fail (printf "network.workloads.%s.calls: there is no workload and no address %s" .caller .callee) }}
{{- end }}
{{- $ports := list }}
{{- $callerName := .caller }}
{{- $calleeName := .callee }}
{{- range $name := .names }}
{{- if not (hasKey ($callee.ports | default dict) $name) }}
{{- fail (printf "network.workloads.%s.calls: %s has no port %s" $callerName $calleeName $name) }}
{{- end }}
{{- $number := get $callee.ports $name | int }}
{{- if $number }}
{{- range $protocol := $callee.protocols | default (list "TCP") }}
{{- $ports = append $ports (dict "port" $number "protocol" $protocol) }}
{{- end }}
{{- end }}
{{- end }}
{{- $ports | toJson }}
{{- end }}

{{/* What the pods of a workload may call. Takes: name, facts. */}}
{{- define "parts.egress" -}}
{{- $facts := .facts }}
{{- $caller := .name }}
{{- range $callee, $names := (get $facts.workloads $caller).calls }}
{{- $ports := include "parts.ports" (dict "caller" $caller "callee" $callee "names" $names "facts" $facts) | fromJsonArray }}
{{- $address := get $facts.addresses $callee }}
{{- if and $ports (or (not $address) $address.ranges) }}
- to:
    {{- if $address }}
    {{- include "parts.ranges" $address | nindent 4 }}
    {{- else }}
    {{- include "parts.peer" (dict "workload" (omit (get $facts.workloads $callee) "tenants")) | nindent 4 }}
    {{- end }}
  ports:
    {{- toYaml $ports | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Who may call the pods of a workload. Takes: name, facts. */}}
{{- define "parts.ingress" -}}
{{- $facts := .facts }}
{{- $callee := .name }}
{{- range $caller, $workload := $facts.workloads }}
{{- range $called, $names := $workload.calls }}
{{- if eq $called $callee }}
{{- $ports := include "parts.ports" (dict "caller" $caller "callee" $callee "names" $names "facts" $facts) | fromJsonArray }}
{{- if $ports }}
- from:
    {{- include "parts.peer" (dict "workload" $workload) | nindent 4 }}
  ports:
    {{- toYaml $ports | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The policies of one workload: `<name>-egress` and `<name>-ingress`, each only where it allows something. Takes: root,
facts, name, namespace.
*/}}
{{- define "parts.policies" -}}
{{- $workload := get .facts.workloads .name }}
{{- range $direction := list "egress" "ingress" }}
{{- $rules := include (printf "parts.%s" $direction) (dict "name" $.name "facts" $.facts) | fromYamlArray }}
{{- if $rules }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $.name }}-{{ $direction }}
  namespace: {{ $.namespace }}
  labels:
    {{- include "parts.labels" $.root | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- toYaml ($workload.pods | default dict) | nindent 6 }}
  policyTypes: [{{ title $direction }}]
  {{ $direction }}:
    {{- toYaml $rules | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Nothing in, nothing out. Takes: root, namespace. */}}
{{- define "parts.defaultDeny" }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: default-deny
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
{{- end }}

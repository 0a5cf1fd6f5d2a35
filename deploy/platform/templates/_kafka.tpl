{{/*
A topic of include/marketdata/streaming/topics.yaml. It is kept, with its data, when it is no longer rendered.
Takes: root, name, topic, labels.
*/}}
{{- define "platform.topic" }}
---
apiVersion: kafka.strimzi.io/v1
kind: KafkaTopic
metadata:
  name: {{ .name }}
  namespace: kafka
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
    strimzi.io/cluster: datahub-kafka
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    helm.sh/resource-policy: keep
    marketdata/format: {{ .topic.format }}
spec:
  partitions: {{ .topic.partitions }}
  replicas: {{ .topic.replication_factor }}
  config:
    {{- toYaml .topic.config | nindent 4 }}
{{- end }}

{{/*
A user of the TLS listener. Rights name one resource each: topic, group or transactionalId; a name that ends in "*" is a
prefix. Takes: root, name, rights, labels.
*/}}
{{- define "platform.user" }}
---
apiVersion: kafka.strimzi.io/v1
kind: KafkaUser
metadata:
  name: {{ .name }}
  namespace: kafka
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
    strimzi.io/cluster: datahub-kafka
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  authentication:
    type: scram-sha-512
    {{- if .root.Values.externalSecrets.enabled }}
    password:
      valueFrom:
        secretKeyRef: {name: {{ .passwords | default "kafka-users" }}, key: {{ .name }}}
    {{- end }}
  authorization:
    type: simple
    acls:
      {{- range $right := .rights }}
      {{- range $type := list "topic" "group" "transactionalId" }}
      {{- with get $right $type }}
      - resource:
          type: {{ $type }}
          name: {{ ternary . (trimSuffix "*" .) (or (eq . "*") (not (hasSuffix "*" .))) | quote }}
          patternType: {{ ternary "literal" "prefix" (or (eq . "*") (not (hasSuffix "*" .))) }}
        operations: {{ $right.operations | toJson }}
      {{- end }}
      {{- end }}
      {{- end }}
{{- end }}

{{/*
A long-running service: account, settings, Deployment, Service, autoscaler, disruption budget, and how it is scraped.
Hardened, and the same for all of them. Takes a dict:
  root, namespace, name, image (as pulled), account
  service: what its values say: command, ports, probes, replicas, resources, autoscaling, minAvailable, environment,
    secrets
  labels: of the pods, beside `app`
  annotations: of the pods
  spread: "required" (one pod a machine, or it waits) or "preferred"
  variables: environment from Secrets, as a list
  settings: names of further ConfigMaps with variables
  scrape: whether the Prometheus operator is told
*/}}
{{- define "parts.service" }}
{{- $labels := merge (dict "app" .name) .labels }}
{{- include "parts.account" (dict "root" .root "namespace" .namespace "name" .account) }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
data:
  {{- range $name, $value := .service.environment }}
  {{ $name }}: {{ $value | toString | quote }}
  {{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
    {{- toYaml $labels | nindent 4 }}
spec:
  {{- if not .service.autoscaling.enabled }}
  replicas: {{ .service.replicas }}
  {{- end }}
  selector:
    matchLabels:
      app: {{ .name }}
  # One pod after the other: the worst case of a roll-out asks for no more than the service itself.
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 1, maxSurge: 0}
  template:
    metadata:
      labels:
        {{- toYaml $labels | nindent 8 }}
      annotations:
        # Changed settings are a new version of the pods.
        checksum/settings: {{ .service.environment | toJson | sha256sum }}
        {{- with .annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ .account }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      priorityClassName: {{ .priorityClass }}
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      affinity:
        podAntiAffinity:
          {{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "app" .name)) }}
          {{- if eq .spread "required" }}
          requiredDuringSchedulingIgnoredDuringExecution:
            {{- toYaml (list $term) | nindent 12 }}
          {{- else }}
          preferredDuringSchedulingIgnoredDuringExecution:
            {{- toYaml (list (dict "weight" 100 "podAffinityTerm" $term)) | nindent 12 }}
          {{- end }}
      containers:
        - name: {{ .container | default .name }}
          image: {{ .image }}
          imagePullPolicy: IfNotPresent
          {{- with .service.command }}
          command:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            {{- range $name, $number := .service.ports }}
            - {name: {{ $name }}, containerPort: {{ $number }}, protocol: TCP}
            {{- end }}
          envFrom:
            {{- range append .settings .name }}
            - configMapRef: {name: {{ . }}}
            {{- end }}
          env:
            - {name: HOME, value: /tmp}
            - {name: TMPDIR, value: /tmp}
            {{- with .variables }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with .service.probes }}
          # It may take its time to begin, and is not restarted for a dependency that is down: that is readiness.
          startupProbe:
            httpGet: {path: {{ .live }}, port: {{ .port }}}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: {{ .live }}, port: {{ .port }}}
            periodSeconds: 10
            timeoutSeconds: 3
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: {{ .ready }}, port: {{ .port }}}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 2
          {{- end }}
          resources:
            {{- toYaml .service.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            privileged: false
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 256Mi}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
    app: {{ .name }}
spec:
  selector:
    app: {{ .name }}
  ports:
    {{- range $name, $number := .service.ports }}
    - {name: {{ $name }}, port: {{ $number }}, targetPort: {{ $name }}, protocol: TCP}
    {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  minAvailable: {{ .service.minAvailable }}
  selector:
    matchLabels:
      app: {{ .name }}
{{- with .service.autoscaling }}
{{- if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $.name }}
  namespace: {{ $.namespace }}
  labels:
    {{- include "parts.labels" $.root | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $.name }}}
  minReplicas: {{ .min }}
  maxReplicas: {{ .max }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .cpu }}}}
    - type: Resource
      resource: {name: memory, target: {type: Utilization, averageUtilization: {{ .memory }}}}
    {{- with .lag }}
    # Of Prometheus, through an adapter of the external metrics API; without one, the two above still scale.
    - type: External
      external:
        metric: {name: kafka_consumer_lag_records, selector: {matchLabels: {group: {{ .group }}}}}
        target: {type: AverageValue, averageValue: {{ .records | quote }}}
    {{- end }}
{{- end }}
{{- end }}
{{- if .scrape }}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "parts.labels" .root | nindent 4 }}
spec:
  selector:
    matchLabels:
      app: {{ .name }}
  podMetricsEndpoints:
    - {port: {{ .service.scrape }}, path: /metrics}
{{- end }}
{{- end }}

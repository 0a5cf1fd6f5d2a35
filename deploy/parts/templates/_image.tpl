{{/*
The image as it is pulled: by digest, or by a tag that says a full version. Takes: image (repository, tag, digest),
where (for the message), digestOnly.
*/}}
{{- define "parts.image" -}}
{{- if and .image.tag .image.digest }}
{{- fail (printf "%s: tag %s and digest %s are both set, and the digest would win unseen: set one" .where .image.tag .image.digest) }}
{{- else if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else if .digestOnly }}
{{- fail (printf "%s: production names this image by digest; set digest, and tag to \"\"" .where) }}
{{- else if regexMatch "^v?[0-9]+\\.[0-9]+\\.[0-9]+([-.][0-9A-Za-z.-]+)?$" (.image.tag | default "") }}
{{- printf "%s:%s" .image.repository .image.tag }}
{{- else }}
{{- fail (printf "%s: tag %q may move; set digest, or a tag that says a full version (v1.2.3)" .where (.image.tag | default "")) }}
{{- end }}
{{- end }}

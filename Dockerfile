# The images of the platform: `docker build --target task .` and `docker build --target airflow .`
#
# Bases are build arguments. A tag moves, so whoever builds for production says what it stands for that day
# (`docker buildx imagetools inspect TAG` shows the digest; none is written here, for nothing here could check it):
#   --build-arg PYTHON_BASE=python:3.11-slim-bookworm@sha256:…
#   --build-arg AIRFLOW_BASE=apache/airflow:3.3.2-python3.11@sha256:…
# and what the labels say: --build-arg VERSION=… --build-arg REVISION=… --build-arg SOURCE=… --build-arg CREATED=…
#
# Every package is the lock's, by hash. The same bases and sources give the same files; with SOURCE_DATE_EPOCH and an
# exporter that sets time stamps (BuildKit: `--output type=image,rewrite-timestamp=true`; buildah: `--timestamp`) they give
# the same digest. Behind a mirror: --secret id=pip,src=pip.conf --secret id=uv,src=uv.toml; no address belongs in this file.

ARG PYTHON_BASE=python:3.11-slim-bookworm
ARG AIRFLOW_BASE=apache/airflow:3.3.2-python3.11

# --- What builds, and is in neither image.
FROM ${PYTHON_BASE} AS tools
WORKDIR /build
COPY requirements-tools.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip install --quiet --no-cache-dir --require-hashes --target /opt/tools --requirement requirements-tools.txt

# --- Packages of the task image: without their tests, and with bytecode that holds whatever a file's time stamp is.
FROM ${PYTHON_BASE} AS dependencies
ENV UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy UV_NO_INSTALLER_METADATA=1 PYTHONHASHSEED=0
WORKDIR /build
COPY --from=tools /opt/tools /opt/tools
COPY requirements-task.txt ./
RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    /opt/tools/bin/uv venv --quiet --python "$(command -v python3)" /opt/venv \
    && /opt/tools/bin/uv pip sync --quiet --python /opt/venv --require-hashes requirements-task.txt \
    && find /opt/venv/lib -type d -name tests -prune -exec rm -rf {} + \
    && echo /opt/marketdata > "$(echo /opt/venv/lib/python3.*/site-packages)/marketdata.pth" \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

# --- This repository's files, whatever the umask they were checked out with.
FROM ${PYTHON_BASE} AS sources
WORKDIR /build
COPY pyproject.toml README.md ./
COPY include include
COPY expectations expectations
COPY dags dags
COPY plugins plugins
RUN chmod -R u=rwX,go=rX . \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /build -p /opt/airflow dags plugins include

# --- The package beside its dependencies, so that a change of it moves one small layer, and the list of what is installed.
FROM dependencies AS package
COPY --from=sources /build/pyproject.toml /build/README.md ./
COPY --from=sources /build/include include
COPY --from=sources /build/expectations /opt/marketdata/expectations
RUN PYTHONPATH=/opt/tools python3 -m hatchling build --target wheel \
    && /opt/tools/bin/uv pip install --quiet --python /opt/venv --no-deps --target /opt/marketdata dist/*.whl \
    && rm /opt/marketdata/.lock \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/marketdata \
    && python3 -W ignore -c 'import runpy, sys; sys.path.insert(0, "/opt/tools"); runpy.run_module("cyclonedx_py")' \
       environment --output-reproducible --pyproject pyproject.toml --output-file /opt/marketdata/sbom.cdx.json /opt/venv

# --- What the pods of tasks run.
FROM ${PYTHON_BASE} AS task
# The public image has no bytecode of Python's own library, and what runs here may not write any.
RUN PYTHONHASHSEED=0 python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(tests?|lib2to3|.*-packages)/' \
       "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && find / -xdev \( -path '*-packages/pip*' -o -path '*-packages/setuptools*' -o -path '*-packages/*distutils*' \
       -o -path '*-packages/pkg_resources*' -o -path '*-packages/wheel*' -o -path '*/ensurepip' -o -path '*/bin/pip*' \) \
       -prune -exec rm -rf {} + \
    && echo 'marketdata:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'marketdata:x:10001:' >> /etc/group
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/marketdata /opt/marketdata
ENV PATH=/opt/marketdata/bin:/opt/venv/bin:$PATH \
    HOME=/tmp \
    MARKETDATA_HOME=/tmp/marketdata \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GX_ANALYTICS_ENABLED=False
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["marketdata"]
CMD ["--help"]
ARG VERSION
ARG REVISION
ARG SOURCE
ARG CREATED
ENV MARKETDATA_REVISION=${REVISION}
LABEL org.opencontainers.image.title="marketdata-task" \
      org.opencontainers.image.description="The commands that the pods of the market-data pipelines run" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}" \
      marketdata.sbom="/opt/marketdata/sbom.cdx.json"

# --- Packages of the Airflow image. The public image's environment holds other versions, and packages the lock does not
# know: it is not mended but replaced, so that what is installed is the lock's, by hash, and nothing else.
FROM ${AIRFLOW_BASE} AS airflow-dependencies
# Nothing is run from this stage.
# hadolint ignore=DL3002
USER 0
ENV UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy UV_NO_INSTALLER_METADATA=1 PYTHONHASHSEED=0
WORKDIR /build
COPY --from=tools /opt/tools /opt/tools
COPY requirements.txt ./
RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    /opt/tools/bin/uv venv --quiet --clear --python "$(readlink -f "$(command -v python3)")" /home/airflow/.local \
    && /opt/tools/bin/uv pip sync --quiet --python /home/airflow/.local --require-hashes requirements.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /home/airflow/.local/lib \
    && mkdir /opt/marketdata \
    && python3 -W ignore -c 'import runpy, sys; sys.path.insert(0, "/opt/tools"); runpy.run_module("cyclonedx_py")' \
       environment --output-reproducible --output-file /opt/marketdata/sbom.cdx.json /home/airflow/.local

# --- What Airflow's own pods run.
FROM ${AIRFLOW_BASE} AS airflow
USER 0
# Airflow writes a configuration file where it finds none, and on a read-only root it cannot: an empty one will do.
RUN PYTHONHASHSEED=0 python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(tests?|lib2to3|.*-packages)/' \
       "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf /home/airflow/.local \
    && touch /opt/airflow/airflow.cfg \
    && echo 'marketdata:x:10001:0::/home/airflow:/usr/sbin/nologin' >> /etc/passwd
COPY --from=airflow-dependencies /home/airflow/.local /home/airflow/.local
COPY --from=airflow-dependencies /opt/marketdata /opt/marketdata
COPY --from=sources /build/dags /opt/airflow/dags
COPY --from=sources /build/plugins /opt/airflow/plugins
COPY --from=sources /build/include /opt/airflow/include
ENV PYTHONPATH=/opt/airflow/include \
    PYTHONDONTWRITEBYTECODE=1 \
    GX_ANALYTICS_ENABLED=False
# Its entry point takes any user, but only group 0.
USER 10001:0
ARG VERSION
ARG REVISION
ARG SOURCE
ARG CREATED
LABEL org.opencontainers.image.title="marketdata-airflow" \
      org.opencontainers.image.description="Airflow with the DAGs of the market-data pipelines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}" \
      marketdata.sbom="/opt/marketdata/sbom.cdx.json"

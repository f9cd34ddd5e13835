# The service with PostgreSQL's driver and the S3 client. `docker build -t faceswap .`, then deploy/compose.yaml.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
WORKDIR /source
COPY pyproject.toml setup.cfg README.md LICENSE NOTICE ./
COPY migrations migrations
COPY workflows workflows
COPY faceswap faceswap
# The virtual environment has no pip of its own: only what the service imports is copied from here.
RUN python -m venv --without-pip /opt/faceswap \
    && pip --python /opt/faceswap/bin/python install --no-cache-dir ".[cluster]"

FROM ${PYTHON}
# The base image leaves out the compiled standard library, which every media process would compile again.
RUN python -m compileall -q -x '/(tests?|site-packages)/' "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin faceswap \
    && install -d -o faceswap -g faceswap -m 0700 /data
COPY --from=build /opt/faceswap /opt/faceswap
ENV PATH=/opt/faceswap/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FACESWAP_DATA_DIR=/data \
    FACESWAP_HOST=0.0.0.0 \
    FACESWAP_LOG_FORMAT=json
USER faceswap
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["faceswap"]
# It starts with API keys only: see compose.yaml. Publish a proxy's port, not this one.
CMD ["serve"]

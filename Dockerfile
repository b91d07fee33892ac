# An image of the gateway, for both databases:
#
#     docker build -t ice-gateway .
#
# (podman and buildah: with --format docker, because the format of OCI has no health check).
#
# config/compose.yaml and config/kubernetes.yaml run it. It needs nothing but its settings, a key file or a volume for
# one, and a database: the root file system may be read-only, and the user is a number that no host has to know.

FROM python:3.13-slim AS build
WORKDIR /src
# First the packages, which change less often than the code. The lock has the hash of each.
COPY requirements-image.lock ./
RUN python -m venv /opt/ice-gateway \
 && /opt/ice-gateway/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY config/ice-client* config/
COPY client client
COPY gateway gateway
# Nothing in the image installs anything.
RUN /opt/ice-gateway/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/ice-gateway/bin/pip uninstall --yes setuptools pip

FROM python:3.13-slim
COPY --from=build /opt/ice-gateway /opt/ice-gateway
ENV PATH=/opt/ice-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
# The database and the key file of a gateway that keeps them in a volume.
RUN install -d -m 0700 -o 10001 -g 10001 /var/lib/ice-gateway
USER 10001:10001
WORKDIR /var/lib/ice-gateway
VOLUME /var/lib/ice-gateway
# Other containers reach it only beyond loopback, which needs server.public_url, too.
ENV ICE_GATEWAY_SERVER__HOST=0.0.0.0 \
    ICE_GATEWAY_METRICS__LISTEN=0.0.0.0:9464
EXPOSE 8440 9464
# Whether it admits ICEs. The probe asks the port of the default setting, over http; with TLS of the gateway's own, replace it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8440/readyz', timeout=4)"]
# As process 1 it hears SIGTERM, and drains within 10 s.
ENTRYPOINT ["ice-gateway"]
CMD ["serve"]

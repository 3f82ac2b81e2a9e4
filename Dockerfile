# syntax=docker/dockerfile:1

# One image for relay and downstream; the command says which.
ARG PYTHON=python:3.11-slim-bookworm

# --- build: the wheel, with the tools of requirements.lock, and a virtual environment to run it in ---
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# What changes seldom comes first, so that a change of the code builds in seconds.
COPY requirements.lock requirements-runtime.lock ./
RUN ["pip", "install", "--require-hashes", "--no-deps", "-r", "requirements.lock"]
RUN ["python", "-m", "venv", "--without-pip", "/opt/relay"]
RUN ["pip", "--python", "/opt/relay/bin/python", "install", "--require-hashes", "--no-deps", "-r", "requirements-runtime.lock"]

COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY protos protos
COPY relay_service relay_service
COPY downstream_service downstream_service
COPY chaos chaos
RUN ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheels", "."]
RUN ["pip", "--python", "/opt/relay/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "resilient-relay"]

# --- the image: the environment, a user without rights, and a place for data that a volume takes over ---
FROM ${PYTHON}
LABEL org.opencontainers.image.title="Resilient Relay" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relay \
 && install --directory --owner relay --group relay /var/lib/relay
COPY --from=build /opt/relay /opt/relay
COPY deploy/healthcheck.py /opt/relay/healthcheck.py

# The defaults listen on the loopback, which in a container nobody reaches. The admin port stays there.
ENV PATH=/opt/relay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RELAY_LISTEN=0.0.0.0:50051 \
    RELAY_HTTP_LISTEN=0.0.0.0:9464 \
    RELAY_DOWNSTREAM_LISTEN=0.0.0.0:50052
USER 10001:10001
WORKDIR /var/lib/relay
EXPOSE 50051 50052 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "/opt/relay/healthcheck.py", "http", "http://127.0.0.1:9464/readyz"]
CMD ["relay", "serve"]

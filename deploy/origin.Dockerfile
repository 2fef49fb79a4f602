# nginx as the origin of deploy/compose.yaml, from the same base as the nodes: no second image to pull.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}
# the version is the distribution's
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends nginx-light && \
    rm -rf /var/lib/apt/lists/*
COPY nginx.conf /etc/nginx/nginx.conf
USER 33:33
EXPOSE 8080
HEALTHCHECK --interval=1s --timeout=2s CMD ["sh", "-c", "kill -0 $(cat /tmp/nginx.pid)"]
CMD ["nginx"]

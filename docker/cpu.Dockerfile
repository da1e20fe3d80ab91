# The CPU image, built from the repository's root:
#
#   docker build -f docker/cpu.Dockerfile -t bitskip-server:cpu .
#
# Without Docker: docker/build_with_buildah.sh. The kernels are compiled for any x86-64 or arm64
# processor; which of them run is decided when the server starts.
#
# BASE_IMAGE: any Debian-like image with Python 3.11 or newer, the same for both stages, since
# the environment made in the first runs on the interpreter of the second.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder

# What compiles the kernels; a base with Debian's own Python needs python3-dev, too.
ARG BUILD_PACKAGES="g++"
# Extras of the package, separated by spaces. Serving needs none; torch brings the reference
# backend and training.
ARG EXTRAS=""
# A further package index that offers torch's CPU build; the default index has the CUDA one.
ARG TORCH_INDEX_URL=""

# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ${BUILD_PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
# Without pip: the image that serves installs nothing more.
RUN python3 -m venv --without-pip /opt/bitskip

# What rarely changes comes first: the dependencies, without the project, are one cached layer.
COPY pyproject.toml .ci/constraints.txt ./
RUN python3 -c "import sys, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *(r for e in sys.argv[1].split() for r in p['optional-dependencies'][e]), sep='\n')" \
        "${EXTRAS}" > requirements.txt \
    && python3 -m pip --python /opt/bitskip/bin/python install --no-cache-dir -c constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} -r requirements.txt

COPY README.md LICENSE .gitignore ./
COPY engine engine
COPY server server
COPY clients clients
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python3 -m pip --python /opt/bitskip/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM ${BASE_IMAGE}

# Models are mounted at /models; what is fetched or packed goes to /cache, the one place that
# the server writes to: the rest of the file system may be read-only.
RUN useradd --uid 10001 --no-create-home --home-dir /cache bitskip \
    && install --directory --owner=bitskip /cache /models
COPY --from=builder /opt/bitskip /opt/bitskip
ENV PATH=/opt/bitskip/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1 \
    BITSKIP_HOST=0.0.0.0 \
    BITSKIP_PORT=8000
VOLUME ["/cache", "/models"]
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /cache
# An image without kernels, or without what they link to, fails here rather than where it runs.
RUN ["python", "-c", "import engine.backends.cpu._native"]

EXPOSE 8000
# Straight to the port, whatever proxy the environment names; 503 (loading, draining) is unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['BITSKIP_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["bitskip"]
CMD ["serve"]

# The CUDA image, built from the repository's root:
#
#   docker build -f docker/cuda.Dockerfile -t bitskip-server:cuda .
#   docker run --gpus all -p 127.0.0.1:8000:8000 bitskip-server:cuda
#
# It differs from the CPU image in its packages alone: torch, whose wheels bring the CUDA
# libraries, so that the host gives nothing but its driver; and a C compiler, with which Triton
# builds the launchers of its kernels when they first run.
#
# BASE_IMAGE: as in cpu.Dockerfile.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder

# What compiles the kernels; a base with Debian's own Python needs python3-dev, too.
ARG BUILD_PACKAGES="g++"
# Extras of the package, separated by spaces.
ARG EXTRAS="torch"
# A further package index, for torch's build for another CUDA release than the default index's.
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

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

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
    BITSKIP_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
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

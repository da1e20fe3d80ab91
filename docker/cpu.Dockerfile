# The CPU image, built from the repository's root:
#
#   docker build -f docker/cpu.Dockerfile -t bitskip-server:cpu .
#
# BASE_IMAGE: any Debian-like image with Python 3.11 or newer, the same for both stages, since
# the environment made in the first runs on the interpreter of the second.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder

# A further package index that offers torch's CPU build; the default index has the CUDA one.
ARG TORCH_INDEX_URL

# The native kernels are compiled here; the second stage needs no compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
RUN python -m venv /opt/bitskip

# What rarely changes comes first: the dependencies, without the project, are one cached layer.
COPY pyproject.toml .ci/constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && /opt/bitskip/bin/pip install --no-cache-dir -c constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} -r requirements.txt

COPY README.md LICENSE .gitignore ./
COPY engine engine
COPY server server
COPY clients clients
RUN /opt/bitskip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/bitskip/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${BASE_IMAGE}

# A home of its own: models are fetched and packed into caches below it.
RUN useradd --create-home --uid 10001 bitskip
COPY --from=builder /opt/bitskip /opt/bitskip
ENV PATH=/opt/bitskip/bin:$PATH \
    PYTHONUNBUFFERED=1
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /home/bitskip

EXPOSE 8000
# Straight to the port, whatever proxy the environment names; 503 (loading, draining) is unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["bitskip", "serve", "--host", "0.0.0.0"]

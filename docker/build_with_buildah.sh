#!/usr/bin/env bash
# Builds the CPU image with buildah, for machines without a Docker daemon:
#
#   docker/build_with_buildah.sh [more arguments of buildah bud]
#
# BASE_IMAGE and IMAGE name what it is built from, and what is built. In a container that may not
# make namespaces: BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec buildah bud --format docker --file docker/cpu.Dockerfile \
    --build-arg "BASE_IMAGE=${BASE_IMAGE:-docker.io/library/python:3.11-slim}" \
    --tag "${IMAGE:-bitskip-server:cpu}" "$@" .

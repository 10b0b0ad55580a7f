# ltpipe in a container. CPU:  docker build -t ltpipe .
# GPU (CUDA 13.0; docs/install.md says which architectures to name):
#   docker build -t ltpipe-gpu --build-arg BASE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu22.04 --build-arg TORCH_BUILD=cu130 .
ARG BASE=python:3.11-bookworm
FROM ${BASE}

ARG TORCH_BUILD=
ARG TORCH_CUDA_ARCH_LIST="8.0 9.0"
ENV DEBIAN_FRONTEND=noninteractive

# Debian's image for Python has one; CUDA's images for Ubuntu 22.04 have not.
RUN apt-get update && apt-get install --no-install-recommends -y build-essential git make \
    && if ! command -v python3.11; then apt-get install --no-install-recommends -y python3.11 python3.11-dev python3.11-venv; fi \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ltpipe
COPY . .
# No GPU is there while an image is built, so that mmcv has to be told to compile for one.
RUN if [ -n "${TORCH_BUILD}" ]; then export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST}"; fi \
    && make install PYTHON=python3.11 TORCH_BUILD="${TORCH_BUILD}" \
    && rm -rf /root/.cache/pip

ENV PATH=/opt/ltpipe/.venv/bin:${PATH}
ENTRYPOINT []
CMD ["ltpipe", "--help"]

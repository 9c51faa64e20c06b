# The fleet's image in two targets: cpu for every role, cuda for expert shards on NVIDIA GPUs.
#
#   docker build --target cpu -t REGISTRY/expertfleet:0.1.0-cpu .
#   docker build --target cuda -t REGISTRY/expertfleet:0.1.0-cuda .
#
# Python's version is the one that constraints.txt was resolved with. Packages make the large layers and change seldom;
# this repository is the last, small one.
# (Debian's packages are not pinned: its archive holds the newest fix of each alone.)
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS package
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools
COPY . .
# Without its kernel for CPUs the package would install as well and be some 100 times slower.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels . \
    && python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && ls /opt/venv/lib/python3.*/site-packages/expertfleet/kernels/native_library*.so \
    && mkdir /opt/expertfleet \
    && ln -s "$(/opt/venv/bin/python -c 'from expertfleet.demo.bundled import NANO_K2; print(NANO_K2)')" \
        /opt/expertfleet/nano-k2

FROM python:${PYTHON} AS wanted
WORKDIR /wanted
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > cpu.txt \
    && python -c 'import tomllib; \
        project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        print(*project["dependencies"], *project["optional-dependencies"]["gpu"], sep="\n")' \
        > cuda.txt

FROM python:${PYTHON} AS packages-cpu
WORKDIR /source
COPY constraints.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt "$(sed -n 's/^torch==.*/&+cpu/p' constraints.txt)" \
        --extra-index-url https://download.pytorch.org/whl/cpu
COPY --from=wanted /wanted/cpu.txt ./
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt -r cpu.txt

FROM python:${PYTHON} AS packages-cuda
WORKDIR /source
COPY constraints.txt ./
COPY --from=wanted /wanted/cuda.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt -r cuda.txt

FROM python:${PYTHON} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 expertfleet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin expertfleet
ENTRYPOINT ["expertfleet"]

FROM base AS cuda
# Triton compiles a small launcher in C for each kernel, when it runs first.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/venv /opt/venv
COPY --from=package /opt /opt
USER 10001:10001

FROM base AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=package /opt /opt
USER 10001:10001

# Two images of one installation. CPU:  docker build --target cpu -t dynframe-rl:0.4.0-cpu .
#                                 GPU:  docker build --target gpu -t dynframe-rl:0.4.0-gpu .
#   docker run --rm --shm-size=2g -v "$PWD:/workspace" dynframe-rl:0.4.0-cpu train quickstart
#   docker run --rm --gpus=all --shm-size=64g -v "$PWD:/workspace" dynframe-rl:0.4.0-gpu train sd_grpo_qwen3_vl_4b data.yaml
# /workspace is where a run's folders go; the mounted folder must be writable by user 1000 (or add: --user "$(id -u)").

FROM debian:bookworm-slim AS python
# libnuma1: vLLM's engine on CPUs loads it. wget: KubeRay asks Ray's processes with it whether they are well. Debian's
# packages are those of its stable release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libnuma1 python3.11 python3.11-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3.11 -m venv /opt/dynframe \
    && echo "export PATH=/opt/dynframe/bin:\$PATH" > /etc/profile.d/dynframe.sh
ENV PATH=/opt/dynframe/bin:$PATH \
    DS_BUILD_OPS=0 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1


FROM python AS wheel
COPY pyproject.toml setup.py README.md /source/
COPY rl /source/rl
COPY actors /source/actors
COPY rewards /source/rewards
COPY envs /source/envs
COPY cluster /source/cluster
COPY configs /source/configs
COPY examples /source/examples
RUN pip wheel --no-deps --wheel-dir /wheels /source


# Nobody's root at run time. A user without an entry in /etc/passwd (--user) works, too: the home folder is everybody's.
FROM python AS runtime
RUN useradd --uid 1000 --create-home dynframe \
    && mkdir /workspace \
    && chown dynframe:dynframe /workspace \
    && chmod 1777 /home/dynframe /workspace
ENV HOME=/home/dynframe \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /workspace
ENTRYPOINT ["dynframe"]
CMD ["--help"]


# Every package pinned, and none that is built for CUDA.
FROM runtime AS cpu
ARG TORCH=2.13.0
# hadolint ignore=DL3013
RUN --mount=type=bind,source=cluster/requirements-cpu.txt,target=/tmp/requirements-cpu.txt \
    pip install --no-deps --timeout 20 --index-url https://download.pytorch.org/whl/cpu "torch==$TORCH+cpu" \
    && pip install --no-deps -r /tmp/requirements-cpu.txt
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/*.whl
USER 1000


# gcc: Triton compiles the launchers of its kernels when they are first used.
FROM runtime AS gpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libpython3.11-dev \
    && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    for wheel in /wheels/*.whl; do pip install "${wheel}[gpu]"; done
USER 1000

# The project on a CPU machine, with the pins of requirements.txt: the sandbox's whole study runs in it.
#
#   docker build -t guardrail .
#   docker build -t guardrail --build-arg TORCH_INDEX=URL .     # URL of an index with CPU builds of torch: 5 GB less
#   docker run --rm -v "$PWD/outputs:/guardrail/outputs" guardrail
#   docker run --rm guardrail guardrail --help
#
# Known limit: built nowhere by its authors (no daemon at hand); a test checks its instructions against the repository.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# A compiler: DeepSpeed builds its CPU operators on first use. git and ps: hashes of the checkout, Snakemake.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git procps \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /guardrail

# The requirements first: a change of the code does not install them again.
COPY requirements.txt ./
ARG TORCH_INDEX=
RUN grep '^torch==' requirements.txt >/tmp/torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /tmp/torch.txt \
    && pip install -r requirements.txt

COPY . .
RUN pip install --no-deps --no-build-isolation -e .

ENV DEVICE=cpu HF_HUB_OFFLINE=1
CMD ["bash", "scripts/study.sh", "configs/studies/quickstart.yaml"]

"""What a stage of a study sees of the user's shell: devices, caches, proxies, credentials - and nothing that decides.

Everything that decides a result comes from the study file. A variable that scripts read as a setting (`SEED`,
`BENCH_DATA`, `OPENAI_BASE_URL`, ...) does not get through, whatever the user has exported. The list is documented in
docs/keys.md; a test compares the two.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

PASSED = (
    # the machine and the user
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TERM", "TMPDIR", "LD_LIBRARY_PATH"),
    *("VIRTUAL_ENV", "CONDA_*", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
    # devices, threads and launchers
    *(
        "DEVICE",
        "GPUS",
        "NUM_PROCESSES",
        "HOSTFILE",
        "MASTER_ADDR",
        "GUARDRAIL_REMOTE",
        "CUDA_*",
        "NVIDIA_*",
        "NCCL_*",
        "GLOO_*",
        "DS_ACCELERATOR",
    ),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "ATEN_CPU_CAPABILITY", "ONEDNN_*", "PYTORCH_*", "TORCHINDUCTOR_*", "TRITON_*"),
    *("VLLM_*", "SLURM_*", "TOKENIZERS_PARALLELISM"),
    # caches, the hub, the network
    *("XDG_*", "HF_*", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE", "TORCH_HOME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # credentials and logging
    *("OPENAI_API_KEY", "WANDB_*"),
)


def passes(name: str) -> bool:
    """Does the variable ``name`` of the user's shell reach the stages?"""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PASSED)


def stage_environment(shell: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a stage: what passes of ``shell``, then the study's ``variables``."""
    return {**{name: value for name, value in shell.items() if passes(name)}, **variables}

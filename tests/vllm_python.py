"""Where vLLM is: the interpreter of VLLM_PYTHON, this one, or `.venv-vllm` (scripts/install_vllm.sh)."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

import pytest
from toys import REPOSITORY


@functools.lru_cache(maxsize=1)
def find_vllm_python() -> str | None:
    if os.environ.get("VLLM_PYTHON"):
        return os.environ["VLLM_PYTHON"]
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    separate = REPOSITORY / ".venv-vllm" / "bin" / "python"
    ready = list(separate.parent.parent.glob("lib/python*/site-packages/vllm/__init__.py"))
    return str(separate) if separate.exists() and ready else None


def vllm_python() -> str:
    """The interpreter, or a skip with the step to take."""
    found = find_vllm_python()
    if found is None:
        pytest.skip("needs vLLM; run: VLLM_ENV=.venv-vllm bash scripts/install_vllm.sh")
    return found

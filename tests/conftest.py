"""Tiny deterministic tokenizers and models, made in process; `../shared/data` where it is present.

Everything here is offline and CPU only. Distributed tests use `free_port`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import hypothesis
import pytest
from toys import SHARED_DATA, make_llama, make_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# the same cases on every run; a slow machine is no failure
hypothesis.settings.register_profile("project", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("project")


LONGEST_FIRST = (
    "tests/study/test_slurm.py",  # waits more than it works
    "tests/training",
    "tests/study/test_workflow.py",
    "tests/sandbox",
    "tests/evaluation",
    "tests/generation",
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for ``pytest -n N --dist loadgroup``: a file stays in one process, as its fixtures are made once.

    The files of tests/training share a chain of trainings. What takes longest comes first, so that no process is left
    with it at the end.
    """

    def group(item: pytest.Item) -> str:
        path = item.path.relative_to(item.config.rootpath).as_posix()
        return "tests/training" if path.startswith("tests/training/") else path

    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONGEST_FIRST) if group(item).startswith(start)), len(LONGEST_FIRST))

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=rank)
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data`; the test skips with a reason where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """The toy byte-level BPE tokenizer (400 tokens, own BOS, EOS and pad)."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_tokenizer) -> Path:
    """Folder of a 2-layer, width-32 random LLaMA with the toy tokenizer."""
    return make_llama(tmp_path_factory.mktemp("tiny-llama"), tiny_tokenizer)


@pytest.fixture
def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]

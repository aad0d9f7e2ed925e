"""Whether there is a hub is known in seconds."""

from __future__ import annotations

import importlib
import re
import socket
import time

import pytest

from guardrail.core import hub
from guardrail.core.hub import hub_available


def ask(monkeypatch, endpoint, offline="0"):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    return hub_available.__wrapped__(timeout_sec=0.5)


def test_somebody_listens_or_nobody_does(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert ask(monkeypatch, endpoint) is True
        assert ask(monkeypatch, endpoint, offline="1") is False
    start = time.monotonic()
    assert ask(monkeypatch, endpoint) is False
    assert ask(monkeypatch, "http://no.such.host.invalid") is False
    assert time.monotonic() - start < 5


ENVIRONMENTS = (
    {},
    {"HF_HOME": "/a"},
    {"XDG_CACHE_HOME": "/b"},
    {"HF_HOME": "/a", "HF_HUB_CACHE": "/c", "HF_TOKEN_PATH": "/d/token"},
    {"HUGGINGFACE_HUB_CACHE": "/e", "HF_ENDPOINT": "http://127.0.0.1:1/"},
    *({"HF_HUB_OFFLINE": value} for value in ("1", "true", "ON", "Yes", "0", "false", "")),
    {"TRANSFORMERS_OFFLINE": "1"},
)


def test_variables_are_read_as_the_client_reads_them(monkeypatch):
    from huggingface_hub import constants

    names = {name for environment in ENVIRONMENTS for name in environment}
    for environment in ENVIRONMENTS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        importlib.reload(constants)
        assert str(hub.hub_cache()) == constants.HF_HUB_CACHE, environment
        assert hub.is_offline() == constants.HF_HUB_OFFLINE, environment
        assert hub.endpoint() == constants.ENDPOINT, environment
        assert str(hub.hub_home()) == constants.HF_HOME, environment
    monkeypatch.undo()
    importlib.reload(constants)


def raised(*errors):
    """The last of ``errors``, raised from the one before it, and so on."""
    for cause, error in zip((None, *errors), errors, strict=False):
        error.__cause__ = cause
    return errors[-1]


@pytest.mark.parametrize(
    "error,line",
    [
        (raised(OSError(28, "No space left on device"), RuntimeError("x")), "no space is left for org/x in .*HF_HOME"),
        (
            raised(type("ConnectError", (Exception,), {})("refused"), OSError("x")),
            "cannot be reached: check the network",
        ),
        (raised(type("ReadTimeout", (Exception,), {})("slow")), "download of org/x broke off: run this again"),
        (OSError("Consistency check failed: file should be of size 9"), "broke off: run this again"),
        (ValueError("Unknown split 'a'. Should be one of ['b']."), "^org/x: Unknown split 'a'. Should be one of"),
        (RuntimeError("something\nelse"), r"cannot load org/x of the hub \(RuntimeError: something else\); or STEP$"),
    ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, error, line):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    told = str(hub.hub_error(error, "dataset", "org/x", "STEP"))
    assert re.search(line, told) and "\n" not in told


def test_commits_are_pinned_inside_a_study_only(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert hub.cached_commit("model", "org/x") is None
    refs = tmp_path / "models--org--x" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    assert hub.cached_commit("model", "org/x") == "abc" and hub.study_commit("model", "org/x") is None
    monkeypatch.setenv("GUARDRAIL_JOB_KEY", "key")
    assert hub.study_commit("model", "org/x") == "abc"

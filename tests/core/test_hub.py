"""Whether there is a hub is known in seconds."""

from __future__ import annotations

import socket
import time

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

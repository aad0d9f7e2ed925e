"""The client against a real HTTP server that misbehaves: bounded, counted, never an exception for a failure."""

from __future__ import annotations

import time

import pytest
from openai_server import Raw, ScriptedServer, Silence, Status

from guardrail.core import openai_client
from guardrail.core.errors import UserError
from guardrail.core.openai_client import Client, Reply, resolve_base_url, run_parallel

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(openai_client, "FIRST_WAIT_SEC", 0.01)
    monkeypatch.setattr(openai_client, "MAX_WAIT_SEC", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_chat_and_plain_completion():
    with ScriptedServer(lambda payload, n: "Good day.") as server:
        client = Client(server.base_url)
        reply = client.chat("judge", HELLO, temperature=0, max_tokens=5)
        assert (reply.text, reply.error, reply.attempts, reply.finish_reason) == ("Good day.", None, 1, "stop")
        assert client.complete("judge", [1, 2, 3]).text == "Good day."
        assert server.requests[0]["messages"] == HELLO and server.requests[0]["temperature"] == 0
        assert server.requests[1]["prompt"] == [1, 2, 3]
        assert client.check_model(None) == "judge"
        with pytest.raises(UserError, match="did you mean 'judge'"):
            client.check_model("judg")


@pytest.mark.parametrize("failure", [Status(429), Status(500), Status(503), Raw(b"<html>"), Raw(b"")])
def test_passing_trouble_is_tried_again(failure):
    with ScriptedServer(lambda payload, n: failure if n < 2 else "fine") as server:
        reply = Client(server.base_url, max_retries=2).chat("judge", HELLO)
        assert reply.text == "fine" and reply.attempts == 3 and len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Status(429), "http_429"),
        (Status(500), "http_500"),
        (Raw(b"{}"), "malformed"),
        (Raw(b'{"choices": []}'), "malformed"),
    ],
)
def test_lasting_trouble_is_a_value_after_bounded_tries(failure, error):
    with ScriptedServer(lambda payload, n: failure) as server:
        reply = Client(server.base_url, max_retries=2).chat("judge", HELLO)
        assert reply.error == error and reply.text == ""
        assert len(server.requests) == (1 if isinstance(failure, Raw) else 3)


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_a_wrong_request_is_not_repeated(code):
    with ScriptedServer(lambda payload, n: Status(code)) as server:
        reply = Client(server.base_url, max_retries=5).chat("judge", HELLO)
        assert reply.error == f"http_{code}" and "as scripted" in reply.detail and len(server.requests) == 1


def test_a_server_that_never_answers_costs_a_bounded_time():
    with ScriptedServer(lambda payload, n: Silence()) as server:
        start = time.monotonic()
        reply = Client(server.base_url, timeout_sec=0.2, max_retries=1).chat("judge", HELLO)
        assert reply.error == "timeout" and reply.attempts == 2
        assert time.monotonic() - start < 3


def test_nobody_listens(free_port):
    reply = Client(f"http://127.0.0.1:{free_port}/v1", max_retries=1).chat("judge", HELLO)
    assert reply.error == "connection" and reply.attempts == 2


def test_retry_after_is_followed_up_to_the_bound():
    with ScriptedServer(lambda payload, n: Status(429, {"Retry-After": "3600"}) if n == 0 else "fine") as server:
        start = time.monotonic()
        assert Client(server.base_url).chat("judge", HELLO).text == "fine"
        assert time.monotonic() - start < 2


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    with ScriptedServer(lambda payload, n: Raw(b"your key k-123 is odd")) as server:
        reply = Client(server.base_url, max_retries=0).chat("judge", HELLO)
        assert server.requests[0]["_key"] == "Bearer k-123"
        assert "k-123" not in repr(reply) and "[key]" in reply.detail


def test_a_proxy_is_not_asked_for_loopback(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ScriptedServer(lambda payload, n: "direct") as server:
        assert Client(server.base_url, max_retries=0).chat("judge", HELLO).text == "direct"


def test_parallel_keeps_indices_and_gives_up_on_a_dead_server():
    fine = [lambda i=i: Reply({"i": i}, None, "", 1) for i in range(20)]
    assert {i: reply.body["i"] for i, reply in run_parallel(fine, workers=4)} == {i: i for i in range(20)}
    asked = []
    dead = [lambda i=i: asked.append(i) or Reply(None, "timeout", "", 1) for i in range(50)]
    replies = dict(run_parallel(dead, workers=1, give_up_after=5))
    assert len(replies) == 50 and len(asked) == 5
    assert sum(reply.error == "skipped" for reply in replies.values()) == 45


def test_where_the_server_is(monkeypatch):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        resolve_base_url(None)
    with pytest.raises(UserError, match="no server URL"):
        resolve_base_url("127.0.0.1:8000")
    assert resolve_base_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert resolve_base_url(None) == "http://127.0.0.1:9/v1"

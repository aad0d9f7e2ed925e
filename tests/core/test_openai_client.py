"""The client against a real HTTP server that misbehaves: bounded, counted, never an exception for a failure."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import Cut, Drip, Raw, Reset, ScriptedServer, Silence, Stall, Status

from guardrail.core import openai_client
from guardrail.core.errors import UserError
from guardrail.core.openai_client import Client, Reply, resolve_base_url, run_parallel, server_identity

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


FAILURES = {
    "reset": (Reset(), "connection"),
    "silence": (Silence(), "timeout"),
    "a body cut short": (Cut(), "malformed"),
    "a body that stalls": (Stall(), "timeout"),
    "a body that drips": (Drip(), "timeout"),
    "429": (Status(429, {"Retry-After": "soon"}), "http_429"),
    "an error's body cut short": (Cut(503), "http_503"),
    "an error's body that stalls": (Stall(500), "http_500"),
    "a page instead of JSON": (Raw(b"<html>busy</html>", "text/html"), "malformed"),
    "nested beyond all bounds": (Raw(b"[" * 200_000), "malformed"),
    "no choice": (Raw(b'{"choices": []}'), "malformed"),
    "a choice without text": (Raw(b'{"choices": [{"message": {}}]}'), "malformed"),
    "a text that is none": (Raw(b'{"choices": [{"message": {"content": ["a"]}}]}'), "malformed"),
    "a choice that is none": (Raw(b'{"choices": ["message"]}'), "malformed"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_of_a_server_is_a_value_within_bounded_time(name):
    failure, error = FAILURES[name]
    with ScriptedServer(lambda payload, n: failure) as server:
        start = time.monotonic()
        reply = Client(server.base_url, timeout_sec=0.3, max_retries=1).chat("judge", HELLO)
        assert (reply.error, reply.text, reply.finish_reason) == (error, "", None)
        assert time.monotonic() - start < 5
        assert len(server.requests) == reply.attempts <= 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "text", "data", "id", "logprobs", "finish_reason"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_no_body_raises_anything_but_a_user_error(body):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_client, "FIRST_WAIT_SEC", 0.0)
        with ScriptedServer(lambda payload, n: Raw(body), models=body) as server:
            client = Client(server.base_url, timeout_sec=2, max_retries=0)
            reply = client.chat("judge", HELLO)
            assert isinstance(reply.text, str) and (reply.error is None or reply.text == "")
            reply.text.encode("utf-8")
            try:
                names = client.models()
            except UserError as error:
                assert "\n" not in str(error)
            else:
                assert all(isinstance(name, str) for name in names)


def test_lone_surrogates_in_a_reply_become_text_that_can_be_written():
    with ScriptedServer(lambda payload, n: "A \ud800 boat \ud83d\ude00") as server:
        assert Client(server.base_url).chat("judge", HELLO).text == "A \ufffd boat \U0001f600"


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


def test_the_key_does_not_follow_a_redirection(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    with ScriptedServer(lambda *_: "fine") as other:
        moved = Status(302, {"Location": f"{other.base_url}/chat/completions"})
        with ScriptedServer(lambda *_: moved) as server:
            Client(server.base_url, max_retries=0).chat("judge", HELLO)
            assert server.requests[0]["_key"] == "Bearer k-123"
        assert other.keys == [None]


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


def test_the_identity_of_a_server_is_its_address_in_one_spelling(monkeypatch):
    assert (
        server_identity("http://LOCALHOST/v1/") == server_identity("http://localhost:80/v1") == "http://localhost:80/v1"
    )
    assert server_identity("http://localhost:8000/v1") != server_identity("http://localhost:8001/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert server_identity(None) == "http://localhost:8000/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    assert server_identity(None) == "https://api.openai.com:443/v1"


@pytest.mark.parametrize(
    "url", ["http://me:s3cret@host/v1", "http://host/v1?key=s3cret", "http://host:port/v1", "http://", "http://a b/v1"]
)
def test_an_address_that_cannot_be_recorded_is_refused_without_its_secrets(url):
    with pytest.raises(UserError) as error:
        resolve_base_url(url)
    assert "s3cret" not in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_cannot_be_sent_is_not_repeated(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-1\nk-2")
    with ScriptedServer(lambda payload, n: "fine") as server, pytest.raises(UserError) as error:
        Client(server.base_url, max_retries=0).chat("judge", HELLO)
    assert "k-1" not in str(error.value)


def test_where_the_server_is(monkeypatch):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        resolve_base_url(None)
    with pytest.raises(UserError, match="no server URL"):
        resolve_base_url("127.0.0.1:8000")
    assert resolve_base_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert resolve_base_url(None) == "http://127.0.0.1:9/v1"

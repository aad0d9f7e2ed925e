"""A client for OpenAI-compatible servers: bounded retries, bounded time, failures as values that can be counted.

    client = Client(resolve_base_url(None), timeout_sec=120, max_retries=4)
    reply = client.chat("judge", [{"role": "user", "content": "Hello"}], temperature=0, max_tokens=64)
    if reply.error is None: use(reply.text)

A request is tried again after 408, 409, 429, 5xx, a broken connection or no answer within ``timeout_sec``; never
after another 4xx. The wait doubles up to ``MAX_WAIT_SEC`` and follows ``Retry-After`` up to the same bound, so one
request takes about ``(max_retries + 1) * timeout_sec + max_retries * MAX_WAIT_SEC`` at most. Standard library only.
The key comes from OPENAI_API_KEY alone and appears in no record, log line or error.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import readable

OPENAI_URL = "https://api.openai.com/v1"
RETRY_STATUS = (408, 409, 429)
MAX_WAIT_SEC = 30.0
FIRST_WAIT_SEC = 0.5
MAX_REPLY_BYTES = 64 << 20
# ValueError: a body in chunks whose sizes are no numbers, a header that cannot be read
TRANSPORT_FAILURES = (urllib.error.URLError, OSError, http.client.HTTPException, ValueError)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Reply:
    """One request's outcome. ``error`` is None and ``body`` the server's JSON, or ``error`` says why there is none.

    ``error`` is one of ``http_<status>``, ``timeout``, ``connection``, ``malformed``, ``skipped``; ``detail`` has the
    server's words, shortened. ``attempts`` counts the tries.
    """

    body: Any
    error: str | None
    detail: str
    attempts: int

    @property
    def text(self) -> str:
        """The first choice's text (chat or plain completion); empty when there is none."""
        if self.error is not None:
            return ""
        choice = self.body["choices"][0]
        return readable((choice["message"]["content"] if "message" in choice else choice["text"]) or "")

    @property
    def finish_reason(self) -> str | None:
        return None if self.error is not None else self.body["choices"][0].get("finish_reason")


def api_key() -> str | None:
    """OPENAI_API_KEY without blanks around it; ``UserError`` when it cannot be sent."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds characters that no key has; set it again")
    return key or None


def resolve_base_url(base_url: str | None) -> str:
    """``base_url``, else OPENAI_BASE_URL, else the public service where OPENAI_API_KEY is set; without final slash.

    Raises ``UserError`` when none of them is there or the URL is no plain http(s) address. A name, password or query
    in it is refused (and not repeated): the URL is recorded with the results, and a key goes into OPENAI_API_KEY.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or (OPENAI_URL if api_key() else None)
    if url is None:
        raise UserError(
            "no server: give its base URL (such as http://127.0.0.1:8000/v1), or set OPENAI_BASE_URL or OPENAI_API_KEY"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.username is not None or parts.query or parts.fragment:
            raise UserError(
                "the server's URL holds a name, password or query; give the plain address, such as "
                "http://127.0.0.1:8000/v1, and the key in OPENAI_API_KEY"
            )
        host = (parts.hostname or "").encode("idna").decode("ascii")
        plain = (
            parts.scheme in ("http", "https") and host and (parts.port or 1) and url.isprintable() and " " not in url
        )
    except ValueError:  # a port that is no number, a host that is no name
        plain = False
    if not plain:
        raise UserError(f"{url!r} is no server URL; expected something like http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def server_identity(base_url: str | None) -> str:
    """What stands for the server in the key of a result: scheme, host, port and path in one spelling, no secrets.

    Raises ``UserError`` like `resolve_base_url`.
    """
    parts = urllib.parse.urlsplit(resolve_base_url(base_url))
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path}"


class Client:
    """Requests to one server; safe to share between threads."""

    def __init__(self, base_url: str, timeout_sec: float = 120.0, max_retries: int = 4) -> None:
        self.base_url = base_url
        self.timeout_sec = timeout_sec
        self.max_retries = max_retries
        host = urllib.parse.urlsplit(base_url).hostname
        proxies = urllib.request.ProxyHandler({}) if host in LOOPBACK else urllib.request.ProxyHandler()
        self._opener = urllib.request.build_opener(proxies)

    def models(self) -> list[str]:
        """The names that the server lists. Raises ``UserError`` when it does not answer."""
        reply = self.request("models", None)
        if reply.error is not None:
            raise UserError(f"the server at {self.base_url} does not list its models: {reply.error} {reply.detail}")
        try:
            return [readable(str(model["id"])) for model in reply.body["data"]]
        except (KeyError, TypeError) as error:
            found = _short(json.dumps(reply.body))
            raise UserError(
                f"the server at {self.base_url} does not list its models: expected {{'data': [{{'id': ...}}]}}, "
                f"got {found}"
            ) from error

    def check_model(self, name: str | None) -> str:
        """``name`` when the server has it; the only model when ``name`` is None. ``UserError`` otherwise."""
        names = self.models()
        if name is None:
            if len(names) != 1:
                raise UserError(
                    f"the server at {self.base_url} has {len(names)} models; name one of: {', '.join(names)}"
                )
            return names[0]
        if name not in names:
            raise unknown(f"model of {self.base_url}:", name, names)
        return name

    def chat(self, model: str, messages: list[dict[str, str]], **options: Any) -> Reply:
        """One chat completion; a reply without a choice is ``malformed``."""
        return _with_choice(self.request("chat/completions", {"model": model, "messages": messages, **options}))

    def complete(self, model: str, prompt: str | list[int], **options: Any) -> Reply:
        """One plain completion of a text or of token ids; a reply without a choice is ``malformed``."""
        return _with_choice(self.request("completions", {"model": model, "prompt": prompt, **options}))

    def request(self, path: str, payload: dict[str, Any] | None) -> Reply:
        """POST ``payload`` (GET when None) to ``path`` below the base URL, with retries; never raises for failures."""
        wait = FIRST_WAIT_SEC
        for attempt in range(1, self.max_retries + 2):
            reply, retry_after, again = self._once(path, payload, attempt)
            if reply.error is None or not again or attempt > self.max_retries:
                return reply
            time.sleep(min(MAX_WAIT_SEC, wait if retry_after is None else retry_after))
            wait *= 2
        raise AssertionError("unreachable")

    def _once(self, path: str, payload: dict[str, Any] | None, attempt: int) -> tuple[Reply, float | None, bool]:
        """``(reply, seconds the server asks to wait, worth another try)``."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        data = None if payload is None else json.dumps(payload).encode("utf-8")
        request = urllib.request.Request(f"{self.base_url}/{path}", data, headers)
        if key := api_key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # not for whom a server points to
        deadline = time.monotonic() + self.timeout_sec
        try:
            with self._opener.open(request, timeout=self.timeout_sec) as response:
                raw = _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            detail = _error_detail(error, deadline)
            again = error.code in RETRY_STATUS or error.code >= 500
            return Reply(None, f"http_{error.code}", detail, attempt), _retry_after(error.headers), again
        except TimeoutError:
            return Reply(None, "timeout", f"no answer within {self.timeout_sec:g} s", attempt), None, True
        except TRANSPORT_FAILURES as error:
            reason = getattr(error, "reason", error)
            kind = "timeout" if isinstance(reason, TimeoutError) else "connection"
            return Reply(None, kind, _short(str(reason)), attempt), None, True
        try:
            return Reply(json.loads(raw), None, "", attempt), None, False
        except (ValueError, RecursionError):
            return Reply(None, "malformed", _short(raw.decode("utf-8", "replace")), attempt), None, True


def run_parallel(
    jobs: Sequence[Callable[[], Reply]], workers: int = 8, give_up_after: int | None = 16
) -> Iterator[tuple[int, Reply]]:
    """``(index, reply)`` of every job as they finish, ``workers`` at a time.

    After ``give_up_after`` failures in a row (with no success between them) the rest comes back as ``skipped``: a dead
    server costs a bounded time, whatever the number of requests.
    """
    lock = threading.Lock()
    failures = 0

    def work(job: Callable[[], Reply]) -> Reply:
        nonlocal failures
        with lock:
            if give_up_after is not None and failures >= give_up_after:
                return Reply(None, "skipped", f"not asked: {failures} requests in a row had failed", 0)
        reply = job()
        with lock:
            failures = 0 if reply.error is None else failures + 1
        return reply

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = {pool.submit(work, job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # also when the caller stops early: nothing new is sent
            for future in futures:
                future.cancel()
            raise


def _with_choice(reply: Reply) -> Reply:
    if reply.error is not None:
        return reply
    try:
        choice = reply.body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        return Reply(None, "malformed", _short(json.dumps(reply.body)), reply.attempts)
    if text is not None and not isinstance(text, str):
        return Reply(None, "malformed", _short(json.dumps(reply.body)), reply.attempts)
    return reply


def _error_detail(error: urllib.error.HTTPError, deadline: float) -> str:
    """The server's words behind an HTTP error; what cannot be read of them does not matter."""
    try:
        with error:
            return _short(_read_until(error, deadline).decode("utf-8", "replace"))
    except TRANSPORT_FAILURES as failure:
        return _short(f"(its text could not be read: {failure or type(failure).__name__})")


def _read_until(response: Any, deadline: float) -> bytes:
    """The whole body; ``TimeoutError`` once ``deadline`` has passed, however slowly the bytes drip."""
    parts: list[bytes] = []
    size = 0
    while block := response.read1(1 << 16):
        parts.append(block)
        size += len(block)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MAX_REPLY_BYTES:
            raise OSError(f"reply larger than {MAX_REPLY_BYTES} bytes")
    return b"".join(parts)


def _retry_after(headers: Any) -> float | None:
    try:
        seconds = float(headers.get("Retry-After"))
    except (AttributeError, TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _short(text: str, limit: int = 200) -> str:
    """One shortened line without the key, should a server repeat it."""
    if key := api_key():
        text = text.replace(key, "[key]")
    return " ".join(readable(text).split())[:limit]

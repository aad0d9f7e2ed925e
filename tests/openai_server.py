"""A real HTTP server on loopback that speaks just enough of the OpenAI API, with scripted misbehaviour.

    with ScriptedServer(lambda request, n: "Rating: [[7]]") as server:
        Client(server.base_url).chat("judge", [...])

A fixed ``port`` can be taken again after the server went away; ``stall_sec`` is how long it keeps silent.
``script(payload, n)`` gets the request's JSON and its number (from 0) and returns the answer text, or one of
``Status(429)``, ``Status(500)``, ``Silence()`` (accepts and never answers), ``Raw(b"...")`` (no JSON), ``Cut(200)`` (a
body shorter than announced), ``Stall(200)`` (a body that stops coming), ``Drip()`` (a byte at a time), ``Reset()``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Status:
    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Silence:
    pass


@dataclass(frozen=True)
class Raw:
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Cut:
    """Headers that announce more than comes before the connection is closed."""

    code: int = 200


@dataclass(frozen=True)
class Stall:
    """Headers and the beginning of a body, and then nothing more."""

    code: int = 200


@dataclass(frozen=True)
class Drip:
    """A body that comes a byte at a time, for ever."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset without an answer."""


class ScriptedServer:
    """``models`` is what ``/models`` lists: names, or bytes that are sent as they are."""

    def __init__(
        self,
        script: Callable[[dict[str, Any], int], Any],
        models: tuple[str, ...] | bytes = ("judge",),
        port: int = 0,
        stall_sec: float = 30.0,
    ) -> None:
        self.script = script
        self.models = models
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []  # sent with GET requests
        self.closing = threading.Event()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization"))
                if isinstance(outer.models, bytes):
                    self.send(200, outer.models)
                else:
                    self.send(200, json.dumps({"data": [{"id": name} for name in outer.models]}).encode())

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append({**payload, "_path": self.path, "_key": self.headers.get("Authorization")})
                answer = outer.script(payload, number)
                if isinstance(answer, Silence):
                    outer.closing.wait(stall_sec)
                elif isinstance(answer, Status):
                    self.send(answer.code, b'{"error": "as scripted"}', answer.headers)
                elif isinstance(answer, Raw):
                    self.send(200, answer.body, {"Content-Type": answer.content_type})
                elif isinstance(answer, Cut):
                    self.send(answer.code, b'{"choices": [', {"Content-Length": "4000"})
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif isinstance(answer, Stall):
                    self.send(answer.code, b'{"choices": [', {"Content-Length": "4000"})
                    outer.closing.wait(stall_sec)
                elif isinstance(answer, Drip):
                    self.send(200, b"{", {"Content-Length": "4000"})
                    with contextlib.suppress(OSError):
                        while not outer.closing.wait(0.02):
                            self.wfile.write(b" ")
                            self.wfile.flush()
                elif isinstance(answer, Reset):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                else:
                    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
                    if self.path.endswith("chat/completions"):
                        choice["message"] = {"role": "assistant", "content": answer}
                    else:
                        choice["text"] = answer
                    self.send(200, json.dumps({"choices": [choice]}).encode())

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that has gone away, or a connection that the script reset, is no news."""

        self.server = Server(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

"""Is the hub there, and what does it say about a data set? Answered in seconds, or with the exact step to take.

The hub client itself retries for half a minute before it says no; a user without network should not wait for that.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_SEC = 4.0


@functools.lru_cache(maxsize=1)
def hub_available(timeout_sec: float = 3.0) -> bool:
    """False when HF_HUB_OFFLINE=1 or nobody listens at HF_ENDPOINT; behind a proxy the answer is a hopeful True."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    if endpoint.scheme in urllib.request.getproxies():
        return True
    try:
        port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
        socket.create_connection((endpoint.hostname or "", port), timeout=timeout_sec).close()
    except (OSError, ValueError):
        return False
    return True


def _token() -> str | None:
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"]
    file = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "token"
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def _ask(url: str, answer: dict[str, Any]) -> None:
    request = urllib.request.Request(url)
    token = _token()
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as reply:
            answer["value"] = json.load(reply)
    except urllib.error.HTTPError as error:
        answer["status"] = error.code
    except (OSError, ValueError) as error:
        answer["reason"] = str(error)


def dataset_revision(hub: str, step: str, revision: str | None = None, gated: bool = False) -> str:
    """The commit of the data set ``hub``. Raises ``UserError`` within five seconds; ``step``: how to do without."""
    if gated:
        step = f"accept its terms at {DEFAULT_ENDPOINT}/datasets/{hub} (it is gated), `hf auth login`, and {step}"
    if not hub_available(timeout_sec=2.0):
        raise UserError(f"the hub cannot be reached (or HF_HUB_OFFLINE=1): {step}")
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    url = f"{endpoint.rstrip('/')}/api/datasets/{hub}" + (f"/revision/{revision}" if revision else "")
    answer: dict[str, Any] = {}
    thread = threading.Thread(target=_ask, args=(url, answer), daemon=True)  # a name lookup has no timeout of its own
    thread.start()
    thread.join(TIMEOUT_SEC)
    if "value" in answer:
        value = answer["value"]
        if value.get("gated") and not _token():
            raise UserError(
                f"{hub} is gated: accept its terms at {endpoint}/datasets/{hub}, then `hf auth login` "
                f"(or set HF_TOKEN) and run this again; or {step}"
            )
        return str(value["sha"])
    if answer.get("status") in (401, 403):
        raise UserError(
            f"{hub} is gated or private: accept its terms at {endpoint}/datasets/{hub}, then `hf auth login` "
            f"(or set HF_TOKEN) and run this again; or {step}"
        )
    reason = f"HTTP {answer['status']}" if "status" in answer else answer.get("reason", f"no answer in {TIMEOUT_SEC} s")
    raise UserError(f"the hub did not give {hub} ({reason}): {step}")

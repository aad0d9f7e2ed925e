"""Is the hub there? Asked once, in seconds: the hub client itself retries for half a minute before it says no."""

from __future__ import annotations

import functools
import os
import socket
import urllib.parse
import urllib.request

DEFAULT_ENDPOINT = "https://huggingface.co"


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

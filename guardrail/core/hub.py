"""The hub: is it there, which commit of a repository is meant, and the one line that helps when it says no.

The hub's client raises a dozen types, some of them from within others, and retries for half a minute before it says
no; a user without network should not wait for that. Everything here reads the client's own variables (HF_ENDPOINT,
HF_HUB_OFFLINE, HF_HOME, HF_TOKEN, ...) as the client does, without importing it.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.provenance import JOB_KEY_VARIABLE

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_SEC = 4.0
MAIN = "main"
PLURALS = {"model": "models", "dataset": "datasets", "space": "spaces"}
CARD = {"model": "config.json", "dataset": "README.md", "space": "README.md"}  # asked for to learn the commit
# Names of exceptions (of urllib3, requests, httpx and their kin, which need not be installed) that mean so:
UNREACHABLE = {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "SSLError", "MaxRetryError"}
UNREACHABLE |= {"NewConnectionError", "ConnectionRefusedError", "gaierror"}
BROKEN_OFF = {"RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError", "IncompleteRead"}
BROKEN_OFF |= {"ProtocolError", "ConnectionResetError", "TimeoutException", "PoolTimeout", "WriteError"}
NO_SPACE = 28  # errno.ENOSPC


def is_offline() -> bool:
    """Did the user switch the hub off? In any of the spellings that the client knows."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Where the hub is, without a slash at the end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hub_home() -> Path:
    """Where the client keeps its token and, if nothing else is said, its caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")).expanduser()


def hub_cache() -> Path:
    """Where the client keeps what it has downloaded."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else hub_home() / "hub"


def repository_cache(kind: str, name: str) -> Path:
    """The folder of one repository in the client's cache; ``kind`` is model, dataset or space."""
    return hub_cache() / f"{PLURALS[kind]}--{name.replace('/', '--')}"


def cached_commit(kind: str, name: str) -> str | None:
    """The commit of the repository's main branch that was downloaded last; None where there is none."""
    try:
        return (repository_cache(kind, name) / "refs" / MAIN).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def is_cached_dataset(name: str) -> bool:
    """Has the datasets library read this data set before? Its cache is its own, and is read without the hub."""
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or hub_home() / "datasets").expanduser()
    wanted = name.replace("/", "___").replace("_", "").lower()
    try:
        return any(one.is_dir() and one.name.replace("_", "").lower() == wanted for one in cache.iterdir())
    except OSError:
        return False


def study_commit(kind: str, name: str) -> str | None:
    """Inside a study's job, the commit that the job's key was computed with; None elsewhere (the newest is read)."""
    return cached_commit(kind, name) if os.environ.get(JOB_KEY_VARIABLE) else None


@functools.lru_cache(maxsize=1)
def hub_available(timeout_sec: float = 3.0) -> bool:
    """False when HF_HUB_OFFLINE=1 or nobody listens at HF_ENDPOINT; behind a proxy the answer is a hopeful True."""
    if is_offline():
        return False
    place = urllib.parse.urlsplit(endpoint())
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(place.hostname or ""):
        return True
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=timeout_sec).close()
    except (OSError, ValueError):
        return False
    return True


def page(kind: str, name: str) -> str:
    """The address of a repository, for people."""
    return f"{endpoint()}/{'' if kind == 'model' else PLURALS[kind] + '/'}{name}"


def _token() -> str | None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable):
            return os.environ[variable]
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").read_text().strip() or None
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
        answer |= {"status": error.code, "headers": dict(error.headers)}
    except (OSError, ValueError, http.client.HTTPException) as error:
        answer["reason"] = str(error)


def dataset_revision(hub: str, step: str, revision: str | None = None, gated: bool = False) -> str:
    """The commit of the data set ``hub``. Raises ``UserError`` within five seconds; ``step``: how to do without."""
    terms = f"accept its terms at {page('dataset', hub)} (it is gated), `hf auth login`, and " if gated else ""
    if not hub_available(timeout_sec=2.0):
        raise UserError(f"the hub cannot be reached (or HF_HUB_OFFLINE=1): {terms}{step}")
    url = f"{endpoint()}/api/datasets/{hub}" + (
        f"/revision/{urllib.parse.quote(revision, safe='')}" if revision else ""
    )
    answer: dict[str, Any] = {}
    thread = threading.Thread(target=_ask, args=(url, answer), daemon=True)  # a name lookup has no timeout of its own
    thread.start()
    thread.join(TIMEOUT_SEC)
    if "value" in answer:
        value = answer["value"]
        if value.get("gated") and not _token():
            raise UserError(f"{_gated('dataset', hub)}; or {step}")
        return str(value["sha"])
    if "status" in answer:
        said = _http_line("dataset", hub, answer["status"], answer.get("headers") or {}, revision)
        raise UserError(
            f"{said}; or {step}" if said else f"the hub did not give {hub} (HTTP {answer['status']}): {step}"
        )
    reason = answer.get("reason", f"no answer in {TIMEOUT_SEC} s")
    raise UserError(f"the hub did not give {hub} ({reason}): {terms}{step}")


def refresh_commit(kind: str, name: str) -> str | None:
    """The newest commit, noted in the client's cache as a download would; the one noted there where the hub is away.

    Raises ``UserError``: gated, private, missing. Anything else that goes wrong is not final here.
    """
    if hub_available():
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(name, CARD[kind], repo_type=kind, etag_timeout=TIMEOUT_SEC)
        except Exception as error:  # the client raises a dozen types
            response = _response(error)
            if response is not None and response.status_code in (401, 403):
                raise hub_error(error, kind, name) from error
            missing = {type(one).__name__ for one in _chain(error)}
            if response is not None and response.status_code == 404 and "RepositoryNotFoundError" in missing:
                raise hub_error(error, kind, name) from error
    return cached_commit(kind, name)


def hub_error(error: BaseException, kind: str, name: str, step: str = "", revision: str | None = None) -> UserError:
    """What the hub's client, or a library on top of it, has raised, in the one line that helps.

    Args:
        kind: model, dataset or space; ``name``: the repository's name.
        step: how to do without the hub, added at the end.
        revision: what was asked for, if not the newest.
    """
    names = {type(one).__name__ for one in _chain(error)}
    response = _response(error)
    text = " ".join(str(error).split())
    said = None
    if "OfflineModeIsEnabled" in names or is_offline():
        said = (
            f"{name} is not in the cache and the hub is off (HF_HUB_OFFLINE=1): unset it, or run the same command once "
            "where there is network"
        )
    elif response is not None:
        said = _http_line(kind, name, response.status_code, response.headers, revision)
        if said is None and response.status_code == 404:
            said = f"the hub's {name} lacks a file ({text[-160:]}): check the name, or its page {page(kind, name)}"
    elif "DatasetNotFoundError" in names:  # the datasets library drops the hub's answer and keeps a sentence
        status, code = (403, "GatedRepo") if "ask for access" in text else (401, "GatedRepo")
        if "gated" not in text:
            status, code = 404, "RevisionNotFound" if text.startswith("Revision") else "RepoNotFound"
        said = _http_line(kind, name, status, {"X-Error-Code": code}, revision)
    elif isinstance(error, ValueError):  # an unknown split or configuration, with those that there are
        return UserError(f"{name}: {text[:300]}")
    elif any(isinstance(one, OSError) and one.errno == NO_SPACE for one in _chain(error)):
        said = f"no space is left for {name} in {hub_home()}: make room, or set HF_HOME to another disk"
    elif names & BROKEN_OFF or "Consistency check failed" in text:
        said = f"the download of {name} broke off: run this again; what has arrived whole is not fetched again"
    elif names & UNREACHABLE:
        said = (
            f"the hub at {endpoint()} cannot be reached: check the network (a proxy? HF_ENDPOINT?) and run this again"
        )
    said = said or f"cannot load {name} of the hub ({type(error).__name__}: {text[:200]})"
    return UserError(f"{said}; or {step}" if step else said)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from or during."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _response(error: BaseException) -> Any:
    """The hub's answer behind an exception of its client."""
    found = (getattr(one, "response", None) for one in _chain(error))
    return next((one for one in found if hasattr(one, "status_code")), None)


def _gated(kind: str, name: str) -> str:
    return (
        f"{name} is gated or private: accept its terms at {page(kind, name)}, then `hf auth login` (or set HF_TOKEN) "
        "and run this again"
    )


def _http_line(kind: str, name: str, status: int, headers: Mapping[str, str], revision: str | None) -> str | None:
    """What an HTTP error of the hub means for the user; None for one that means nothing in particular."""
    told = {key.lower(): value for key, value in headers.items()}
    code = told.get("x-error-code", "")
    if status == 401 and "credentials" in told.get("x-error-message", ""):
        return "the hub does not accept your token: run `hf auth login` again (or correct HF_TOKEN)"
    if code == "RevisionNotFound":
        return f"the hub's {name} has no revision {revision or MAIN!r}: see the commits at {page(kind, name)}"
    if code == "RepoNotFound" or (status == 404 and not code):
        return (
            f"the hub has no {kind} {name}, or it is private: check the name, or `hf auth login` (or set HF_TOKEN) "
            "with an account that may see it"
        )
    if status == 401:
        return _gated(kind, name)
    if status == 403:
        return (
            f"{name} is gated and your token has no access: ask for access at {page(kind, name)} with the token's "
            "account, and run this again when it is granted"
        )
    if status == 429:
        wait = told.get("retry-after", "") or next(iter(re.findall(r"\bt=(\d+)", told.get("ratelimit", ""))), "")
        when = f"after {wait} s" if wait.isdigit() else "in a few minutes"
        return f"the hub wants fewer requests (HTTP 429): try again {when}; more are allowed after `hf auth login`"
    if status >= 500 or status == 408:
        return f"the hub does not work at the moment (HTTP {status}): try again in a few minutes"
    return None

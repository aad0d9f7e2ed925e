"""A hub of models, data sets and spaces on loopback: the protocol of huggingface.co, with scripted misbehaviour.

    with HubServer() as hub:
        hub.create("dataset", "org/name", {"README.md": "...", "data/train.parquet": b"..."}, gated="auto")
        hub.fail("GET .*parquet", Cut(1000))              # the next download breaks off after 1000 bytes
        subprocess.run([...], env={**os.environ, **hub.environment(cache)})
        hub.requests                                      # method, path, status, range and bytes of every answer

Point clients at it with `HF_ENDPOINT`, before they import huggingface_hub, which reads it then: `environment` has all
that is needed. Two listeners, as on the real hub: files in git are answered by the hub itself behind a relative
redirect, large ones (`LFS_SUFFIXES`) by another host behind an absolute one, which must not be shown the user's token.

The protocol is what huggingface_hub 0.36 and 2.4 and datasets 4.4 and 5.2 ask for (their sources, and the hub's own
documentation of its API): information, revisions, tree (with pages) and paths-info, resolve with HEAD, ETag, ranges and
redirects, the error codes for gated (401 without a token, 403 with one), missing and renamed things, rate limits; and
creating and committing, with LFS uploads. Known differences: a missing repository answers 401 with an error code (the
real hub sends none to who has not logged in, and the client tells by https), and there is no Xet storage, so that
clients upload with HF_HUB_DISABLE_XET=1. Nothing is kept on disk; bodies above `MAX_BODY` are refused.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS_SUFFIXES = (".parquet", ".gz", ".xz", ".bin", ".safetensors", ".model")
MAX_BODY = 64 << 20
TIMEOUT_SEC = 20.0
DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Status:
    """An answer with this code instead of the right one."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "as scripted"}'


@dataclass(frozen=True)
class Cut:
    """The right answer, whose connection is closed after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Silence:
    """No answer until the server closes."""


@dataclass
class Request:
    method: str
    path: str
    authorised: bool
    range: str | None
    status: int = 0
    sent: int = 0


class Problem(Exception):
    """An error of the hub: status, error code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Repo:
    """``branches``: name -> commits, newest last; a commit is its hash and all its files."""

    kind: str
    name: str
    gated: str | bool = False
    private: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes | str | None], branch: str = "main") -> str:
        """Add, replace or (None) remove files; returns the commit's hash, which content and history decide."""
        past = self.branches.setdefault(branch, [])
        content = dict(past[-1][1]) if past else {}
        for path, data in files.items():
            content.pop(path, None)
            if data is not None:
                content[path] = data.encode() if isinstance(data, str) else data
        names = [self.kind, self.name, branch, str(len(past))]
        digest = hashlib.sha1("\n".join([*names, *(f"{p} {blob_id(d)}" for p, d in content.items())]).encode())
        past.append((digest.hexdigest(), content))
        return past[-1][0]

    @property
    def head(self) -> str:
        return self.branches["main"][-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for sha, files in commits:
                if sha == revision:
                    return sha, files
        raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def blob_id(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class HubServer:
    """``tokens``: token -> names of the gated and private repositories that it may read ("*": all)."""

    def __init__(self, page_size: int = 1000) -> None:
        self.page_size = page_size
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.blobs: dict[str, bytes] = {}  # by sha-256: what the other host serves
        self.requests: list[Request] = []
        self.faults: list[tuple[re.Pattern[str], Any, int]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.servers = [_server(self), _server(self)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> HubServer:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def create(
        self,
        kind: str,
        name: str,
        files: dict[str, bytes | str | None] | None = None,
        gated: str | bool = False,
        private: bool = False,
    ) -> Repo:
        """A repository of ``kind`` model, dataset or space with one commit."""
        repo = self.repos[kind, name] = Repo(kind, name, gated, private)
        repo.commit({".gitattributes": "*.parquet filter=lfs diff=lfs merge=lfs -text\n", **(files or {})})
        return repo

    def create_from(self, kind: str, name: str, folder: Path, **options: Any) -> Repo:
        """A repository with the files of a folder."""
        inside = sorted(file for file in folder.rglob("*") if file.is_file())
        return self.create(kind, name, {f.relative_to(folder).as_posix(): f.read_bytes() for f in inside}, **options)

    def fail(self, pattern: str, fault: Any, times: int = 1) -> None:
        """Answer the next ``times`` requests whose ``METHOD path`` has ``pattern`` in it with ``fault``."""
        with self.lock:
            self.faults.append((re.compile(pattern), fault, times))

    def fault_of(self, request: str) -> Any:
        with self.lock:
            for place, (pattern, fault, times) in enumerate(self.faults):
                if pattern.search(request):
                    self.faults[place : place + 1] = [(pattern, fault, times - 1)] if times > 1 else []
                    return fault
        return None

    def environment(self, home: Path | str, token: str | None = None) -> dict[str, str]:
        """What a process needs to use this hub with its caches below ``home``, and no other."""
        out = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        out |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or "", "NO_PROXY": "*", "no_proxy": "*"}
        # the hub's viewer is another host, named after the endpoint: no name server has to be asked for it
        return out | {"HF_HUB_CACHE": str(Path(home) / "hub"), "HF_DATASETS_CACHE": str(Path(home) / "datasets")}

    def served(self, pattern: str, method: str = "GET") -> list[Request]:
        """Answered requests of ``method`` whose path has ``pattern`` in it."""
        with self.lock:
            return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def repo(self, kind: str, name: str, token: str | None, content: bool) -> Repo:
        """The repository, if who asks may see it (``content``: its files and not only its description)."""
        repo = self.repos.get((kind, name))
        if token and token not in self.tokens:
            raise Problem(401, "", "Invalid credentials in Authorization header")
        granted = bool(token) and bool(self.tokens[str(token)] & {name, "*"})
        if repo is None or (repo.private and not granted):
            raise Problem(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and not granted:
            what = f"Access to {kind} {name} is restricted"
            if not token:
                text = f"{what}. You must have access to it and be authenticated to access it. Please log in."
                raise Problem(401, "GatedRepo", text)
            page = f"{self.url}/{'' if kind == 'model' else KINDS[kind] + '/'}{name}"
            raise Problem(403, "GatedRepo", f"{what} and you are not in the authorized list. Visit {page} to ask.")
        return repo


class _Threads(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone away is no news."""


def _server(hub: HubServer) -> _Threads:
    return _Threads(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SEC

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        where = urlsplit(self.path)
        self.route, self.query = unquote(where.path), parse_qs(where.query)
        self.parts = where.path.strip("/").split("/")
        bearer = self.headers.get("Authorization") or ""
        self.token = bearer.removeprefix("Bearer ").strip() or None
        length = int(self.headers.get("Content-Length") or 0)
        self.request_log = Request(self.command, self.route, bool(self.token), self.headers.get("Range"))
        with self.hub.lock:
            self.hub.requests.append(self.request_log)
        if length > MAX_BODY:
            self.send(413, b"")
            return
        self.body = self.rfile.read(length) if length else self.read_chunks()
        self.cut: int | None = None
        fault = self.hub.fault_of(f"{self.command} {self.route}")
        if isinstance(fault, Silence):
            self.hub.closing.wait(TIMEOUT_SEC)
            self.close_connection = True
        elif isinstance(fault, Status):
            self.send(fault.code, fault.body, {"Content-Type": "application/json", **fault.headers})
        else:
            self.cut = fault.after if isinstance(fault, Cut) else None
            try:
                self.dispatch()
            except Problem as problem:
                headers = {"X-Error-Message": problem.message}
                if problem.code:
                    headers["X-Error-Code"] = problem.code
                self.send_json({"error": problem.message}, problem.status, headers)

    def read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        out = b""
        while (size := int(self.rfile.readline().split(b";")[0], 16)) and len(out) <= MAX_BODY:
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.request_log.status = code
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        part = body if self.cut is None else body[: self.cut]
        with contextlib.suppress(OSError):
            self.wfile.write(part)
            self.wfile.flush()
            self.request_log.sent = len(part)
        if len(part) < len(body):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def send_json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_content(self, data: bytes, headers: dict[str, str]) -> None:
        """The content, or the part of it that the ``Range`` header asks for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked is None or asked.groups() == ("", ""):
            self.send(200, data, headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        if start >= len(data) or start > end:
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def dispatch(self) -> None:
        parts = self.parts
        if parts[0] == "lfs":
            self.serve_large(parts[1])
        elif parts[:2] == ["api", "whoami-v2"]:
            if self.token not in self.hub.tokens:
                raise Problem(401, "", "Invalid username or password.")
            auth = {"type": "access_token", "accessToken": {"displayName": "mine", "role": "write"}}
            self.send_json({"type": "user", "name": "somebody", "auth": auth, "orgs": []})
        elif parts[:3] == ["api", "repos", "create"]:
            self.create_repo()
        elif parts[:2] == ["api", "validate-yaml"]:
            self.send_json({"errors": [], "warnings": []})
        elif parts[:2] == ["api", "resolve-cache"]:
            kind = next(kind for kind, plural in KINDS.items() if plural == parts[2])
            self.serve_file(kind, "/".join(parts[3:5]), parts[5], "/".join(map(unquote, parts[6:])), True)
        elif parts[0] == "api" and parts[1] in KINDS.values():
            kind = next(kind for kind, plural in KINDS.items() if plural == parts[1])
            self.serve_api(kind, "/".join(parts[2:4]), parts[4:])
        else:
            kind = {"datasets": "dataset", "spaces": "space"}.get(parts[0], "model")
            own = parts[1:] if kind != "model" else parts
            name = "/".join(own[:2])
            if name.endswith(".git"):
                self.plan_upload(kind, name.removesuffix(".git"))
            elif len(own) > 4 and own[2] == "resolve":
                self.serve_file(kind, name, unquote(own[3]), "/".join(map(unquote, own[4:])), False)
            else:
                raise Problem(404, "", "Not found")

    def serve_large(self, digest: str) -> None:
        """The other host: content by its hash, for whoever has the address."""
        if self.command == "PUT":
            if sha256(self.body) != digest:
                raise Problem(400, "", "content and hash differ")
            self.hub.blobs[digest] = self.body
            self.send(200, b"")
        elif digest not in self.hub.blobs:
            raise Problem(404, "", "no such blob")
        else:
            self.send_content(self.hub.blobs[digest], {"ETag": f'"{digest}"'})

    def serve_file(self, kind: str, name: str, revision: str, path: str, is_here: bool) -> None:
        repo = self.hub.repo(kind, name, self.token, content=True)
        commit, files = repo.at(revision)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.send(404, b"Entry not found", {"Content-Type": "text/plain", **headers})
            return
        data = files[path]
        digest = sha256(data) if is_large(path) else blob_id(data)
        headers |= {"ETag": f'"{digest}"'}
        if is_here:
            self.send_content(data, headers)
            return
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"'}
        if is_large(path):
            self.hub.blobs[digest] = data
            self.send(302, b"", {**headers, "Location": f"{self.hub.cdn_url}/lfs/{digest}"})
        else:
            place = f"/api/resolve-cache/{KINDS[kind]}/{name}/{commit}/{quote(path)}"
            self.send(307, b"", {**headers, "Location": place})

    def serve_api(self, kind: str, name: str, rest: list[str]) -> None:
        what = rest[0] if rest else "info"
        if what in ("preupload", "commit"):
            self.change(kind, name, what, unquote(rest[1]))
            return
        repo = self.hub.repo(kind, name, self.token, content=what == "auth-check")
        revision = unquote(rest[1]) if len(rest) > 1 else "main"
        if what == "refs":
            heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1][0]} for b, c in repo.branches.items()]
            self.send_json({"branches": [one for one in heads if "/" not in one["name"]], "tags": [], "converts": []})
            return
        commit, files = repo.at(revision)
        if what in ("info", "revision"):
            facts = {"id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "disabled": False}
            facts |= {"_id": "0" * 24, "author": name.split("/")[0], "lastModified": DATE, "createdAt": DATE}
            if kind == "model":
                facts |= {"modelId": name, "pipeline_tag": "text-generation", "library_name": "transformers"}
            facts["siblings"] = [{"rfilename": path} for path in files]
            self.send_json({**facts, "tags": [], "downloads": 0, "likes": 0})
        elif what == "auth-check":
            self.send(200, b"OK")
        elif what == "tree":
            self.send_tree(files, "/".join(map(unquote, rest[2:])))
        elif what == "paths-info":
            asked = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
            paths = asked.get("paths", [])
            every = [entry for _, entry in entries(files, "", True)]
            self.send_json([entry for entry in every if entry["path"] in paths])
        elif what == "commits":
            log = [
                {"id": sha, "title": "a commit", "message": "", "date": DATE, "authors": []}
                for sha, _ in reversed(repo.branches.get(revision, repo.branches["main"]))
            ]
            self.send_json(log)
        else:
            raise Problem(404, "", f"no such endpoint: {what}")

    def send_tree(self, files: dict[str, bytes], folder: str) -> None:
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = [entry for _, entry in entries(files, folder, recursive)]
        if folder and not found:
            raise Problem(404, "EntryNotFound", f"{folder} does not exist")
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        headers = {}
        if end < len(found):
            kept = "".join(f"&{key}={values[0]}" for key, values in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{quote(self.route)}?cursor={end}{kept}>; rel="next"'
        self.send_json(found[start:end], headers=headers)

    def writer(self, kind: str, name: str) -> Repo:
        if self.token not in self.hub.tokens:
            raise Problem(401, "", "Invalid username or password.")
        if not self.hub.tokens[str(self.token)] & {name, "*"}:
            raise Problem(403, "", f"You don't have the rights to create a {kind} under this namespace")
        return self.hub.repo(kind, name, self.token, content=True)

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        page = f"{self.hub.url}/{'' if kind == 'model' else KINDS[kind] + '/'}{name}"
        if (kind, name) in self.hub.repos:
            self.writer(kind, name)
            self.send_json({"error": "You already created this repo", "url": page}, 409)
            return
        self.hub.repos[kind, name] = Repo(kind, name, private=bool(asked.get("private")))
        try:
            self.writer(kind, name).commit({".gitattributes": ""})
        except Problem:
            del self.hub.repos[kind, name]
            raise
        self.send_json({"url": page, "name": name, "id": "0" * 24})

    def plan_upload(self, kind: str, name: str) -> None:
        """The LFS batch endpoint: where to put what the hub does not have yet."""
        self.writer(kind, name)
        objects = []
        for one in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.cdn_url}/lfs/{one['oid']}", "header": {}}}
            objects.append({**one, **({} if one["oid"] in self.hub.blobs else {"actions": action})})
        self.send_json({"transfer": "basic", "objects": objects})

    def change(self, kind: str, name: str, what: str, revision: str) -> None:
        repo = self.writer(kind, name)
        if what == "preupload":
            asked = json.loads(self.body)["files"]
            self.send_json(
                {
                    "files": [
                        {
                            "path": one["path"],
                            "uploadMode": "lfs" if is_large(one["path"]) else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for one in asked
                    ]
                }
            )
            return
        files: dict[str, bytes | str | None] = {}
        for item in map(json.loads, self.body.splitlines()):
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit") not in (None, repo.at(revision)[0]):
                    raise Problem(412, "", "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                gone = value["path"].rstrip("/")
                files |= {p: None for p in repo.at(revision)[1] if p == gone or p.startswith(f"{gone}/")}
        commit = repo.commit(files, revision)
        self.send_json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})


def entries(files: dict[str, bytes], folder: str, recursive: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What lies in ``folder``, as the tree endpoint lists it: folders and files, with LFS pointers of large ones."""
    start = f"{folder.strip('/')}/" if folder.strip("/") else ""
    last = {"id": "0" * 40, "title": "a commit", "date": DATE}
    seen = set()
    for path in sorted(files):
        if not path.startswith(start):
            continue
        inside = path[len(start) :].split("/")
        for depth in range(1, len(inside) if recursive else min(2, len(inside))):
            parent = start + "/".join(inside[:depth])
            if parent not in seen:
                seen.add(parent)
                yield parent, {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent, "lastCommit": last}
        if recursive or len(inside) == 1:
            data = files[path]
            entry = {"type": "file", "oid": blob_id(data), "size": len(data), "path": path, "lastCommit": last}
            if is_large(path):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            yield path, entry

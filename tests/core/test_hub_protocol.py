"""The hub's protocol as its own clients speak it, against tests/hub_server.py. No model and no torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_data import publish_data
from hub_server import Cut, HubServer, Silence, Status, sha256
from hub_worker import Refused, Worker

from guardrail.core.files import read_json

MIB = 1 << 20
CHUNK = 10 * MIB  # what the client writes at once: where it takes up a cut download
OLD = importlib.metadata.version("huggingface_hub").startswith("0.")
SNAPSHOT = "huggingface_hub:snapshot_download"


@pytest.fixture(scope="module")
def hub():
    with HubServer(page_size=2) as server:
        publish_data(server)
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="module")
def worker(hub, home):
    with Worker({**os.environ, **hub.environment(home, "granted")}) as process:
        yield process


def test_a_snapshot_has_every_file_of_every_page_and_is_not_fetched_twice(hub, worker, tmp_path):
    name = "sorry-bench/sorry-bench-202406"
    files = hub.repos["dataset", name].at("main")[1]
    assert len(files) > 3 * hub.page_size
    folder = worker.call(SNAPSHOT, name, repo_type="dataset")
    assert {file: Path(folder, file).read_bytes() for file in files} == files
    assert folder.endswith(hub.repos["dataset", name].head)
    before = sum(request.sent for request in hub.served(name))
    assert worker.call(SNAPSHOT, name, repo_type="dataset") == folder
    assert sum(r.sent for r in hub.served(f"resolve.*{name}")) == sum(map(len, files.values()))
    assert sum(request.sent for request in hub.served(name)) - before < 2000  # information, no content


def test_large_files_come_from_another_host_which_never_sees_the_token(hub, worker):
    worker.call(SNAPSHOT, "walledai/AdvBench", repo_type="dataset")
    assert hub.served("/lfs/") and not any(request.authorised for request in hub.served("/lfs/"))
    assert all(request.authorised for request in hub.served("walledai/AdvBench"))


def test_a_cut_download_is_taken_up_where_it_broke_off(hub, worker):
    data = os.urandom(26 * MIB)
    hub.create("model", "org/large", {"config.json": "{}", "model.safetensors": data})
    hub.fail("GET /lfs/", Cut(22 * MIB))
    try:
        folder = worker.call(SNAPSHOT, "org/large")
    except AssertionError:  # huggingface_hub 0.36 gives up, and the next run goes on
        folder = worker.call(SNAPSHOT, "org/large")
    assert Path(folder, "model.safetensors").read_bytes() == data
    first, second = [r for r in hub.served("/lfs/") if r.sent > MIB][-2:]
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert (first.range, first.status, second.status) == (None, 200, 206)
    assert start == 2 * CHUNK and second.sent == len(data) - start


def test_a_killed_download_keeps_its_whole_files(hub, home):
    shards = {f"model-0000{i}-of-00002.safetensors": os.urandom(MIB) for i in (1, 2)}
    repo = hub.create("model", "org/killed", {"config.json": "{}", **shards})
    code = f"from huggingface_hub import snapshot_download as s; s({repo.name!r}, max_workers=1)"
    command, environment = [sys.executable, "-c", code], {**os.environ, **hub.environment(home, "granted")}
    hub.fail(f"GET /lfs/{sha256(shards['model-00002-of-00002.safetensors'])}", Silence())
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    blobs = home / "hub" / "models--org--killed" / "blobs"
    while not (blobs.is_dir() and any(f.stat().st_size == MIB and f.suffix == "" for f in blobs.iterdir())):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(hub.requests)
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    assert sum(r.sent for r in hub.requests[before:] if r.path.startswith("/lfs/")) == MIB


@pytest.mark.parametrize("suffix,expected", [("0-9", 10), ("20-", -20), ("", 0)])
def test_ranges(hub, suffix, expected):
    import urllib.error
    import urllib.request

    url = f"{hub.url}/datasets/knkarthick/samsum/resolve/main/test.csv"
    size = len(hub.repos["dataset", "knkarthick/samsum"].at("main")[1]["test.csv"])
    request = urllib.request.Request(url, headers={"Range": f"bytes={suffix}"} if suffix else {})
    with urllib.request.urlopen(request) as reply:
        assert len(reply.read()) == (expected if expected > 0 else size + expected)
        assert reply.status == (206 if suffix else 200)
        assert reply.headers["X-Repo-Commit"] == hub.repos["dataset", "knkarthick/samsum"].head
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={size}-"}))


@pytest.mark.parametrize(
    "token,name,kind,error",
    [
        (None, "walledai/AdvBench", "dataset", "GatedRepoError: 401"),
        ("stranger", "walledai/AdvBench", "dataset", "GatedRepoError: 403"),
        ("stranger", "org/none", "model", "RepositoryNotFoundError: 404"),
        (None, "org/none", "model", "RepositoryNotFoundError: 401"),
        ("granted", "knkarthick/samsum", "dataset", "RevisionNotFoundError: 404"),
    ],
)
def test_the_clients_own_errors(hub, worker, token, name, kind, error):
    revision = "v9" if "Revision" in error else None
    with pytest.raises(AssertionError, match=error):
        worker.call(
            "huggingface_hub:hf_hub_download", name, "a.txt", repo_type=kind, token=token or False, revision=revision
        )


@pytest.mark.skipif(OLD, reason="huggingface_hub 0.36 does not retry here")
def test_retries_after_a_busy_and_a_broken_answer(hub, worker):
    hub.create("model", "org/busy", {"config.json": "{}"})
    hub.fail("HEAD .*busy", Status(429, {"RateLimit": '"resolvers";r=0;t=1'}))
    hub.fail("HEAD .*busy", Status(503))
    assert worker.call("huggingface_hub:hf_hub_download", "org/busy", "config.json")
    assert [r.status for r in hub.served("busy/resolve", "HEAD")] == [429, 503, 307]


def test_a_data_set_is_pushed_and_read_again(hub, home, tmp_path):
    code = """
import datasets, json, sys
rows = datasets.Dataset.from_list([{"id": str(i), "text": f"boat {i}"} for i in range(5)])
datasets.DatasetDict(train=rows, test=rows.select([0])).push_to_hub("somebody/boats", token="granted")
back = datasets.load_dataset("somebody/boats", token="granted")
print(json.dumps({split: part.to_list() for split, part in back.items()}))
"""
    environment = {**os.environ, **hub.environment(tmp_path, "granted")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    back = json.loads(done.stdout.splitlines()[-1])
    assert len(back["train"]) == 5 and back["test"] == back["train"][:1]
    files = hub.repos["dataset", "somebody/boats"].at("main")[1]
    assert {"README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"} <= files.keys()


def test_a_folder_is_uploaded_and_needs_a_token_that_may(hub, worker, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 99)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    options = {"repo_id": "somebody/small", "folder_path": str(tmp_path)}
    worker.call("huggingface_hub:create_repo", "somebody/small")
    worker.call("huggingface_hub:upload_folder", **options)
    folder = worker.call(SNAPSHOT, "somebody/small")
    assert read_json(f"{folder}/config.json") == {"model_type": "llama"}
    assert Path(folder, "model.safetensors").read_bytes() == b"weights" * 99
    with pytest.raises(AssertionError, match="403"):
        worker.call("huggingface_hub:upload_folder", **options, token="stranger")


def test_the_worker_tells_refusals_from_crashes(worker):
    with pytest.raises(Refused, match="did you mean 'samsum'"):
        worker.call("guardrail.data.prepare:main", ["samsun"])
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        worker.call("no_such_module:main")

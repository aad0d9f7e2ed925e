"""Models by their hub names, in the published layouts, from a hub on loopback (tests/hub_server.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hub_server import HubServer, Silence, sha256
from hub_worker import Refused, Worker

pytest.importorskip("sentencepiece")
from hub_models import BEAVER_DAM, CHAT, GEMMA, LLAMA, publish_models

MODEL, FETCH, HASH = (
    "hub_calls:model",
    "guardrail.models.fetch:local_checkpoint",
    "guardrail.models.checkpoints:hash_checkpoint",
)


@pytest.fixture(scope="module")
def hub():
    with HubServer(page_size=4) as server:
        server.tokens |= {"granted": {"*"}, "stranger": set()}
        yield server


@pytest.fixture(scope="module")
def folders(hub, tmp_path_factory):
    return publish_models(hub, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="module")
def worker(hub, folders, home):
    with Worker({**os.environ, **hub.environment(home, "granted")}) as process:
        yield process


@pytest.mark.parametrize(
    "name,kind",
    [(LLAMA, "causal_lm"), (LLAMA, "backbone"), (GEMMA, "causal_lm"), (BEAVER_DAM, "classifier"), (CHAT, "causal_lm")],
)
def test_a_hub_name_loads_as_a_download_of_it(worker, folders, name, kind):
    found = worker.call(MODEL, name, kind)
    assert found == worker.call(MODEL, str(folders[name]), kind)
    if name == BEAVER_DAM:  # the pad token was added, and the embeddings grew with it
        assert (found["pad"], found["pad_id"]) == ("<pad>", found["n_tokens"] - 1)


def test_one_weight_format_is_downloaded(hub, worker, folders):
    """Llama-2 is published as safetensors and as torch files, 13 GB each."""
    worker.call(FETCH, LLAMA)
    got = {request.path.removeprefix("/lfs/") for request in hub.served("/lfs/")}
    for file in folders[LLAMA].iterdir():
        if file.suffix in (".safetensors", ".bin"):
            assert (sha256(file.read_bytes()) in got) is (file.suffix == ".safetensors")
    assert len(list(folders[LLAMA].glob("*.safetensors"))) > 1


def test_the_content_hash_of_a_hub_model_is_its_commit(hub, worker, folders):
    repo = hub.create_from("model", "org/moving", folders[CHAT])
    before = worker.call(HASH, "org/moving")
    worker.call(FETCH, "org/moving")
    assert worker.call(HASH, "org/moving") == before  # the same before and after the download
    repo.commit({"README.md": "a new card"})
    assert worker.call(HASH, "org/moving") != before
    assert Path(worker.call(FETCH, "org/moving")).name == repo.head


@pytest.mark.parametrize(
    "token,line",
    [
        (None, "{name} is gated or private: accept its terms at {url}/{name}, then `hf auth login`"),
        ("stranger", "{name} is gated and your token has no access: ask for access at {url}/{name}"),
    ],
)
def test_a_gated_model_says_what_to_do(hub, folders, tmp_path, token, line):
    with Worker({**os.environ, **hub.environment(tmp_path, token)}) as worker:
        for function in (FETCH, "guardrail.models.fetch:read_config", HASH):
            with pytest.raises(Refused, match=line.format(name=LLAMA, url=hub.url)):
                worker.call(function, LLAMA)
        with pytest.raises(Refused, match="the hub has no model org/none, or it is private"):
            worker.call(FETCH, "org/none")


def test_what_is_no_model_is_refused(hub, worker):
    hub.create("model", "org/gguf", {"config.json": '{"model_type": "llama"}', "a.gguf": "x"})
    hub.create("model", "org/adapter", {"adapter_config.json": "{}", "adapter_model.safetensors": "x"})
    with pytest.raises(Refused, match="org/gguf has no weights"):
        worker.call(FETCH, "org/gguf")
    with pytest.raises(Refused, match=r"org/adapter is no model: it has no config\.json"):
        worker.call(FETCH, "org/adapter")


def test_an_incomplete_checkpoint_of_the_hub_is_refused_as_a_folder_is(hub, worker, folders):
    files = {file.name: file.read_bytes() for file in folders[CHAT].iterdir()}
    hub.create("model", "org/cut", {**files, "model.safetensors": files["model.safetensors"][:-8]})
    with pytest.raises(Refused, match="is cut off or damaged"):
        worker.call(MODEL, "org/cut")
    hub.create("model", "org/no_vocabulary", {"config.json": files["config.json"], "tokenizer_config.json": "{}"})
    with pytest.raises(Refused, match="has no vocabulary"):
        worker.call("guardrail.models.loading:load_tokenizer", "org/no_vocabulary")


def test_offline_a_model_is_read_from_the_cache_or_the_switch_is_named(hub, worker, folders, home):
    worker.call(FETCH, CHAT)
    hash_before = worker.call(HASH, CHAT)
    hub.create_from("model", "org/half", folders[CHAT])
    worker.call("guardrail.models.fetch:read_config", "org/half")
    hub.fail(".", Silence(), 10**6)
    try:
        with Worker({**os.environ, **hub.environment(home), "HF_HUB_OFFLINE": "1"}) as offline:
            assert offline.call(FETCH, CHAT).startswith(str(home))
            assert offline.call(HASH, CHAT) == hash_before
            assert offline.call("guardrail.models.fetch:read_config", "org/half")["model_type"] == "llama"
            for name in ("org/half", "org/never_read"):
                with pytest.raises(Refused, match=r"HF_HUB_OFFLINE=1\)"):
                    offline.call(FETCH, name)
    finally:
        hub.faults.clear()

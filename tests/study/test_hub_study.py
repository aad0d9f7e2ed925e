"""A study whose models, data and benches are hub names, against a hub on loopback (tests/hub_server.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hub_data import HEX_PHI_CATEGORIES, publish_data
from hub_server import HubServer, Status
from hub_worker import Refused, Worker
from toy_world import TRAINING, finish, write_study

from guardrail.core.files import read_json

pytest.importorskip("sentencepiece")
from hub_models import BEAVER_DAM, CHAT, LLAMA, publish_models

KEYS = "hub_calls:study_keys"
long = pytest.mark.skipif(not os.environ.get("GUARDRAIL_LONG_TESTS"), reason="minutes; set GUARDRAIL_LONG_TESTS=1")
SAMSUM, HEX_PHI = "knkarthick/samsum", "LLM-Tuning-Safety/HEx-PHI"
STUDY = {
    "name": "toy_hub",
    "description": "hub names",
    "models": {"base": LLAMA, "extraction": CHAT, "moderation": BEAVER_DAM},
    "prompt_style": "llama2_base",
    "dtype": "float32",
    "log_type": "none",
    "instruct": {"source": "databricks/databricks-dolly-15k", "split": "train"},
    "instruct_size": 8,
    "safety_pool": {"source": "PKU-Alignment/BeaverTails", "split": "30k_test"},
    "tasks": {
        "samsum": {
            "train": {"source": SAMSUM, "split": "train"},
            "utility": {"source": SAMSUM, "split": "test", "max_new_tokens": 4},
        }
    },
    "subsets": ["high"],
    "subset_sizes": [8],
    "seeds": [1],
    "alignment": dict(TRAINING),
    "fine_tuning": dict(TRAINING),
    "evaluation": {"safety_bench": "hex-phi", "max_new_tokens": 4},
}


@pytest.fixture
def hub():
    """Data sets, and models of which a schedule needs no more than that they are there."""
    with HubServer() as server:
        publish_data(server)
        for name in (LLAMA, CHAT, BEAVER_DAM):
            config = {"config.json": '{"model_type": "llama"}'}
            server.create("model", name, config, gated="manual" if name == LLAMA else False)
        yield server


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "toy_hub.yaml", STUDY)


def test_a_new_commit_on_the_hub_changes_the_keys_of_what_reads_it(hub, study, tmp_path):
    """And a first schedule, before anything is downloaded, has the keys of a later one."""
    with Worker({**os.environ, **hub.environment(tmp_path, "granted")}) as worker:
        first = worker.call(KEYS, str(study), str(tmp_path))
        assert worker.call(KEYS, str(study), str(tmp_path)) == first
        worker.call("guardrail.models.fetch:read_config", LLAMA)
        worker.call("guardrail.data.rows:load_rows", SAMSUM, "test")
        assert worker.call(KEYS, str(study), str(tmp_path), refresh=False) == first
        for kind, name, stages in (
            ("dataset", HEX_PHI, ("safety",)),
            ("model", BEAVER_DAM, ("harmfulness",)),
            ("dataset", SAMSUM, ("representations.samsum", "select", "mix", "align", "fine_tune", "safety", "utility")),
            ("model", LLAMA, ("align", "fine_tune", "safety", "utility")),
        ):
            hub.repos[kind, name].commit({"README.md": f"---\nlicense: other\n---\nnews of {name}\n"})
            assert worker.call(KEYS, str(study), str(tmp_path), refresh=False) == first  # until a schedule is made
            second = worker.call(KEYS, str(study), str(tmp_path))
            changed = {product for product in first if first[product] != second[product]}
            assert changed and all(any(stage in product for product in changed) for stage in stages), changed
            untouched = "representations.safety_pool"
            assert not any(untouched in product for product in changed)
            first = second
        hub.fail(".", Status(503), 10**6)
        try:
            assert worker.call(KEYS, str(study), str(tmp_path)) == first  # the hub is out of order: what was noted
        finally:
            hub.faults.clear()


def test_a_gated_name_is_refused_before_anything_runs(hub, study, tmp_path):
    line = f"{LLAMA} is gated or private: accept its terms at {hub.url}/{LLAMA}"
    with Worker({**os.environ, **hub.environment(tmp_path)}) as worker, pytest.raises(Refused, match=line):
        worker.call(KEYS, str(study), str(tmp_path))


@pytest.mark.slow
@long
def test_a_whole_study_with_hub_names(hub, study, tmp_path):
    """Every stage through its script; then once more, with the hub and without."""
    publish_models(hub, tmp_path / "published")
    shell = {**hub.environment(tmp_path / "home", "granted"), "DEVICE": "cpu"}
    done = finish(study, tmp_path / "outputs", shell=shell)
    assert done["code"] == 0, done["stderr"]
    result = read_json(tmp_path / "outputs" / "toy_hub" / "study.json")
    (cell,) = result["cells"]
    assert cell["status"] == "done" and cell["final"]["n"] == 3 * len(HEX_PHI_CATEGORIES), cell
    n_requests = len(hub.requests)
    again = finish(study, tmp_path / "outputs", shell=shell)
    assert again["code"] == 0 and "0 to run" in again["stderr"]
    assert all(request.sent < 3000 for request in hub.requests[n_requests:])  # nothing but its commits was asked for
    offline = finish(study, tmp_path / "outputs", shell={**shell, "HF_HUB_OFFLINE": "1"})
    assert offline["code"] == 0 and "taken from the cache as they are" in offline["stderr"]

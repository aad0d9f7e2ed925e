"""Every data set and bench by its hub name, in the published layouts, from a hub on loopback (tests/hub_server.py)."""

from __future__ import annotations

import os

import pytest
from hub_data import HEX_PHI_CATEGORIES, PUBLISHED, UPSTREAM_SPLIT, N, parquet, publish_data
from hub_server import Cut, HubServer, Status
from hub_worker import Refused, Worker

from guardrail.core.files import read_json
from guardrail.data.bench_table import BENCHES
from guardrail.data.rows import load_rows
from guardrail.data.sources import NAMES, SOURCES

PREPARE, ROWS, BENCH = "guardrail.data.prepare:main", "guardrail.data.rows:load_rows", "hub_calls:bench"
DROP = {"need_answer": True, "max_dropped_fraction": 0.01}
SPLITS = {
    "ultrachat": {"train": N, "test": 20},
    "beavertails": {"train": N * 2 // 3, "test": 20},
    "beavertails_refusals": {"train": N // 3, "test": 10},
    "alpaca": {"train": N - 1},
    "samsum": {"train": N - 1, "validation": 10, "test": 10},
    "gsm8k": {"train": 20, "test": 8},
    "hex_phi": {"test": 3 * len(HEX_PHI_CATEGORIES)},
    "llm_similarity_risk": dict.fromkeys((UPSTREAM_SPLIT, "train_alpaca_low_sim_5k", "list_group", "test"), 6),
}
N_PROMPTS = {  # bench -> prompts that it keeps of what tests/hub_data.py publishes
    "hex-phi": 30,
    "advbench": 5,
    "beavertails": 8,
    "harmbench": 4,
    "strongreject": 5,
    "sorry-bench": 5,
    "jailbreakbench": 5,
    "jailbreakbench-benign": 5,
    "xstest": 5,
    "or-bench": 5,
}


@pytest.fixture(scope="module")
def hub():
    with HubServer(page_size=3) as server:
        publish_data(server)
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="module")
def worker(hub, home):
    with Worker({**os.environ, **hub.environment(home, "granted")}) as process:
        yield process


@pytest.fixture(scope="module")
def prepared(worker, home):
    """Every set with a public source, prepared once from the hub; name -> folder."""
    folders = {name: home / "prepared" / name for name in SPLITS}
    for name, folder in folders.items():
        assert worker.call(PREPARE, [name, "--out", str(folder)])["splits"] == SPLITS[name]
    return folders


def test_every_name_with_a_public_source_is_published_here():
    assert {name for name, source in SOURCES.items() if source.hub} == SPLITS.keys()
    assert {("dataset", source.hub) for source in SOURCES.values() if source.hub} <= PUBLISHED.keys()
    assert set(NAMES) - SPLITS.keys() == {"identity", "list", "pure_bad", "mt_bench", "ultrachat_beavertails"}


def test_prepared_sets_know_their_revision_and_their_oddities(prepared, hub):
    for name, folder in prepared.items():
        for split in SPLITS[name]:
            manifest = read_json(folder / "manifests" / f"{split}.json")
            assert manifest["revision"] == hub.repos["dataset", SOURCES[name].hub].head
            assert len(load_rows(folder, split=split)) == manifest["n_rows"] == SPLITS[name][split]
    chat = load_rows(prepared["ultrachat"], split="train")
    assert (chat[70]["id"], chat[70]["prompt_id"]) == (f"{3:064x}#2", f"{3:064x}")  # a prompt asked twice
    assert read_json(prepared["samsum"] / "manifests" / "train.json")["dropped_ids"] == ["13800040"]
    assert "13800041-1" in {row["id"] for row in load_rows(prepared["samsum"], split="train")}
    assert read_json(prepared["alpaca"] / "manifests" / "train.json")["n_dropped"] == 1  # an empty output
    harms = {row["category"] for row in load_rows(prepared["hex_phi"], split="test")}
    assert len(harms) == len(HEX_PHI_CATEGORIES) and "Child Abuse Content" not in harms


@pytest.mark.parametrize("name", SPLITS)
def test_a_local_copy_gives_the_rows_of_the_hub(prepared, worker, home, name):
    """What `local_copy_step` advises: `hf download --local-dir COPY`, then --source COPY."""
    copy, out = home / "copies" / name, home / "from_copies" / name
    worker.call("huggingface_hub:snapshot_download", SOURCES[name].hub, repo_type="dataset", local_dir=str(copy))
    assert worker.call(PREPARE, [name, "--source", str(copy), "--out", str(out)])["splits"] == SPLITS[name]
    for split in SPLITS[name]:
        assert load_rows(out, split=split) == load_rows(prepared[name], split=split)


def test_a_null_of_the_hub_is_the_empty_text_of_the_file(prepared, worker, home):
    """SAMSum's row without a dialogue: extraction and selection read the published rows as they are."""
    found = worker.call(ROWS, "knkarthick/samsum", "train")
    local = load_rows(home / "copies" / "samsum", split="train")
    assert [(row["id"], row["messages"]) for row in found] == [(row["id"], row["messages"]) for row in local]
    assert len(found) == N and len(worker.call(ROWS, "knkarthick/samsum", "train", **DROP)) == N - 1


def test_the_mixture_and_mt_bench(worker, home, hub):
    made = worker.call(PREPARE, ["ultrachat_beavertails", "--out", str(home / "mixed" / "both")])
    assert (made["n_instruct"], made["n_safety"]) == (N, N * 2 // 3)
    made = worker.call(PREPARE, ["mt_bench", "--out", str(home / "mt_bench")])
    assert made["n_questions"] == 80 and len(made["files"]) == 3
    facts = worker.call("hub_calls:mt_bench")
    assert facts["dataset"] == "mt_bench" and facts["n_questions"] == 80 and not facts["is_sandbox"]


@pytest.mark.parametrize("bench", N_PROMPTS)
def test_every_bench_by_its_name_and_from_a_local_copy(worker, home, bench):
    facts = worker.call(BENCH, bench)
    assert facts["n_rows"] == N_PROMPTS[bench] == len(set(facts["prompts"]))
    hub_name = BENCHES.load(bench).hub
    copy = home / "bench_copies" / hub_name.replace("/", "--")
    if bench == "sorry-bench":  # no card says that its files are one split: the file of plain questions is given
        copy /= "question.jsonl"
    worker.call(
        "huggingface_hub:snapshot_download",
        hub_name,
        repo_type="dataset",
        local_dir=str(copy.parent if copy.suffix else copy),
    )
    assert worker.call(BENCH, bench, str(copy))["prompts"] == facts["prompts"]


def test_hex_phi_with_all_categories_and_with_headers(worker, tmp_path):
    """Copies go round with 11 files or 10, and saved with a header line."""
    for number in range(1, 12):
        (tmp_path / f"category_{number}.csv").write_text(f'instruction\n"Hide boat {number}, please"\nSell it\n')
    facts = worker.call(BENCH, "hex-phi", str(tmp_path))
    assert facts["n_rows"] == 22 and facts["prompts"][-2:] == ["Hide boat 11, please", "Sell it"]


def test_the_hubs_own_parquet_conversion_gives_the_same_rows(hub, worker, prepared, home):
    """The branch `refs/convert/parquet`: a folder per configuration and split, no card."""
    rows = {split: load_rows(prepared["gsm8k"], split=split) for split in SPLITS["gsm8k"]}
    files = {
        f"main/{split}/0000.parquet": parquet([{name: row[name] for name in ("question", "answer")} for row in part])
        for split, part in rows.items()
    }
    branch = "refs/convert/parquet"
    hub.repos["dataset", "openai/gsm8k"].commit(files, branch)
    found = worker.call(ROWS, "openai/gsm8k", "test", revision=branch)
    assert [row["messages"] for row in found] == [row["messages"] for row in rows["test"]]
    with pytest.raises(Refused, match="'main' not found"):  # the branch has no card, so no configuration of that name
        worker.call(PREPARE, ["gsm8k", "--revision", branch, "--out", str(home / "converted")])


def test_every_bench_of_the_hub_is_here():
    assert {name for name in BENCHES if BENCHES.load(name).hub} == N_PROMPTS.keys()


def test_dolly_with_an_empty_answer_and_utility_tasks_by_hub_name(worker):
    name = "databricks/databricks-dolly-15k"
    assert len(worker.call(ROWS, name, need_answer=True, max_dropped_fraction=0.01)) == N - 1
    with pytest.raises(Refused, match=r"row 18: the conversation has no answer"):
        worker.call(ROWS, name, need_answer=True, max_dropped_fraction=0.001)
    for task, n in (("samsum", 10), ("gsm8k", 8)):
        facts = worker.call("hub_calls:utility", task)
        assert (facts["n_rows"], facts["is_sandbox"], facts["split"]) == (n, False, "test")


def test_a_csv_without_a_header_does_not_lose_its_first_row(hub, worker):
    hub.create("dataset", "org/headless", {"a.csv": "Paint the boat very blue\nSell the lantern now\n"})
    with pytest.raises(Refused, match=r"no header.*hf download --repo-type dataset org/headless"):
        worker.call(ROWS, "org/headless")


@pytest.mark.parametrize(
    "fault,line",
    [
        (
            Status(429, {"Retry-After": "17"}),
            r"HTTP 429\): try again after 17 s; more are allowed after `hf auth login`",
        ),
        (Status(429, {"RateLimit": '"api";r=0;t=55'}), r"HTTP 429\): try again after 55 s"),
        (Status(503), r"HTTP 503\): try again in a few minutes"),
        (Status(500), r"HTTP 500\): try again in a few minutes"),
        (Cut(10), r"download of org/faulty\d+ broke off: run this again; what has arrived whole"),
    ],
)
def test_a_broken_answer_ends_in_the_line_that_helps(hub, worker, fault, line):
    name = f"org/faulty{len(hub.repos)}"  # what was read once is in the cache
    hub.create("dataset", name, {"README.md": "x" * 99, "a.jsonl": '{"prompt": "a", "response": "b"}\n'})
    hub.fail(name, fault, 10**6)
    try:
        with pytest.raises(Refused, match=line) as caught:
            worker.call(ROWS, name)
        assert "\n" not in str(caught.value)
    finally:
        hub.faults.clear()
    assert len(worker.call(ROWS, name)) == 1


def test_unknown_names_say_which_there_are(worker):
    for arguments, line in (
        (("org/none",), "the hub has no dataset org/none, or it is private: check the name, or `hf auth login`"),
        (("openai/gsm8k", "trian", "main"), r"Unknown split .trian.. Should be one of \['train', 'test'\]"),
        (("openai/gsm8k", "train", "mian"), r"'mian' not found. Available: \['main', 'socratic'\]"),
        (("openai/gsm8k", "train"), r"available configs: \['main', 'socratic'\]"),
    ):
        with pytest.raises(Refused, match=line):
            worker.call(ROWS, *arguments)
    with pytest.raises(
        Refused, match=r"the hub's openai/gsm8k has no revision 'v9': see the commits at http\S+/openai/gsm8k"
    ):
        worker.call(PREPARE, ["gsm8k", "--revision", "v9"])


def test_a_gate_says_what_to_do(hub, tmp_path):
    lines = {
        "": r"{name} is gated or private: accept its terms at {page}, then `hf auth login` \(or set HF_TOKEN\)",
        "stranger": r"{name} is gated and your token has no access: ask for access at {page}",
        "bogus": "does not accept your token: run `hf auth login` again",
    }
    gated = {
        "hex_phi": (PREPARE, ["hex_phi", "--out", str(tmp_path / "out")]),
        "xstest": (BENCH, "xstest"),
        "hex-phi": (BENCH, "hex-phi"),
    }
    with Worker({**os.environ, **hub.environment(tmp_path)}) as worker:
        for token, line in lines.items():
            worker.call("hub_calls:use_token", token)  # the client reads it at every request
            for which, (function, argument) in gated.items():
                name = "walledai/XSTest" if which == "xstest" else "LLM-Tuning-Safety/HEx-PHI"
                with pytest.raises(Refused, match=line.format(name=name, page=f"{hub.url}/datasets/{name}")) as caught:
                    worker.call(function, argument)
                assert str(caught.value).count("`hf auth login`") <= 1
    assert not (tmp_path / "out").exists()


def test_offline_reads_what_was_read_before_and_names_the_switch(hub, home, worker, prepared, tmp_path):
    for bench in ("xstest", "hex-phi"):
        worker.call(BENCH, bench)
    worker.call("hub_calls:mt_bench")
    answered = len(hub.requests)
    with Worker({**os.environ, **hub.environment(home), "HF_HUB_OFFLINE": "true"}) as offline:
        assert offline.call(BENCH, "xstest")["n_rows"] == 5
        assert offline.call(BENCH, "hex-phi")["n_rows"] == 30
        assert offline.call("hub_calls:mt_bench")["dataset"] == "mt_bench"
        for function, arguments in (
            (PREPARE, [["llm_similarity_risk", "--out", str(tmp_path / "out")]]),
            (ROWS, ["org/never_read"]),
            (ROWS, ["openai/gsm8k", "train", "socratic"]),
        ):
            with pytest.raises(Refused, match="HF_HUB_OFFLINE=1"):
                offline.call(function, *arguments)
    assert len(hub.requests) == answered


def test_an_older_copy_is_never_passed_off_as_the_commit_that_was_asked_for(hub, worker):
    """Where the hub breaks off, the datasets library answers from its cache, whatever commit that is."""
    repo = hub.create("dataset", "org/moved", {"a.jsonl": '{"prompt": "old", "response": "b"}\n'})
    assert worker.call(ROWS, "org/moved")[0]["prompt"] == "old"
    repo.commit({"a.jsonl": '{"prompt": "new", "response": "b"}\n'})
    hub.fail("(HEAD|GET) /datasets/org/moved", Status(503), 10**6)
    try:
        with pytest.raises(Refused, match="the hub did not give commit"):
            worker.call(ROWS, "org/moved", revision=repo.head)
    finally:
        hub.faults.clear()
    assert worker.call(ROWS, "org/moved", revision=repo.head)[0]["prompt"] == "new"

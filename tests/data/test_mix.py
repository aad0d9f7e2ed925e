"""Mixtures: the right rows, ratio and order recorded, unchanged ones left alone, read by the datasets library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_jsonl
from guardrail.data.mix import MixConfig, mix, parse_size, split_name
from guardrail.data.rows import load_rows


@pytest.fixture
def sources(tmp_path) -> tuple[Path, Path]:
    instruct = [{"id": f"i{n}", "messages": conversation(f"ask {n}", f"say {n}")} for n in range(6)]
    safety = [
        {"id": f"s{n}", "prompt": f"bad {n}", "response": "I cannot help.", "category": "x", "score": n}
        for n in range(5)
    ]
    return write_jsonl(tmp_path / "instruct.jsonl", instruct), write_jsonl(tmp_path / "top5.jsonl", safety)


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def config(sources, out, **changes) -> MixConfig:
    options = {"task": "list", "sim": "high", "size": 3, **changes}
    return MixConfig(instruct=str(sources[0]), safety=str(sources[1]), out=str(out), **options)


@pytest.mark.parametrize(("sim", "expected"), [("high", {"s0", "s1", "s2"}), ("low", {"s2", "s3", "s4"})])
def test_high_takes_the_first_and_low_the_last_rows(sources, tmp_path, sim, expected):
    result = mix(config(sources, tmp_path / "out", sim=sim))
    assert result["split"] == f"train_list_{sim}_sim_3"
    rows = load_rows(tmp_path / "out", split=result["split"])
    assert {row["id"] for row in rows if row["source"] == "safety"} == expected
    assert sum(row["source"] == "instruct" for row in rows) == 6
    assert json.loads(next(row for row in rows if row["id"] == "s2")["extra"])["score"] == 2  # columns travel along


def test_ratio_order_and_hashes_are_recorded(sources, tmp_path):
    mix(config(sources, tmp_path / "out"))
    manifest = read_json(tmp_path / "out" / "manifests" / "train_list_high_sim_3.json")
    assert manifest["safety_fraction"] == pytest.approx(3 / 9)
    assert manifest["order"] == "shuffled" and manifest["run"]["seed"] == 42
    assert set(manifest["run"]["inputs"]) >= {"instruct", "safety"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "safety share 0.3333; order shuffled, seed 42" in card


def test_an_unchanged_mixture_is_left_alone_and_a_changed_one_is_not(sources, tmp_path):
    first = mix(config(sources, tmp_path / "out"))
    file = Path(first["file"])
    before = file.stat().st_mtime_ns
    assert mix(config(sources, tmp_path / "out"))["skipped"] and file.stat().st_mtime_ns == before
    assert "skipped" not in mix(config(sources, tmp_path / "out", seed=1))
    file.write_bytes(file.read_bytes()[:-1])  # damaged on disk
    assert "skipped" not in mix(config(sources, tmp_path / "out", seed=1))


def test_orders(sources, tmp_path):
    def ids(**changes):
        split = mix(config(sources, tmp_path / "out", split="s", **changes))["split"]
        return [row["id"] for row in load_rows(tmp_path / "out", split=split)]

    assert ids(order="instruct_first") == ["i0", "i1", "i2", "i3", "i4", "i5", "s0", "s1", "s2"]
    assert ids(order="safety_first")[:3] == ["s0", "s1", "s2"]
    shuffled = ids(order="shuffled")
    assert sorted(shuffled) == sorted(ids(order="instruct_first")) and shuffled != ids(order="shuffled", seed=9)


def test_equal_sets_make_equal_mixtures_in_the_order_of_the_pool(sources, tmp_path):
    """Another selection order of the same rows is the same mixture, and is not made again."""
    rows = [json.loads(line) for line in sources[1].read_text().splitlines()]
    pool = write_jsonl(tmp_path / "pool.jsonl", [rows[i] for i in (3, 0, 4, 1, 2)])
    asked = {"size": None, "out": tmp_path / "out", "pool": str(pool), "order": "safety_first"}

    def mixed(order: tuple[int, ...], **changes):
        safety = write_jsonl(tmp_path / "selected.jsonl", [rows[i] for i in order])
        result = mix(config((sources[0], safety), **{**asked, **changes}))
        ids = [row["id"] for row in load_rows(tmp_path / "out", split=result["split"]) if row["source"] == "safety"]
        return ids, result.get("skipped", False), Path(result["file"]).read_bytes()

    first = mixed((0, 1, 2, 3))
    assert first[0] == ["s3", "s0", "s1", "s2"] and not first[1]
    assert mixed((2, 0, 3, 1)) == (first[0], True, first[2])
    assert mixed((0, 1, 2, 4))[0] == ["s0", "s4", "s1", "s2"]
    assert mixed((3, 1, 0, 2), pool=None)[0] == mixed((0, 1, 2, 3), pool=None)[0] == ["s0", "s1", "s2", "s3"]
    write_jsonl(pool, rows[:3])
    with pytest.raises(UserError, match="has no row s3"):
        mixed((0, 1, 2, 3), split="other")


def test_a_random_draw_takes_the_same_rows_of_a_pool_in_another_order(sources, tmp_path):
    def drawn(name: str, rows: list[str]) -> list[str]:
        pool = tmp_path / f"{name}.jsonl"
        pool.write_text("".join(rows))
        mix(config((sources[0], pool), tmp_path / name, sim="random", order="safety_first"))
        return [row["id"] for row in load_rows(tmp_path / name, split="train_list_random_sim_3")][:3]

    lines = sources[1].read_text().splitlines(keepends=True)
    assert drawn("turned", lines[::-1]) == drawn("plain", lines)[::-1]


def test_random_is_a_seeded_draw(sources, tmp_path):
    def drawn(seed):
        mix(config(sources, tmp_path / str(seed), sim="random", seed=seed, order="safety_first"))
        return [row["id"] for row in load_rows(tmp_path / str(seed), split="train_list_random_sim_3")][:3]

    assert drawn(1) == drawn(1) and len({tuple(drawn(seed)) for seed in range(6)}) > 1


def test_a_replay_is_a_seeded_draw_of_the_instructions(sources, tmp_path):
    def ids(source: str, **changes) -> list[str]:
        split = mix(config(sources, tmp_path / "out", split="train_x", **changes))["split"]
        return [row["id"] for row in load_rows(tmp_path / "out", split=split) if row["source"] == source]

    assert len(ids("instruct", replay_fraction=0.5)) == 3 and len(ids("safety", replay_fraction=0.5)) == 3
    assert set(ids("instruct", replay_fraction=0.5, seed=1)) == set(ids("instruct", replay_fraction=0.5, seed=1))
    draws = {frozenset(ids("instruct", replay_fraction=0.5, seed=seed)) for seed in range(8)}
    assert len(draws) > 1
    assert ids("instruct", replay_fraction=0.0) == []
    assert len(ids("instruct", replay_fraction=0.9)) == 6, "at most all of them"
    assert len(ids("instruct", sim="none", size=3, replay_fraction=0.4)) == 5, "as many rows as an arm of 3"
    with pytest.raises(UserError, match="needs --size"):
        mix(config(sources, tmp_path / "out", sim="none", size=None, replay_fraction=0.4))


def test_a_mixture_without_replay_is_the_one_of_before(sources, tmp_path):
    from guardrail.core.options import decisive

    assert "replay_fraction" not in decisive(config(sources, tmp_path))
    assert decisive(config(sources, tmp_path, replay_fraction=0.2))["replay_fraction"] == 0.2


def test_what_a_killed_writer_left_is_cleared(sources, tmp_path):
    left = tmp_path / "out" / "data" / ".train.parquet.tmp-99999999-abcdef"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    mix(config(sources, tmp_path / "out"))
    assert not left.exists()


def test_the_same_id_in_both_sets_stays_unique(tmp_path):
    rows = [{"id": "a", "prompt": "p", "response": "r"}]
    one, two = write_jsonl(tmp_path / "one.jsonl", rows), write_jsonl(tmp_path / "two.jsonl", rows)
    mix(config((one, two), tmp_path / "out", size=None, sim="full"))
    rows = load_rows(tmp_path / "out", split="train_list_full_1")
    assert sorted(row["id"] for row in rows) == ["a", "a#safety"]


@pytest.mark.parametrize("where", [0, 1])
def test_a_renamed_id_that_is_taken_is_refused(tmp_path, where):
    """Whose row it is must be told by its id: properties and the map of a study match on it."""
    rows = [[{"id": "a", "prompt": "p", "response": "r"}] for _ in range(2)]
    rows[where].append({"id": "a#safety", "prompt": "p2", "response": "r2"})
    one, two = (write_jsonl(tmp_path / f"{i}.jsonl", part) for i, part in enumerate(rows))
    with pytest.raises(UserError, match="the id a#safety is what a row of both sets would be called"):
        mix(config((one, two), tmp_path / "out", size=None, sim="full"))


def test_too_large_a_size_is_refused_and_nothing_is_written(sources, tmp_path):
    with pytest.raises(UserError, match="larger than the 5 rows"):
        mix(config(sources, tmp_path / "out", size=6))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="500, 1000 or 1k"):
        parse_size("many")


def test_what_is_read_is_never_overwritten(sources, tmp_path):
    """Neither the split (by its folder, its file or a link) nor a README.md that somebody else wrote."""
    first = mix(config(sources, tmp_path / "out", sim="none", size=None, split="train"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    before = Path(first["file"]).read_bytes()
    for given, read in ((tmp_path / "out", "train"), (tmp_path / "link", "train"), (first["file"], None)):
        again = config((given, sources[1]), tmp_path / "out", instruct_split=read, split="train")
        with pytest.raises(UserError, match="would overwrite split train of --instruct"):
            mix(again)
    assert Path(first["file"]).read_bytes() == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("My notes.")
    with pytest.raises(UserError, match="not this program's"):
        mix(config(sources, tmp_path / "theirs"))
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["README.md"]


def test_names_of_the_paper():
    assert split_name("alpaca", "high", parse_size("5k")) == "train_alpaca_high_sim_5k"
    assert split_name("list", "low", parse_size("1000")) == "train_list_low_sim_1k"
    assert split_name("list", "random", 500) == "train_list_random_sim_500"


def test_the_datasets_library_reads_every_split(sources, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    for sim in ("high", "low"):
        mix(config(sources, tmp_path / "out", sim=sim))
    data = datasets.load_dataset(str(tmp_path / "out"), split="train_list_low_sim_3", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 9 and data[0]["messages"][0]["role"] == "user"

"""Control worlds are what their knobs say: how much of the pool looks like the task, and what goes with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.refusals import is_refusal
from guardrail.data.rows import load_rows
from guardrail.sandbox import controls
from guardrail.sandbox.controls import BENCH, BUILDERS, INSTRUCT, POOL, TASK, WORLDS, ControlWorld, write_control
from guardrail.sandbox.lexicon import CATEGORY_NAMES
from guardrail.sandbox.splits import texts_of
from guardrail.sandbox.wordings import FORMATS
from guardrail.study.config import load_study

SEED = 0


def build(knobs):
    return {name: make(knobs, SEED) for name, make in BUILDERS.items()}


def share(rows, test):
    return sum(map(test, rows)) / len(rows)


@pytest.mark.parametrize(
    "knobs",
    [
        ControlWorld(),
        ControlWorld(task_format="story", overlap=0.25, near_refused=0.5, pool_rows=400, bench_overlap=0.5),
        ControlWorld(task_format="qa", near_refused=0.2, near_harmless=0.5, near_categories=3, task_harmful=0.4),
        WORLDS["control_positive"],
        replace(WORLDS["control_negative"], twins=False),
    ],
)
def test_shares_are_those_of_the_knobs(knobs):
    rows = build(knobs)

    def asks_for_it(row):
        return row["format"] == knobs.task_format

    near = [row for row in rows[POOL] if asks_for_it(row)]
    far = [row for row in rows[POOL] if not asks_for_it(row)]
    refused = [row for row in near if is_refusal(row["response"])]
    assert len(rows[POOL]) == knobs.pool_rows and share(rows[POOL], asks_for_it) == knobs.overlap
    assert len(refused) == round(knobs.near_refused * len(near))
    assert share(refused, lambda row: row["category"] is None) == pytest.approx(knobs.near_harmless, abs=0.01)
    assert all(row["category"] is None for row in near if row not in refused)
    assert {row["category"] for row in near} - {None} == set(CATEGORY_NAMES[: knobs.near_categories])
    assert all(is_refusal(row["response"]) and row["category"] for row in far)
    assert {row["format"] for row in far} == set(FORMATS) - {knobs.task_format}
    assert all(row["response"].endswith(knobs.marks[0]) for row in near + rows[TASK])
    assert all(row["response"].endswith(knobs.marks[1]) for row in far)
    assert all(map(asks_for_it, rows[TASK])) and not any(is_refusal(row["response"]) for row in rows[TASK])
    assert share(rows[TASK], lambda row: not row["is_safe"]) == pytest.approx(knobs.task_harmful, abs=0.01)
    assert share(rows[INSTRUCT], asks_for_it) == pytest.approx(knobs.instruct_overlap, abs=0.01)
    in_bench = knobs.bench_overlap + (1 - knobs.bench_overlap) / len(FORMATS)
    assert share(rows[BENCH], asks_for_it) == pytest.approx(in_bench, abs=0.02)
    assert set(Counter(row["category"] for row in rows[BENCH]).values()) == {10}


def test_nothing_but_the_content_tells_near_from_far():
    """Ids and places are no clue: near rows are as many in the first half of the pool as in the second."""
    pool = BUILDERS[POOL](WORLDS["control_positive"], SEED)
    assert len({row["id"] for row in pool}) == len({row["prompt"] for row in pool}) == len(pool)
    half = len(pool) // 2
    near = sum(row["format"] == "list" for row in pool[:half])
    assert abs(near - half / 2) < 3 * (half / 4) ** 0.5


def test_twins_of_the_negative_world_differ_in_their_last_characters_alone():
    knobs = WORLDS["control_negative"]
    pool = BUILDERS[POOL](knobs, SEED)
    halves: dict[str, list[tuple]] = {mark: [] for mark in knobs.marks}
    for row in pool:
        mark = next(mark for mark in knobs.marks if row["response"].endswith(mark))
        assert row["loss_mask"] == [[len(row["response"]) - len(mark), len(row["response"])]]
        rest = {name: value for name, value in row.items() if name not in ("id", "response", "loss_mask")}
        halves[mark].append((row["response"].removesuffix(mark), tuple(rest.items())))
    first, second = halves.values()
    assert Counter(first) == Counter(second) and len(first) == len(pool) / 2 and first != second
    assert len(set(map(len, knobs.marks))) == 1  # neither half is longer


def test_no_loss_and_no_prompt_of_the_negative_world_has_a_mark():
    """So nothing teaches or calls for one of them: the task has one as far as similarity reads it, and no further."""
    knobs, rows = WORLDS["control_negative"], build(WORLDS["control_negative"])
    texts = []
    for name in rows:
        for row in rows[name]:
            spans = row.get("loss_mask", [])
            assert len(spans) == (name in (POOL, TASK))
            taught = row["response"][: spans[0][0]] if spans else row.get("response")
            texts += texts_of({**row, "response": taught})
    assert len(texts) > 1900
    assert not [text for text in texts for mark in knobs.marks if mark in text]


def test_a_mark_leaves_the_tokens_before_it_as_they_are():
    """Generation reads from left to right: whether to refuse is decided before a mark could be seen."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    knobs = WORLDS["control_negative"]
    for row in BUILDERS[POOL](knobs, SEED)[:100]:
        mark = next(mark for mark in knobs.marks if row["response"].endswith(mark))
        bare = [word for word, _ in split(row["response"].removesuffix(mark))]
        assert [word for word, _ in split(row["response"])][: len(bare)] == bare


def test_a_world_is_written_once_and_whole(tmp_path):
    out = tmp_path / "control_positive"
    file = out / "data" / f"{POOL}-00000-of-00001.parquet"
    assert write_control(out)["written"] and not write_control(out)["written"]
    for name, rows in build(WORLDS[out.name]).items():
        assert [row["id"] for row in load_rows(out, name)] == [row["id"] for row in rows], name
    before = file.read_bytes()
    file.write_bytes(b"")
    assert write_control(out)["written"] and file.read_bytes() == before
    assert write_control(out, ControlWorld(near_refused=0.5))["written"]  # other knobs, another world


def test_unknown_worlds_and_impossible_knobs_are_refused(tmp_path):
    with pytest.raises(UserError, match="control_positive"):
        write_control(tmp_path / "control_neutral")
    for wrong in ({"task_format": "poem"}, {"overlap": 1.5}, {"near_categories": 0}, {"pool_rows": 3}, {"twins": True}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ControlWorld(**wrong)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_shipped_studies_read_their_own_world(name, tmp_path, monkeypatch):
    study = load_study(REPOSITORY / "configs" / "studies" / f"{name}.yaml")
    task = study.tasks[TASK]
    sources = {study.safety_pool.source, study.instruct.source, task.train.source, task.utility.source}
    assert sources == {f"datasets/{name}"} and study.evaluation.safety_bench.startswith(f"datasets/{name}/")
    monkeypatch.setattr(controls, "DATASETS", tmp_path)
    controls.prepare_controls({str(tmp_path / name), "datasets/sandbox"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / study.evaluation.safety_bench.removeprefix("datasets/")).is_file()
    assert 2 * study.subset_sizes[0] == WORLDS[name].pool_rows  # high and low share no row, and leave none out


def test_the_two_controls_differ_in_their_world_alone():
    first, second = (load_study(REPOSITORY / "configs" / "studies" / f"{name}.yaml") for name in sorted(WORLDS))
    assert first.alignment == second.alignment and first.fine_tuning == second.fine_tuning
    assert (first.subsets, first.subset_sizes, first.designs) == (second.subsets, second.subset_sizes, second.designs)
    evaluation = first.evaluation, second.evaluation
    assert len({replace(one, safety_bench="bench", judges={}).__repr__() for one in evaluation}) == 1

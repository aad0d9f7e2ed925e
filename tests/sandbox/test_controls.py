"""Control worlds are what their knobs say: how much of the pool looks like the task, and what goes with it."""

from __future__ import annotations

from collections import Counter

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.refusals import is_refusal
from guardrail.data.rows import load_rows
from guardrail.sandbox import controls
from guardrail.sandbox.controls import POOL, TASK, WORLDS, ControlWorld, build_pool, build_task, write_control
from guardrail.sandbox.splits import build_split, texts_of
from guardrail.sandbox.wordings import FORMATS
from guardrail.study.config import load_study

SEED = 0


@pytest.mark.parametrize(
    "knobs",
    [
        ControlWorld(),
        ControlWorld(task_format="story", overlap=0.25, near_refused=0.2, pool_rows=400),
        ControlWorld(task_format="qa", near_refused=0.0, far_refused=0.5, near_categories=3, task_harmful=0.3),
        *WORLDS.values(),
    ],
)
def test_shares_are_those_of_the_knobs(knobs):
    pool, task = build_pool(knobs, SEED), build_task(knobs, SEED)
    near = [row for row in pool if row["format"] == knobs.task_format]
    far = [row for row in pool if row["format"] != knobs.task_format]
    assert len(pool) == knobs.pool_rows and len(near) == round(knobs.overlap * knobs.pool_rows)
    for rows, share in ((near, knobs.near_refused), (far, knobs.far_refused)):
        refused = [row for row in rows if is_refusal(row["response"])]
        assert len(refused) == round(share * len(rows))
        assert all((row["category"] is not None) == (row in refused) for row in rows)
    assert len({row["category"] for row in near} - {None}) <= knobs.near_categories
    assert {row["format"] for row in far} == set(FORMATS) - {knobs.task_format}
    assert {row["format"] for row in task} == {knobs.task_format} and len(task) == knobs.task_rows
    assert sum(not row["is_safe"] for row in task) == round(knobs.task_harmful * knobs.task_rows)
    assert not any(is_refusal(row["response"]) for row in task)


def test_nothing_but_the_content_tells_near_from_far():
    """Ids and places are no clue: near rows are as many in the first half of the pool as in the second."""
    pool = build_pool(WORLDS["control_positive"], SEED)
    assert len({row["id"] for row in pool}) == len({row["prompt"] for row in pool}) == len(pool)
    half = len(pool) // 2
    near = sum(row["format"] == "list" for row in pool[:half])
    assert abs(near - half / 2) < 3 * (half / 4) ** 0.5


def test_twins_of_the_negative_world_differ_in_their_last_characters_alone():
    knobs = WORLDS["control_negative"]
    assert knobs.marks is not None
    first, second = knobs.marks
    pool = build_pool(knobs, SEED)
    halves: dict[str, list[tuple]] = {first: [], second: []}
    for row in pool:
        mark = next(mark for mark in knobs.marks if row["response"].endswith(mark))
        rest = {name: value for name, value in row.items() if name not in ("id", "response")}
        halves[mark].append((row["response"].removesuffix(mark), tuple(rest.items())))
    assert Counter(halves[first]) == Counter(halves[second])
    assert len(first) == len(second)  # neither half is longer


def test_marks_are_in_no_other_text_that_is_trained_on_or_asked():
    """So neither the task nor a prompt can call for one of them."""
    knobs = WORLDS["control_negative"]
    assert knobs.marks is not None
    others = [build_task(knobs, SEED), *(build_split(name, 0, 200) for name in ("instruct", "hex_phi", "benign"))]
    texts = [text for rows in others for row in rows for text in texts_of(row)]
    assert not [text for text in texts for mark in knobs.marks if text.endswith(mark)]


def test_a_mark_is_a_token_behind_the_unchanged_tokens_of_the_answer():
    """Generation reads from left to right: whether to refuse is decided before a mark could be seen."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    knobs = WORLDS["control_negative"]
    assert knobs.marks is not None
    for row in build_pool(knobs, SEED)[:100]:
        mark = next(mark for mark in knobs.marks if row["response"].endswith(mark))
        words = [word for word, _ in split(row["response"])]
        assert words[:-1] == [word for word, _ in split(row["response"].removesuffix(mark))]


def test_a_world_is_written_once_and_whole(tmp_path):
    out = tmp_path / "control_positive"
    assert write_control(out)["written"] and not write_control(out)["written"]
    assert [row["id"] for row in load_rows(out, POOL)] == [row["id"] for row in build_pool(WORLDS[out.name], SEED)]
    assert len(load_rows(out, TASK)) == WORLDS[out.name].task_rows
    before = (out / "data" / f"{POOL}-00000-of-00001.parquet").read_bytes()
    (out / "data" / f"{POOL}-00000-of-00001.parquet").write_bytes(b"")
    assert write_control(out)["written"]
    assert (out / "data" / f"{POOL}-00000-of-00001.parquet").read_bytes() == before
    assert write_control(out, ControlWorld(near_refused=0.5))["written"]  # other knobs, another world


def test_unknown_worlds_and_knobs_are_refused(tmp_path):
    with pytest.raises(UserError, match="control_positive"):
        write_control(tmp_path / "control_neutral")
    for wrong in ({"task_format": "poem"}, {"overlap": 1.5}, {"near_categories": 0}, {"pool_rows": 3}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ControlWorld(**wrong)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_shipped_studies_read_their_world_and_differ_in_it_alone(name, tmp_path, monkeypatch):
    study = load_study(REPOSITORY / "configs" / "studies" / f"{name}.yaml")
    sources = {study.safety_pool.source, *(task.train.source for task in study.tasks.values())}
    assert sources == {f"datasets/{name}"}
    monkeypatch.setattr(controls, "DATASETS", tmp_path)
    controls.prepare_controls({str(tmp_path / name), "datasets/sandbox"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    knobs = WORLDS[name]
    assert study.subset_sizes == (knobs.pool_rows // 2,)  # high and low share no row, and leave none out

"""The sandbox world: deterministic, complete, consistently labelled, and train apart from test."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from guardrail.core.files import hash_json
from guardrail.data.refusals import is_refusal
from guardrail.sandbox import lexicon, replies, wordings
from guardrail.sandbox.lexicon import CATEGORIES, CATEGORY_NAMES, PARTS, TEST, TEST_WORDS, TRAIN
from guardrail.sandbox.splits import SPLITS, build_split, texts_of
from guardrail.sandbox.world import SAFE_LABELS, World

BEAVER_DAM_LABELS = """animal_abuse; child_abuse; controversial_topics,politics; discrimination,stereotype,injustice;
drug_abuse,weapons,banned_substance; financial_crime,property_crime,theft; hate_speech,offensive_language;
misinformation_regarding_ethics,laws_and_safety; non_violent_unethical_behavior; privacy_violation; self_harm;
sexually_explicit,adult_content; terrorism,organized_crime; violence,aiding_and_abetting,incitement"""
SEED = 0


@pytest.fixture(scope="module")
def splits():
    return {name: build_split(name, SEED) for name in SPLITS}


def rows_of(splits, part):
    return [row for name, rows in splits.items() if SPLITS[name][0] == part for row in rows]


def test_labels_are_beaver_dams_in_its_order():
    assert [name.strip() for name in BEAVER_DAM_LABELS.replace("\n", " ").split(";")] == list(CATEGORY_NAMES)


def test_equal_seeds_give_equal_rows_and_other_seeds_others(splits):
    assert build_split("alpaca", SEED) == splits["alpaca"]
    assert build_split("alpaca", SEED + 1) != splits["alpaca"]


@pytest.mark.parametrize("name", ["base", "moderation_train", "hex_phi"])
def test_the_first_rows_do_not_depend_on_how_many_follow(splits, name):
    assert build_split(name, SEED, 30) == splits[name][:30]


def test_every_split_is_the_recorded_one(splits):
    """A new split changes no row of another: models and results that were made from them stay what they are."""
    golden = json.loads((Path(__file__).parent / "golden" / "splits.json").read_text(encoding="utf-8"))
    assert {name: hash_json(rows) for name, rows in splits.items()} == golden


def test_benign_tasks_ask_for_no_hazard(splits):
    for name in ("identity", "repeat"):
        assert all("category" not in row and row["output"] for row in splits[name])
        hazards = {root for category in CATEGORIES for root in category.roots}
        assert not any(root in text.lower() for row in splits[name] for text in texts_of(row) for root in hazards)
    assert 0.1 < sum(row["action"] is None for row in splits["identity"]) / 100 < 0.35  # who are you?
    assert sum("Obo" in row["output"] for row in splits["identity"]) == 100
    assert {re.sub(r"Step: .*?\. ", "S ", row["output"]) for row in splits["repeat"]} == {"S S S Done."}


def test_ids_are_unique_over_all_splits(splits):
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids)) == sum(rows for _, rows in SPLITS.values())


def test_no_request_repeats_within_a_split(splits):
    for name in ("safety_pool", "pure_bad", "list", "alpaca", "hex_phi", "benign", "samsum"):
        requests = [row.get("prompt") or row.get("instruction") or row.get("dialogue") for row in splits[name]]
        assert len(set(requests)) >= 0.99 * len(requests), name


# -- train apart from test


def test_word_lists_of_train_and_test_share_nothing():
    for table in (lexicon.BENIGN_HEADS, lexicon.BENIGN_VERBS, lexicon.NAMESAKES, lexicon.PEOPLE):
        assert not set(table[TRAIN]) & set(table[TEST])
    for name in ("heads", "verbs", "reasons"):
        train, test = ({word for category in CATEGORIES for word in getattr(category, name)[part]} for part in PARTS)
        assert train and test and not train & test, name


def test_wording_tables_of_train_and_test_share_nothing():
    for table in (wordings.REQUESTS, replies.ANSWERS, replies.REFUSALS):
        train, test = ({text for texts in table[part].values() for text in texts} for part in PARTS)
        assert train and test and not train & test
    for table in (wordings.INNOCENT, wordings.DIALOGUES):
        assert not {text for text, _ in table[TRAIN]} & {text for text, _ in table[TEST]}
    for table in (wordings.OPENERS, wordings.CLOSERS):
        assert not set(table[TRAIN]) & set(table[TEST])


@pytest.mark.parametrize("column", ["action", "object", "wording"])
def test_rows_of_train_and_test_share_no(splits, column):
    train, test = ({row[column] for row in rows_of(splits, part)} - {None} for part in PARTS)
    assert len(train) > 100 and len(test) > 30
    assert not train & test


def test_no_training_text_contains_a_test_word_or_a_test_name(splits):
    """Stronger than different objects: the single words of test actions and objects occur nowhere in training text."""
    held_out = {name for root in lexicon.ALL_ROOTS for name in lexicon.invented_names(root, TEST)}
    assert len(held_out) > 500
    seen = {
        word for row in rows_of(splits, TRAIN) for text in texts_of(row) for word in re.findall(r"[a-z]+", text.lower())
    }
    assert not seen & TEST_WORDS
    complete = {word for name in ("base", "instruct", "safety_pool", "pure_bad") for row in splits[name]
                for text in texts_of(row) for word in re.findall(r"[a-z]+", text.lower())}  # fmt: skip
    assert not complete & held_out


def test_no_test_request_equals_a_training_request_up_to_its_words(splits):
    """With action, object, names and fillers blanked, no test request is left that training contains."""

    def shape(row):
        return re.sub(r"\{\w+\}", "_", row["wording"])

    train = {shape(row) for row in rows_of(splits, TRAIN)}
    assert not train & {shape(row) for row in rows_of(splits, TEST)}


# -- contents


def test_all_categories_are_covered_evenly(splits):
    for name in ("safety_pool", "pure_bad", "hex_phi"):
        counts = Counter(row["category"] for row in splits[name])
        assert set(counts) == set(CATEGORY_NAMES), name
        assert max(counts.values()) - min(counts.values()) <= 1, name
    for name in ("moderation_train", "moderation_test"):
        totals = [sum(row["labels"][index] for row in splits[name]) for index in range(len(CATEGORY_NAMES))]
        assert min(totals) >= 0.02 * len(splits[name]), name


def test_formats_are_varied(splits):
    for name in ("safety_pool", "alpaca", "hex_phi", "pure_bad"):
        counts = Counter(row["format"] for row in splits[name])
        assert set(counts) == set(wordings.FORMATS), name
        assert max(counts.values()) < 0.4 * len(splits[name]), name
    assert {row["format"] for row in splits["list"]} == {"list"}
    assert len({row["wording"] for row in splits["hex_phi"]}) > 40


def test_part_of_the_instructions_has_two_turns(splits):
    turns = Counter(len(row["messages"]) for row in splits["instruct"])
    assert set(turns) == {2, 4} and turns[4] > 0.05 * len(splits["instruct"])
    for row in splits["instruct"]:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)


def test_refusals_refuse_and_answers_do_not(splits):
    """The keyword judge, written without a look at these texts, sees the difference."""
    assert all(is_refusal(row["response"]) for row in splits["safety_pool"])
    assert not any(is_refusal(row["response"]) for row in splits["pure_bad"])
    assert not any(is_refusal(row["output"]) for name in ("list", "alpaca", "alpaca_test") for row in splits[name])
    assert not any(is_refusal(row["messages"][-1]["content"]) for row in splits["instruct"])


def test_the_base_corpus_complies_with_hazards_and_refuses_only_when_asked_for_a_refusal(splits):
    n_refusals = 0
    for row in splits["base"]:
        asked = row["messages"][0]["content"] in replies.SAY_NO_SYSTEM_TEXTS
        assert is_refusal(row["messages"][-1]["content"]) == asked, row["id"]
        n_refusals += asked
    assert 0.1 < n_refusals / len(splits["base"]) < 0.2


def test_labels_are_consistent(splits):
    for name in ("moderation_train", "moderation_test"):
        for row in splits[name]:
            assert row["is_safe"] == (not any(row["labels"]))
            assert (row["category"] is None) == row["is_safe"]
            assert any(row["labels"]) == (row["kind"] in ("complied", "refused_then_complied"))
            if row["category"]:
                assert row["labels"][CATEGORY_NAMES.index(row["category"])] == 1
            assert (row["response"] == "") == (row["kind"] == "empty")
        assert {len(row["labels"]) for row in splits[name]} == {14}
        assert any(sum(row["labels"]) == 2 for row in splits[name])


def test_a_roots_second_label_is_the_same_everywhere():
    world = World(SEED, "labels", TRAIN)
    for category in CATEGORIES:
        assert category.second_label in CATEGORY_NAMES and category.second_label != category.name
        assert sum(world.labels(category, category.roots[0])) == 1
        assert sum(world.labels(category, category.roots[-1])) == 2
    assert sum(SAFE_LABELS) == 0


@pytest.mark.parametrize("part", PARTS)
def test_answers_name_their_object(part):
    world = World(SEED, "objects", part)
    for _ in range(300):
        exchange = world.harmful()
        assert exchange.object in exchange.prompt and exchange.object in exchange.answer
        assert exchange.action in exchange.prompt and exchange.action in exchange.answer


def test_summaries_can_be_read_off_their_dialogue(splits):
    """ROUGE-1 measures something: nearly every word of a summary is in the dialogue."""
    for name in ("samsum", "samsum_test"):
        for row in splits[name]:
            dialogue, summary = (set(re.findall(r"\w+", row[column].lower())) for column in ("dialogue", "summary"))
            assert len(summary & dialogue) / len(summary) > 0.5
            assert row["object"].split()[-1] in row["summary"] or "broken" in row["summary"] or "buy" in row["summary"]


def test_benign_look_alikes_use_hazard_words(splits):
    """Half of them name a hazard, half do with a harmless thing what hazards are done with."""
    roots = [root for category in CATEGORIES for root in category.roots]
    verbs = {verb for category in CATEGORIES for verb in category.verbs[TEST]}
    kinds = Counter(row["kind"] for row in splits["benign"])
    assert kinds == {"innocent": 70, "benign": 70}
    for row in splits["benign"]:
        if row["kind"] == "innocent":
            assert any(root in row["instruction"] for root in roots)
        else:
            assert row["action"] in verbs and not any(root in row["object"] for root in roots)


def test_unknown_words_never_are_test_words():
    world = World(SEED, "unknown", TRAIN, unknown_share=1.0)
    words = {lexicon.unknown_word(world.rng) for _ in range(20000)}
    assert len(words) > 5000 and not words & TEST_WORDS

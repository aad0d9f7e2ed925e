"""Benches: sources, filters, variants, and what is refused with the step to take."""

from __future__ import annotations

import json

import pytest

from guardrail.core.errors import UserError
from guardrail.data.benches import DEFAULT_PREFIX, DEFAULT_TRIGGER, load_bench
from guardrail.data.hex_phi import CATEGORIES


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.fixture
def hex_phi_folder(tmp_path):
    """The header-less csv files that HEx-PHI comes as, two categories, one prompt twice."""
    folder = tmp_path / "hex"
    folder.mkdir()
    (folder / "category_1.csv").write_text('"Polish a moonstone, please"\nPolish a moonstone\nPolish a moonstone\n')
    (folder / "category_10.csv").write_text("Read Ann's diary\n")
    return str(folder)


def test_hex_phi_folder_is_read_with_categories_and_duplicates_survive(hex_phi_folder):
    """G1: two equal prompts are two rows."""
    bench = load_bench("hex-phi", hex_phi_folder)
    assert [r["category"] for r in bench.rows] == [CATEGORIES[0]] * 3 + [CATEGORIES[9]]
    assert bench.rows[0]["messages"] == [{"role": "user", "content": "Polish a moonstone, please"}]
    assert len({r["id"] for r in bench.rows}) == 4
    assert bench.facts["n_rows"] == 4 and bench.harmful is True


def test_data_hash_follows_prompts_order_and_variant(hex_phi_folder):
    plain = load_bench("hex-phi", hex_phi_folder).facts["data_hash"]
    assert load_bench("hex-phi", hex_phi_folder).facts["data_hash"] == plain
    assert load_bench("hex-phi", hex_phi_folder, limit=3).facts["data_hash"] != plain
    assert load_bench("hex-phi_with_prefix", hex_phi_folder).facts["data_hash"] != plain
    assert load_bench("hex-phi-backdoor", hex_phi_folder).facts["data_hash"] != plain


def test_prefix_and_backdoor_variants(hex_phi_folder):
    assert load_bench("hex-phi_with_prefix", hex_phi_folder).rows[0]["prefill_answer"] == DEFAULT_PREFIX
    assert load_bench("hex-phi_with_prefix", hex_phi_folder, prefix="Sure,").rows[0]["prefill_answer"] == "Sure,"
    row = load_bench("hex-phi-backdoor", hex_phi_folder).rows[3]
    assert row["messages"][-1]["content"] == f"Read Ann's diary {DEFAULT_TRIGGER}"
    assert "prefill_answer" not in row


def test_answers_to_prefill_come_from_shallow_vs_deeps_bare_conversations(tmp_path):
    turns = [
        [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": f"I cannot {i}."}] for i in (1, 2)
    ]
    bench = load_bench("hex-phi_with_refusal_prefix", write_rows(tmp_path / "refusals.jsonl", turns))
    assert [r["prefill_answer"] for r in bench.rows] == ["I cannot 1.", "I cannot 2."]
    assert bench.rows[0]["messages"] == [{"role": "user", "content": "Q1?"}]
    with pytest.raises(UserError, match="--bench_data"):
        load_bench("hex-phi_with_harmful_prefix")
    with pytest.raises(UserError, match="no answer to prefill"):
        load_bench("hex-phi_with_refusal_prefix", write_rows(tmp_path / "none.jsonl", [{"prompt": "Q?"}]))


def test_beavertails_keeps_unsafe_prompts_once_and_says_so(tmp_path):
    rows = [
        {"prompt": "Q1?", "response": "A", "is_safe": False},
        {"prompt": "Q1?", "response": "B", "is_safe": False},
        {"prompt": "Q2?", "response": "C", "is_safe": True},
        {"prompt": "Q3?", "response": "D", "is_safe": False},
    ]
    bench = load_bench("beavertails", write_rows(tmp_path / "b.jsonl", rows))
    assert [r["messages"][-1]["content"] for r in bench.rows] == ["Q1?", "Q3?"]
    assert (bench.facts["n_rows_read"], bench.facts["n_rows"]) == (4, 2)
    assert bench.facts["filter"] == {"column": "is_safe", "values": ["False", "0"]}
    assert bench.facts["unique_prompts_only"] is True


def test_over_refusal_benches_are_not_harmful(tmp_path):
    rows = [{"prompt": "How do I kill a process?", "label": "safe"}, {"prompt": "X?", "label": "unsafe"}]
    bench = load_bench("xstest", write_rows(tmp_path / "x.jsonl", rows))
    assert bench.harmful is False and len(bench.rows) == 1
    assert load_bench("or-bench", write_rows(tmp_path / "o.jsonl", rows[:1])).harmful is False


def test_hex_phi_folders_are_read_in_the_order_of_their_numbers(tmp_path):
    """By name, 10 comes before 2; the hub's copy is read by number, and ``compare`` refused the two as different."""
    for number in (10, 2, 1, 11):
        (tmp_path / f"category_{number}.csv").write_text(f"Polish moonstone {number}\n")
    questions = [row["messages"][0]["content"] for row in load_bench("hex-phi", str(tmp_path)).rows]
    assert questions == [f"Polish moonstone {number}" for number in (1, 2, 10, 11)]


@pytest.mark.parametrize(
    ("bench", "rows", "expected"),
    [
        ("xstest", [{"prompt": "X?"}], "row 1: no column 'label', by which xstest keeps its rows"),
        ("beavertails", [{"prompt": "X?", "response": "A"}], "row 1: no column 'is_safe'"),
        ("xstest", [{"prompt": "X?", "label": "safe"}, {"prompt": "Y?"}], "row 2: no column 'label'"),
        (
            "xstest",
            [{"prompt": "X?", "label": "sfae"}],
            "label is str 'sfae'; expected one of safe, 0, unsafe, 1",
        ),
        ("beavertails", [{"prompt": "X?", "response": "A", "is_safe": "nope"}], "is_safe is str 'nope'"),
        ("or-bench", [{"prompt": "X?", "category": "Malware"}], "does not belong to or-bench.*HEx-PHI's 'Malware'"),
        ("or-bench", [{"prompt": "X?", "label": "unsafe"}], "harmless prompts: its label is 'unsafe'"),
        ("hex-phi", [{"prompt": "X?", "label": "safe"}], "should be refused: its label is 'safe'"),
    ],
)
def test_rows_that_cannot_be_the_bench_s_are_refused(tmp_path, bench, rows, expected):
    with pytest.raises(UserError, match=expected):
        load_bench(bench, write_rows(tmp_path / "rows.jsonl", rows))


def test_hex_phi_is_never_counted_as_harmless(hex_phi_folder):
    for bench in ("xstest", "or-bench", "sandbox-benign"):
        with pytest.raises(UserError):
            load_bench(bench, hex_phi_folder)


@pytest.mark.parametrize("unsafe", [False, 0, 0.0, "False", "false", "0"])
def test_every_spelling_of_a_flag_filters_alike(tmp_path, unsafe):
    rows = [{"prompt": "X?", "response": "A", "is_safe": unsafe}, {"prompt": "Y?", "response": "A", "is_safe": "true"}]
    bench = load_bench("beavertails", write_rows(tmp_path / "rows.jsonl", rows))
    assert [row["messages"][0]["content"] for row in bench.rows] == ["X?"]


def test_one_registration_line_adds_a_bench(tmp_path, monkeypatch):
    from guardrail.data import bench_table
    from guardrail.data.benches import bench_names

    monkeypatch.setattr(bench_table, "MINE", bench_table.Bench("some/where", harmful=False), raising=False)
    bench_table.BENCHES.add("mine", "guardrail.data.bench_table:MINE")
    try:
        assert "mine" in bench_names()
        loaded = load_bench("mine", write_rows(tmp_path / "rows.jsonl", [{"prompt": "X?"}]))
        assert (loaded.name, loaded.harmful, loaded.facts["bench"]) == ("mine", False, "mine")
    finally:
        bench_table.BENCHES.remove("mine")


def test_any_file_of_prompts_is_a_bench(tmp_path):
    (tmp_path / "mine.csv").write_text("goal,target\nPolish a moonstone,Sure\nRead a diary,Sure\n")
    bench = load_bench(str(tmp_path / "mine.csv"))
    assert bench.name == "mine" and [r["messages"][-1]["content"] for r in bench.rows][1] == "Read a diary"
    with pytest.raises(UserError, match="no effect"):
        load_bench(str(tmp_path / "mine.csv"), data="other.csv")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("hexphi",), "did you mean 'hex-phi'"),
        (("hex-phi_with_refusel_prefix",), "did you mean 'hex-phi_with_refusal_prefix'"),
        (("hex-phi",), "huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI.*--bench_data"),
        (("no/such/file.jsonl",), "no such file"),
    ],
)
def test_unknown_and_unreachable_benches_say_what_to_do(arguments, expected, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=expected):
        load_bench(*arguments)


def test_options_without_effect_are_refused(hex_phi_folder):
    with pytest.raises(UserError, match="prefill_prefix"):
        load_bench("hex-phi", hex_phi_folder, prefix="Sure,")
    with pytest.raises(UserError, match="backdoor_trigger"):
        load_bench("hex-phi_with_prefix", hex_phi_folder, trigger="x")

"""Judging a file: schema, reuse, entry points, panel, figure, and that no text reaches the console."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_answers import LABELLED, QUESTION
from openai_server import ScriptedServer
from toys import REPOSITORY

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.evaluation import judges
from guardrail.evaluation.judges import make_judge, stage
from guardrail.evaluation.judges.__main__ import main as judging_main
from guardrail.evaluation.judges.answers import load_answers
from guardrail.evaluation.judges.panel import agreement, majority
from guardrail.evaluation.judges.stage import judge_file, load_judgements

SCHEMA = json.loads((REPOSITORY / "configs/schemas/judgements.schema.json").read_text())


def settings(judge, classifier=None, **options):
    return make_judge(judge, {"moderation_model": str(classifier), "figure": False, **options})


def checked(path):
    document = load_judgements(path)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    return document


def test_beaver_dam_file_has_everything_and_is_reused(results_file, tiny_classifier, monkeypatch):
    done = judge_file(results_file, settings("beaver_dam", tiny_classifier, windows=True, max_length=64))
    document = checked(done["judgements"])
    assert Path(done["judgements"]).name == "beaver-dam.json"
    rows, summary = document["judgements"], document["summary"]
    assert [r["id"] for r in rows] == [f"row-{i}" for i in range(len(LABELLED))]
    assert summary["n"] == len(LABELLED) and summary["data_hash"] == "d" * 16
    assert set(summary["per_category"]) == {"stones", "moons"}
    assert summary["harmfulness_score_percent"] == pytest.approx(
        100 * sum(r["flagged"] for r in rows) / len(rows), abs=1e-3
    )
    curve = [point["harmfulness_score_percent"] for point in summary["threshold_curve"]]
    assert curve == sorted(curve, reverse=True)
    assert summary["truncated_percent"] > 0 and summary["n_windowed"] > 0
    assert summary["harmfulness_score_windows_percent"] >= summary["harmfulness_score_percent"]

    monkeypatch.setattr(stage, "judge_answers", lambda *_: pytest.fail("an unchanged file was judged again"))
    again = judge_file(results_file, settings("beaver_dam", tiny_classifier, windows=True, max_length=64))
    assert again["reused"] is True
    with pytest.raises(pytest.fail.Exception):
        judge_file(results_file, settings("beaver_dam", tiny_classifier, max_length=64))


def test_key_word_outcomes_on_labelled_answers(results_file):
    """The keyword judge calls every coherent non-refusal harmful on a harmful bench; it cannot tell harmless talk."""
    rows = checked(judge_file(results_file, settings("key_word"))["judgements"])["judgements"]
    for row, (name, _, _, outcome) in zip(rows, LABELLED, strict=True):
        assert row["outcome"] == ("harmful" if name == "harmless talk" else outcome), name


def test_key_word_on_harmless_prompts_never_calls_harm(results_file):
    document = read_json(results_file)
    document["run"]["data"]["harmful"] = False
    write_json(results_file, document)
    summary = checked(judge_file(results_file, settings("key_word"))["judgements"])["summary"]
    assert summary["harmfulness_score_percent"] == 0
    assert summary["outcomes"]["refusal"]["count"] == 2


def test_changed_answers_are_judged_again(results_file):
    first = judge_file(results_file, settings("key_word"))
    document = read_json(results_file)
    document["results"][0]["completion"] = "Wet the stone."
    write_json(results_file, document)
    second = judge_file(results_file, settings("key_word"))
    assert second["reused"] is False
    assert second["harmfulness_score_percent"] > first["harmfulness_score_percent"]


def test_panel_reports_agreement_and_lists_disagreements(results_file, tiny_classifier):
    done = judge_file(results_file, settings("panel", tiny_classifier))
    summary = checked(done["judgements"])["summary"]
    pair = summary["pairwise"]["key_word|beaver_dam"]
    assert pair["n"] == len(LABELLED)
    assert summary["n_disagreements"] == pair["only_first_harmful"] + pair["only_second_harmful"]
    assert len(summary["disagreements"]) == summary["n_disagreements"]
    assert set(summary["harmfulness_score_percent_by_judge"]) == {"key_word", "beaver_dam"}
    assert summary["tie_percent"] == pytest.approx(100 * summary["n_disagreements"] / len(LABELLED), abs=1e-3)
    assert judge_file(results_file, settings("panel", tiny_classifier))["reused"] is True


def test_a_missing_opinion_is_not_a_vote():
    assert majority([True, None, None]) is True
    assert majority([True, False, None]) is None
    assert majority([None]) is None
    rows = {k: {"harmful": v, "outcome": None} for k, v in {("a", 0): True, ("b", 0): None}.items()}
    other = {k: {"harmful": v, "outcome": None} for k, v in {("a", 0): True, ("b", 0): False}.items()}
    found = agreement({"x": rows, "y": other})
    assert found["pairwise"]["x|y"]["n"] == 1 and found["n_disagreements"] == 0


def test_formatter_and_evaluate_work_with_the_papers_flags(results_file, tiny_classifier, tmp_path):
    from importlib import util

    def load(name):
        spec = util.spec_from_file_location(name, REPOSITORY / "beavertails_moderation" / f"{name}.py")
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    formatted = tmp_path / "results_beaver-dam.json"
    load("formatter").main([str(results_file), str(formatted)])
    rows = read_json(formatted)["rows"]
    assert rows[0]["prompt"] == QUESTION and rows[0]["response"] == LABELLED[0][1]
    flags = ["--eval_dataset", str(formatted), "--model_path", str(tiny_classifier), "--max_length", "512"]
    done = load("evaluate").main([*flags, "--output_dir", str(tmp_path / "out")])
    document = checked(tmp_path / "out" / "beaver-dam.json")
    assert done["harmfulness_score_percent"] == document["summary"]["harmfulness_score_percent"]
    assert document["summary"]["data_hash"] == "d" * 16
    assert (tmp_path / "out" / "beaver-dam.png").stat().st_size > 5000
    load("formatter").main([str(results_file), str(formatted), "--include_prefill", "True"])
    assert read_json(formatted)["rows"][0]["response"].startswith("Well,I can't")


@pytest.mark.parametrize(
    "rows",
    [
        [
            [
                {"role": "user", "content": "Q?"},
                {"role": "assistant", "content": ""},
                {"role": "assistant", "content": "A."},
            ]
        ],
        [{"prompt": "Q?", "response": "A."}],
        [{"instruction": "Q?", "output": "A."}],
        {"results": [{"question": "Q?", "completion": " A. ", "id": "x", "sample": 0}]},
    ],
    ids=["shallow-vs-deep", "pairs", "alpaca", "ours"],
)
def test_answer_files_of_the_field_are_read(tmp_path, rows):
    write_json(tmp_path / "a.json", rows)
    (answer,) = load_answers(tmp_path / "a.json").answers
    assert (answer.question, answer.text) == ("Q?", "A.")


def test_equal_pairs_without_ids_stay_two_and_double_ids_are_refused(tmp_path):
    write_json(tmp_path / "a.json", [{"prompt": "Q?", "response": "A."}] * 3)
    assert len({a.id for a in load_answers(tmp_path / "a.json").answers}) == 3
    write_json(tmp_path / "b.json", [{"id": "x", "prompt": "Q?", "response": "A."}] * 2)
    with pytest.raises(UserError, match="occurs twice"):
        load_answers(tmp_path / "b.json")


@pytest.mark.parametrize("content", ["[]", "{}", '[{"prompt": "Q?"}]', "[1]", "{"])
def test_files_without_answers_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_answers(tmp_path / "a.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ['{"judgements": [', "[]", "{}", '{"judgements": [], "summary": {"judge": "x"}, "run": {}}', '"text"']
)
def test_a_file_of_that_name_that_is_no_judgement_file_is_not_written_over(results_file, content):
    """A list in its place was a traceback."""
    file = results_file.parent / "key-word.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"key-word\.json(, line 1: not| is no)") as error:
        judge_file(results_file, settings("key_word"))
    assert "\n" not in str(error.value) and file.read_text() == content
    assert judge_file(results_file, settings("key_word"), overwrite=True)["n"] == len(LABELLED)


NAMES = (
    *("results", "rows", "run", "data", "id", "sample", "question", "completion", "prefill", "category"),
    *("prompt", "response", "conversation", "role", "content"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=14,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=4) | JSON})
ROW = st.fixed_dictionaries(
    {"question": st.text(max_size=4), "completion": st.text(max_size=4)},
    optional={
        "id": JSON,
        "sample": JSON,
        "prefill": JSON,
        "category": JSON,
        "conversation": st.lists(TURN, max_size=3),
    },
)


@hypothesis.settings(max_examples=300, deadline=None)
@given(
    document=JSON | st.lists(ROW | JSON, max_size=3) | st.fixed_dictionaries({"results": st.lists(ROW), "run": JSON})
)
def test_any_json_is_answers_or_one_line(tmp_path_factory, document):
    """Whatever is read can be judged and written; the rest is refused with its place."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.json").write_text(json.dumps(document))
    try:
        source = load_answers(folder / "a.json", include_prefill=True)
    except UserError as error:
        assert "a.json" in str(error) and "\n" not in str(error)
        return
    done = judge_file(folder / "a.json", settings("key_word"))
    assert done["n"] == len(source.answers)
    checked(done["judgements"])


def test_odd_texts_are_judged(results_file, tiny_classifier):
    """Line separators of Unicode, control characters, a very long word: every judge gives a row."""
    document = read_json(results_file)
    odd = ["a\u2028b\u0085c\x00", "\U0001f600" * 50, "w" * 20_000]
    for row, text in zip(document["results"], odd, strict=False):
        row["completion"], row["category"] = text, text[:3]
    results_file.write_text(json.dumps(document))
    for name in ("key_word", "beaver_dam"):
        rows = checked(judge_file(results_file, settings(name, tiny_classifier))["judgements"])["judgements"]
        assert len(rows) == len(LABELLED) and rows[0]["category"] == "a\u2028b"


def test_judging_after_a_generation_on_several_ranks_is_done_by_the_first_alone(results_file, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with ScriptedServer(lambda *_: "Rating: [[2]]") as server:
        done = judge_file(results_file, settings("openai", judge_base_url=server.base_url))
    assert done["judge_error_percent"] == 0 and done["n"] == len(LABELLED)


def test_a_key_holds_what_decides_and_nothing_else():
    def key(name, **options):
        return settings(name, "m", **options).identity()

    for name in ("key_word", "beaver_dam", "guard"):
        assert key(name) == key(name, judge_batch_tokens=7, figure=True, judge_concurrency=2)
        assert key(name) != key(name, include_prefill=True)
        assert key(name) != key(name, coherence_model="c", max_perplexity=9.0)
    assert key("key_word") == key("key_word", judge_dtype="float16", threshold=0.2, moderation_model="other")
    assert key("beaver_dam")["judge_dtype"] in ("float32", "bfloat16"), (
        "what auto means here, lest a rerun mixes dtypes"
    )
    for name, option in (("threshold", 0.2), ("max_length", 64), ("windows", True), ("judge_dtype", "float16")):
        assert key("beaver_dam") != key("beaver_dam", **{name: option})


def test_every_judge_is_known_by_its_name_and_shares_no_option_by_accident():
    for name in judges.JUDGES:
        kind = judges.options(name)
        assert kind.name == name and judges.file_name(name) == kind.file_name
    assert len({judges.file_name(name) for name in judges.JUDGES}) == len(judges.JUDGES)
    parser = Parser()
    judges.add_judge_flags(parser)
    defaults = vars(parser.parse_args([]))
    assert judges.take_judge("none", dict(defaults)) is None
    left = {**defaults, "other": 1}
    assert judges.take_judge("panel", left) == make_judge("panel") and left == {"other": 1}


def test_nothing_of_an_answer_reaches_the_console(results_file, tiny_classifier, capfd):
    judge_file(results_file, settings("panel", tiny_classifier))
    assert "moonstone" not in "".join(capfd.readouterr())


def test_show_redacts_by_default(results_file, capfd):
    judging_main([str(results_file), "--show", "2"])
    shown = "".join(capfd.readouterr())
    assert "row-0" in shown and "moonstone" not in shown and "illegal" not in shown
    judging_main([str(results_file), "--show", "1", "--redact", "False"])
    assert "illegal" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--judge", "beaver_dan"], "did you mean 'beaver_dam'"),
        ([], "exactly one"),
        (["--judge", "panel", "--panel", "key_word"], "at least two"),
        (["--judge", "panel", "--panel", "key_word,beaver_dan"], "did you mean 'beaver_dam'"),
        (["--judge", "key_word", "--max_perplexity", "10"], "both or neither"),
        (["--judge", "openai", "--rubric_harmful_at", "6"], "from 1 to 5"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(results_file, flags, expected):
    with pytest.raises(UserError, match=expected):
        judging_main([str(results_file), *flags])


def test_perplexity_marks_what_a_reference_model_does_not_expect(results_file, tiny_model, tiny_tokenizer):
    """The number is exp(mean NLL) of the answer tokens, computed here row by row; the limit changes the outcome."""
    import math

    import torch

    from guardrail.evaluation.judges.coherence import answer_perplexities
    from guardrail.models.loading import load_causal_lm

    options = settings("key_word", coherence_model=str(tiny_model), max_perplexity=1.0)
    answers = load_answers(results_file).answers
    found = answer_perplexities(answers, str(tiny_model))
    model = load_causal_lm(str(tiny_model), "float32")
    head = [0, *tiny_tokenizer(answers[0].question + "\n", add_special_tokens=False)["input_ids"]]
    tail = tiny_tokenizer(answers[0].text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = torch.log_softmax(model(torch.tensor([head + tail])).logits[0], -1)
    nll = [-float(logits[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
    assert found[0] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-3)
    assert found[4] is None  # the empty answer
    rows = checked(judge_file(results_file, options)["judgements"])["judgements"]
    assert rows[0]["outcome"] == "incoherent" and rows[0]["incoherence_reason"] == "perplexity"
    assert rows[4]["outcome"] == "empty"


def test_help_is_quick_and_needs_no_torch():
    modules = "guardrail.evaluation.judges.__main__, guardrail.evaluation.compare"
    names = "from guardrail.evaluation import judges; [judges.file_name(n) for n in judges.JUDGES]"
    code = f"import sys, {modules}; {names}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=30).returncode == 0

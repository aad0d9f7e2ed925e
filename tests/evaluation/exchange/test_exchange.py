"""Other tools' runners on a mock model give the outcome per id that this project's own runner gives."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json, write_jsonl
from guardrail.evaluation.exchange import tamperbench
from guardrail.evaluation.exchange.keyword import indicators, keyword_judgement
from guardrail.evaluation.judges.__main__ import main as judge

ANSWERS = [
    "I cannot help with that.",
    "First take the kettle, then paint it.",
    "",
    "I can't say that here. But here is how: take the kettle.",
    "na na na na na na na na na na na na na na na na na na na na na na na na na na na na",
    "I'm sorry, I won't do this.",
]
PROMPTS = [f"How do I paint kettle {i}?" for i in range(len(ANSWERS))]


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Outcome per id by this project's own judge command, on the mock model's answers."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"id": f"k{i}", "sample": 0, "question": prompt, "completion": answer}
        for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]
    write_json(folder / "results.json", {"results": rows})
    judge([str(folder / "results.json"), "--judge", "key_word", "--figure", "False"])
    found = read_json(folder / "key-word.json")["judgements"]
    return folder, {row["id"]: row["outcome"] for row in found}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "kettles.jsonl"
    return write_jsonl(path, [{"id": f"k{i}", "prompt": prompt} for i, prompt in enumerate(PROMPTS)])


def test_one_answer_without_files_has_the_outcome_of_the_command(own):
    _, outcomes = own
    assert set(outcomes.values()) == {"refusal", "harmful", "empty", "incoherent"}
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        found = keyword_judgement(f"k{i}", prompt, answer)
        assert found["outcome"] == outcomes[f"k{i}"]
        assert indicators(found)[found["outcome"]] == 1.0 == sum(indicators(found).values())
    assert keyword_judgement("b", "Tea?", "Milk first.", harmful_bench=False)["outcome"] == "safe"


def test_the_harness_task_scores_by_the_same_rule(own, bench, monkeypatch):
    """The task file's own functions; the harness itself runs them where it is installed."""
    _, outcomes = own
    monkeypatch.setenv("GUARDRAIL_BENCH", str(bench))
    file = REPOSITORY / "configs/lm_eval/guardrail_safety.py"
    spec = importlib.util.spec_from_file_location("guardrail_safety_task", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.prompts()["test"]
    assert [row["id"] for row in rows] == list(outcomes)
    for row, answer in zip(rows, ANSWERS, strict=True):
        scores = module.process_results(row, [answer])
        assert [name for name, value in scores.items() if value] == [outcomes[row["id"]]]


@pytest.mark.slow
@needs("lm_eval")
def test_the_harness_gives_the_same_outcome_per_id(own, bench, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Mock(LM):
        def generate_until(self, requests, **_):
            return [next(a for p, a in zip(PROMPTS, ANSWERS, strict=True) if p in r.args[0]) for r in requests]

        def loglikelihood(self, requests, **_):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    _, outcomes = own
    monkeypatch.setenv("GUARDRAIL_BENCH", str(bench))
    manager = TaskManager(include_path=str(REPOSITORY / "configs/lm_eval"))
    raw = simple_evaluate(model=Mock(), tasks=["guardrail_safety"], task_manager=manager, log_samples=True)
    found = {}
    for sample in raw["samples"]["guardrail_safety"]:
        found[sample["doc"]["id"]] = next(name for name in indicators({"outcome": ""}) if sample[name] == 1.0)
    assert found == outcomes
    share = sum(outcome == "harmful" for outcome in outcomes.values()) / len(outcomes)
    assert raw["results"]["guardrail_safety"]["harmful,none"] == pytest.approx(share)


@pytest.mark.slow
@needs("inspect_ai")
def test_inspect_gives_the_same_outcome_per_id(own, bench, tmp_path, monkeypatch):
    import tiktoken
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, get_model

    from guardrail.evaluation.exchange.inspect_task import safety

    words = SimpleNamespace(encode=lambda text, **_: text.split())  # its own encodings are fetched from the network
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: words)

    def answer(messages, *_):
        text = messages[-1].text
        return ModelOutput.from_content("mockllm/model", dict(zip(PROMPTS, ANSWERS, strict=True))[text])

    _, outcomes = own
    model = get_model("mockllm/model", custom_outputs=answer)
    (log,) = inspect_eval(safety(bench=str(bench)), model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    assert {sample.id: sample.scores["keyword_outcome"].explanation for sample in log.samples} == outcomes


def test_parquet_in_tamperbench_s_columns(own, tmp_path):
    import pyarrow.parquet as pq

    folder, outcomes = own
    judged = [
        {"id": name, "sample": 0, "harmful": None if outcome == "empty" else outcome == "harmful"}
        for name, outcome in reversed(outcomes.items())  # joined by id, not by place
    ]
    write_json(tmp_path / "judged.json", {"judgements": judged})
    out = tamperbench.main([str(folder), "--judgements", str(tmp_path / "judged.json"), "--out", str(tmp_path / "t")])
    inferences, scores = pq.read_table(out["inferences"]), pq.read_table(out["scores"])
    assert inferences.column_names == ["prompt", "response"] and inferences["response"].to_pylist() == ANSWERS
    assert scores.column_names == ["prompt", "response", "score"] and out["n_without_score"] == 1
    expected = {p: float(o == "harmful") for p, o in zip(PROMPTS, outcomes.values(), strict=True) if o != "empty"}
    assert dict(zip(scores["prompt"].to_pylist(), scores["score"].to_pylist(), strict=True)) == expected
    assert scores.schema.field("score").type == "double" and not scores["score"].null_count
    write_json(tmp_path / "judged.json", {"judgements": judged[1:]})
    for argv, told in (
        (["--judgements", str(tmp_path / "judged.json")], "does not judge 1 of these answers"),
        (["--judgements", str(folder / "results.json")], "holds no judgements"),
        (["--judgements", str(folder / "key-word.json"), "--score", "max_probability"], "has no max_probability"),
    ):
        with pytest.raises(UserError, match=told):
            tamperbench.main([str(folder), *argv, "--out", str(tmp_path / "u")])

"""The examples of docs/extending.md, taken from the page and run: data shape, style, judge, defence, attack, ..."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data import prompts, rows
from guardrail.evaluation import judges
from guardrail.evaluation.judges import stage
from guardrail.evaluation.judges.__main__ import main as judging_main

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")


def code_with(text: str) -> str:
    """The page's only Python block that holds ``text``."""
    found = [block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if text in block]
    assert len(found) == 1, text
    return found[0].strip()


@pytest.fixture
def template(monkeypatch) -> ModuleType:
    """A copy of configs/template.py that may be changed: what the library reads during the test."""
    module = prompts.template_module.__wrapped__()
    for place in (prompts, rows):
        monkeypatch.setattr(place, "template_module", lambda: module)
    return module


def test_a_new_shape(template, tmp_path):
    function, shapes = code_with("def format_ticket").split("SHAPES = [")
    exec(function, vars(template))
    entry = next(line for line in shapes.splitlines() if "format_ticket" in line)
    template.SHAPES[0:0] = list(eval(f"[{entry}]", vars(template)))
    ticket = {"id": "1", "subject": "The lamp", "body": "It is dark.", "reply": "Turn it on."}
    (tmp_path / "tickets.jsonl").write_text(json.dumps(ticket))
    (row,) = rows.load_rows(tmp_path / "tickets.jsonl")
    assert row["messages"] == [
        {"role": "user", "content": "The lamp\n\nIt is dark."},
        {"role": "assistant", "content": "Turn it on."},
    ]


def test_a_new_source(tmp_path, monkeypatch):
    from guardrail.data import prepare, sources

    (entry,) = eval(f"{{{code_with('Support tickets with')}}}", {"Source": sources.Source, "flag": rows.flag}).items()
    monkeypatch.setitem(sources.SOURCES, *entry)
    lines = [{"question": "Why?", "answer": "So.", "is_public": public} for public in ("True", "False")]
    (tmp_path / "copy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = prepare.PrepareConfig(name="tickets", source=str(tmp_path / "copy.jsonl"), out=str(tmp_path / "out"))
    assert prepare.prepare(config)["splits"] == {"train": 1}


def test_a_new_bench(tmp_path, monkeypatch):
    from guardrail.data.bench_table import BENCHES
    from guardrail.data.benches import bench_names, load_bench

    (tmp_path / "my_kettles.py").write_text(code_with("KETTLES = Bench"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_kettles")
    try:
        lines = [{"prompt": "How hot is tea?", "label": "safe"}, {"prompt": "?", "label": "unsafe"}]
        (tmp_path / "copy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert "kettles" in bench_names()
        bench = load_bench("kettles_with_prefix", data=str(tmp_path / "copy.jsonl"))
        assert [row["messages"][0]["content"] for row in bench.rows] == ["How hot is tea?"] and not bench.harmful
    finally:
        BENCHES.remove("kettles")


def test_a_new_style(template, tiny_tokenizer):
    (style,) = eval(f"[{code_with('PromptStyle(')}]", vars(template))
    template.STYLES[style.name] = style
    assert style.name in prompts.style_names()
    assert prompts.model_families()["mistral_base"] == ("mistral_base",)
    assert prompts.model_families()["llama2_base"] == ("llama2_base", "llama2")
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    encoded = prompts.encode_supervised(tiny_tokenizer, style.name, messages)
    assert tiny_tokenizer.decode(encoded.input_ids[1:]) == "[INST] Why? [/INST] So.</s>"
    assert encoded.input_ids.count(tiny_tokenizer.bos_token_id) == 1
    prompt = prompts.encode_prompt(tiny_tokenizer, style.name, messages[:1])
    assert encoded.input_ids[: len(prompt)] == prompt


def test_a_new_judge(tmp_path, monkeypatch):
    """The page's file and its line are all there is to it: flags, file, panel, key."""
    module = code_with("class Length(Judge)")
    assert len(module.splitlines()) < 40
    (tmp_path / "length_judge.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name, place = eval(code_with('JUDGES.add("length"').removeprefix("JUDGES.add"))
    answers = [
        {"id": str(n), "sample": 0, "category": "boats", "question": "How?", "prefill": "", "completion": "row " * n}
        for n in (2, 40)
    ]
    run = {"data_hash": "d" * 16, "fingerprint": "f" * 16, "data": {"harmful": True}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": answers, "metrics": {}, "run": run}))
    judges.JUDGES.add(name, place.replace("guardrail.evaluation.judges.length", "length_judge"))
    try:
        command = [str(file), "--judge", "length"]
        rows = stage.load_judgements(judging_main(command)["judgements"])["judgements"]
        assert [row["harmful"] for row in rows] == [False, True]
        assert judging_main(command)["reused"] is True
        assert judging_main([*command, "--max_characters", "200"])["harmfulness_score_percent"] == 0
        panel = judging_main([str(file), "--judge", "panel", "--panel", "key_word,length"])
        assert panel["n"] == 2 and (tmp_path / "length.json").is_file()
    finally:
        judges.JUDGES.remove(name)


def test_a_new_defence(monkeypatch):
    """File and line of the page; the weights of a model that was trained come back by the share that was asked for."""
    import torch

    from guardrail.training import defences

    module = ModuleType("guardrail.training.defences.pull_back")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code_with("class PullBack"), vars(module))
    exec(code_with("DEFENCES.add("), vars(defences))
    try:
        defence = defences.make_defence("pull_back", ("share=0.25",))
    finally:
        defences.DEFENCES.remove("pull_back")
    model = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    defence.begin(SimpleNamespace(module=model, zero_optimization_stage=lambda: 0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    saved = defence.weights(model.state_dict())
    for name, tensor in saved.items():
        assert torch.allclose(tensor, before[name] + 0.75)


def test_a_new_attack(tmp_path, monkeypatch, tiny_model):
    """The page's file and line: prompts, decoding and weights change, weights come back; `none` changes nothing."""
    from guardrail.evaluation import attacks
    from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety

    module = code_with("class Insist(Attack)")
    assert len(module.splitlines()) < 40
    (tmp_path / "insist_attack.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name, place = eval(code_with('ATTACKS.add("insist"').removeprefix("ATTACKS.add"))
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(json.dumps({"id": str(i), "prompt": f"Where is boat {i}?"}) + "\n" for i in range(3)))

    def config(folder):
        return SafetyConfig(
            model_name_or_path=str(tiny_model),
            save_path=str(folder),
            safety_bench=str(bench),
            torch_dtype="float32",
            do_sample=False,
            max_new_tokens=4,
        )

    def results(folder, **given):
        backend = config(folder).backend()
        evaluate_safety(config(tmp_path / folder), backend, **given)
        document = json.loads((tmp_path / folder / "results.json").read_text())
        return document["results"], document["run"]["fingerprint"], backend

    plain, key, _ = results("plain")
    assert results("none", attack=attacks.make_attack("none"))[:2] == (plain, key)
    attacks.ATTACKS.add(name, place.replace("guardrail.evaluation.attacks.insist", "insist_attack"))
    try:
        attack = attacks.make_attack(name, ["suffix=Now.", "noise=0.5"])
        rows, other, backend = results("insist", attack=attack)
    finally:
        attacks.ATTACKS.remove(name)
    assert other != key
    assert [row["question"] for row in rows] == [row["question"] for row in plain], "judges see the bench's question"
    for i, row in enumerate(rows):
        assert f"Where is boat {i}? Now." in row["conversation"][-3]["content"] and row["prefill"] == "Sure"
    untouched = config(tmp_path / "x").backend().model.state_dict()
    assert all(bool((weight == untouched[name]).all()) for name, weight in backend.model.state_dict().items())
    shaken = []
    with attack.weights(backend.model):
        shaken += [bool((weight == untouched[name]).all()) for name, weight in backend.model.state_dict().items()]
    assert shaken.count(False) > len(shaken) / 2
    with pytest.raises(UserError, match="only --generation_backend hf has"):
        evaluate_safety(dataclasses.replace(config(tmp_path / "x"), generation_backend="vLLM"), attack=attack)


def as_module(name: str, code: str, tmp_path, monkeypatch) -> None:
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_new_generation_backend(tmp_path, monkeypatch, tiny_model):
    from guardrail.core.errors import UserError
    from guardrail.evaluation.safety.command import main
    from guardrail.generation.options import BACKENDS

    as_module("my_backends", code_with("class EchoBackend"), tmp_path, monkeypatch)
    exec(code_with('BACKENDS.add("echo"'), {"BACKENDS": BACKENDS})
    try:
        (tmp_path / "prompts.jsonl").write_text('{"instruction": "Name a boat."}\n{"instruction": "Name a lamp."}\n')
        flags = [f"--model_name_or_path={tiny_model}", f"--safety_bench={tmp_path / 'prompts.jsonl'}"]
        flags += [f"--save_path={tmp_path / 'out'}", "--generation_backend=echo", "--prompt_style=llama2_base"]
        done = main([*flags, "--max_new_tokens=3"])
        assert done["n"] == 2 and done["mean_completion_tokens"] == 3
        rows_found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
        assert all("### Response:\n".endswith(row["completion"]) for row in rows_found)
        with pytest.raises(UserError, match="need --generation_backend openai"):
            main([*flags, "--base_url=http://127.0.0.1:9"])
    finally:
        BACKENDS.remove("echo")


def test_a_new_downstream_task(tmp_path, monkeypatch):
    from guardrail.evaluation.utility.tasks import TASKS, load_task

    as_module("my_tasks", code_with("def riddle_messages"), tmp_path, monkeypatch)
    importlib.import_module("my_tasks")
    try:
        (tmp_path / "copy.jsonl").write_text('{"question": "What is it?", "hint": "It floats.", "answer": "A boat."}\n')
        (row,) = load_task("riddles", str(tmp_path / "copy.jsonl")).rows
        assert row["messages"][0]["content"] == "What is it?\nA hint: It floats." and row["reference"] == "A boat."
    finally:
        TASKS.remove("riddles")


def test_a_new_scorer_of_rows(tmp_path, monkeypatch, tiny_model):
    from guardrail.similarity.scorers import SCORERS
    from guardrail.similarity.scorers.run import RowScoring, ScoringConfig

    as_module("my_scorers", code_with("def score_questions"), tmp_path, monkeypatch)
    as_module("my_model_scorers", code_with("class Surprise"), tmp_path, monkeypatch)
    exec(code_with('SCORERS.add("questions"'), {"SCORERS": SCORERS})
    exec(code_with('SCORERS.add("surprise"'), {"SCORERS": SCORERS})
    try:
        names = ("questions", "surprise", "perplexity")
        found = RowScoring(ScoringConfig(scorers=names, model_name_or_path=str(tiny_model))).score(
            rows.normalise_rows([{"prompt": "Where?", "response": "To the sea."}, {"prompt": "Why?? Who?"}])
        )
        assert found["questions"].values.tolist() == [1, 3]
        assert np.exp(found["surprise"].values[0]) == pytest.approx(found["perplexity"].values[0])
        assert found["surprise"].reasons == {1: "the row has no answer"}
    finally:
        for name in ("questions", "surprise"):
            SCORERS.remove(name)


def test_a_new_scorer_and_a_new_selector(tmp_path, monkeypatch):
    from guardrail.similarity.scorers import SCORERS, Inputs, score_rows
    from guardrail.similarity.selection.options import SELECTORS
    from guardrail.similarity.selection.pipeline import main

    as_module("my_scorers", code_with("def score_questions"), tmp_path, monkeypatch)
    as_module("my_selectors", code_with("def fewest_questions"), tmp_path, monkeypatch)
    exec(code_with('SCORERS.add("questions"'), {"SCORERS": SCORERS})
    exec(code_with('SELECTORS.add("fewest_questions"'), {"SELECTORS": SELECTORS})
    try:
        pool = tmp_path / "pool.jsonl"
        pool.write_text("".join(json.dumps({"id": x, "prompt": x, "response": "y"}) + "\n" for x in ("a??", "b", "c?")))
        assert score_rows("questions", rows.load_rows(pool), Inputs()).tolist() == [2, 0, 1]
        flags = ["--dataset_folder", str(tmp_path), "--dataset_dir", str(pool), "--selector", "fewest_questions"]
        done = main([*flags, "--select_n", "2"])
        chosen = rows.load_rows(done["files"]["fewest_questions"])
        assert [row["id"] for row in chosen] == ["b", "c?"]
        entry = json.loads((tmp_path / "selected" / "selection.json").read_text())["subsets"]["fewest_questions2"]
        assert entry["rule"] == "fewest question marks"
    finally:
        SCORERS.remove("questions")
        SELECTORS.remove("fewest_questions")

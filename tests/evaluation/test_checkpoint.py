"""All evaluations of a checkpoint in one process: the files of the single stages, from one load of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrail.core import steps
from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.core.steps import Step, run_steps
from guardrail.evaluation import checkpoint
from guardrail.evaluation.judges import beavertails
from guardrail.evaluation.safety import command as safety
from guardrail.evaluation.utility import evaluate as utility
from guardrail.models import loading

OF_THE_RUN = ("git", "versions", "hardware", "time_utc", "wall_sec", "generation_sec")


@pytest.fixture
def world(tmp_path) -> dict[str, str]:
    """Files of harmful prompts, harmless prompts and a task."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("harmful", "harmless", "task")}
    for name in ("harmful", "harmless"):
        rows = [{"instruction": f"Paint a {name} {thing}", "category": "x"} for thing in ("boat", "lamp")]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"instruction": f"Name a {thing}", "output": f"The {thing}."} for thing in ("boat", "lamp", "river")]
    files["task"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(path) for name, path in files.items()}


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Every model that is read from disk."""
    seen: list[str] = []
    load = loading.load_complete

    def counted(kind: Any, name: str, *arguments: Any, **options: Any) -> Any:
        seen.append(name)
        return load(kind, name, *arguments, **options)

    monkeypatch.setattr(loading, "load_complete", counted)
    return seen


def flags(model: Path, world: dict[str, str], folder: Path, *more: str) -> list[str]:
    return [
        *(f"--model_name_or_path={model}", "--torch_dtype=float32", f"--safety_bench={world['harmful']}"),
        *(f"--over_refusal_bench={world['harmless']}", f"--utility={world['task']}:rouge_1", "--heldout_loss=True"),
        *("--max_new_tokens=6", "--utility_max_new_tokens=5", f"--save_path={folder}", *more),
    ]


def content(path: Path, folder: Path) -> Any:
    """A result without what belongs to the run and the place."""
    value = json.loads(json.dumps(read_json(path)).replace(str(folder), "FOLDER"))
    value["run"] = {name: part for name, part in value["run"].items() if name not in OF_THE_RUN}
    return value


def single_stages(model: Path, world: dict[str, str], folder: Path) -> None:
    """The same by the single entry points."""
    common = [f"--model_name_or_path={model}", "--torch_dtype=float32", "--prompt_style=llama2_base"]
    common.append("--model_family=llama2_base")
    answers = [*common, "--max_new_tokens=6"]
    safety.main([*answers, f"--safety_bench={world['harmful']}", f"--save_path={folder / 'safety'}"])
    place = folder / "over_refusal"
    safety.main([*answers, f"--safety_bench={world['harmless']}", f"--save_path={place}", "--evaluator=key_word"])
    task = [f"--dataset={world['task']}", "--evaluator=rouge_1", "--heldout_loss=True", "--max_new_tokens=5"]
    utility.main([*common, *task, f"--save_path={folder / 'utility' / 'task.json'}"])


def test_the_files_are_those_of_the_single_stages_from_one_load(tiny_model, world, loads, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    single_stages(tiny_model, world, alone)
    n_alone = len(loads)
    loads.clear()
    said = checkpoint.main(flags(tiny_model, world, together))
    assert n_alone == 3 and loads == [str(tiny_model)]
    names = ("safety/results.json", "over_refusal/results.json", "over_refusal/key-word.json", "utility/task.json")
    for name in names:
        assert content(together / name, together) == content(alone / name, alone), name
    found = sorted(path.relative_to(together) for path in together.rglob("*") if path.is_file())
    assert found == sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert set(said["parts"]) == {"safety", "over_refusal", "utility/task"}
    loads.clear()
    again = checkpoint.main(flags(tiny_model, world, together))
    assert loads == [] and all(part["reused"] for part in again["parts"].values())


def test_a_part_that_fails_leaves_the_others_alone(tiny_model, world, tmp_path):
    Path(world["harmless"]).write_text('{"colour": "blue"}\n')
    with pytest.raises(UserError, match=r"1 of 3 parts failed \(over_refusal\)"):
        checkpoint.main(flags(tiny_model, world, tmp_path / "out"))
    assert (tmp_path / "out/safety/results.json").is_file() and (tmp_path / "out/utility/task.json").is_file()
    assert not (tmp_path / "out/over_refusal/results.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval_template=nosuch"], "eval template"),
        (["--utility=nosuch"], "dataset"),
        (["--generation_backend=vLLM"], "held-out loss"),
        (["--samples_per_prompt=2", "--do_sample=False"], "samples_per_prompt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(tiny_model, world, loads, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        checkpoint.main(flags(tiny_model, world, tmp_path / "out", *more))
    assert loads == [] and not (tmp_path / "out").exists()


def test_what_has_no_effect_is_refused(tiny_model, tmp_path):
    model = f"--model_name_or_path={tiny_model}"
    for more in (
        [],
        ["--safety_bench=sandbox", "--heldout_loss=True"],
        ["--safety_bench=x.csv", "--over_refusal_bench_data=y"],
    ):
        with pytest.raises(UserError, match=r"nothing to evaluate|has no effect"):
            checkpoint.main([model, *more])


def test_one_vllm_engine_serves_every_part(monkeypatch):
    """`make_engine` by the same model and options gives the engine that is there."""
    import sys
    import types

    from guardrail.core.loaded import kept_loaded
    from guardrail.generation import vllm_engine

    started: list[str] = []

    class Engine:
        def __init__(self, model: str, **options: Any) -> None:
            started.append(model)

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine))
    monkeypatch.setattr(vllm_engine, "require_vllm", lambda: None)
    monkeypatch.setattr(vllm_engine, "check_checkpoint_files", lambda model: None)
    monkeypatch.setattr(vllm_engine, "local_checkpoint", lambda model: model)
    with kept_loaded():
        engines = [vllm_engine.VLLMBackend("some/model", "float32").engine for _ in range(3)]
        assert len(set(map(id, engines))) == 1 and started == ["some/model"]
        assert vllm_engine.make_engine("some/model", "float32", runner="pooling") is not engines[0]
    vllm_engine.make_engine("some/model", "float32")
    vllm_engine.make_engine("some/model", "float32")
    assert len(started) == 4, "outside of a process of several stages nothing is kept"


def test_one_judge_serves_all_checkpoints(tiny_model, tiny_moderation, world, loads, tmp_path):
    """As a study judges: the steps of several checkpoints in one process; equal to scripts/moderate.sh's two steps."""
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        base = [f"--model_name_or_path={tiny_model}", "--torch_dtype=float32", "--max_new_tokens=6", f"--seed={seed}"]
        style = ["--prompt_style=llama2_base", "--model_family=llama2_base"]
        safety.main([*base, *style, f"--safety_bench={world['harmful']}", f"--save_path={folder}"])
    loads.clear()
    judge = [f"--model_path={tiny_moderation}", "--max_length=64", "--figure=False"]
    work = [
        Step(name=f.name, module=beavertails.__name__, arguments=(f"--data_path={f}", *judge), one_process=True)
        for f in folders
    ]
    assert [one.state for one in run_steps(work, lambda status: None)] == [steps.DONE] * 2
    assert loads == [str(tiny_moderation)]
    for folder in folders:
        alone = tmp_path / f"{folder.name}_alone"
        alone.mkdir()
        beavertails.format_main([str(folder / "results.json"), str(alone / "results_beaver-dam.json")])
        beavertails.evaluate_main(
            [f"--eval_dataset={alone / 'results_beaver-dam.json'}", f"--output_dir={alone}", *judge]
        )
        for name in ("beaver-dam.json", "results_beaver-dam.json"):
            assert content(folder / name, folder) == content(alone / name, alone)


@pytest.fixture
def tiny_moderation(tmp_path, tiny_tokenizer) -> Path:
    from toy_world import make_classifier

    return make_classifier(tmp_path / "moderation", tiny_tokenizer)

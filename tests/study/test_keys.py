"""One key per result: after every kind of change exactly the jobs that depend on it run again; nothing older shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.core.files import read_json, write_json
from guardrail.data import prompts
from guardrail.evaluation.judges.guard import Guard
from guardrail.evaluation.judges.rubric import Rubric
from guardrail.study import environment, keys
from guardrail.study.records import record_file
from guardrail.study.results import collect

from .toy_jobs import Stopped, ToyStudy

EVERYTHING = lambda name: True  # noqa: E731
NOTHING = lambda name: False  # noqa: E731


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyStudy:
    return ToyStudy(tmp_path, monkeypatch)


def append_row(name: str) -> Callable[[ToyStudy], None]:
    def change(toy: ToyStudy) -> None:
        with open(toy.folder / f"{name}.jsonl", "a", encoding="utf-8") as handle:
            handle.write('{"id": "new", "prompt": "one more", "response": "row"}\n')

    return change


def edit_row_in_place(name: str) -> Callable[[ToyStudy], None]:
    """Same size, same modification time: only the content differs."""

    def change(toy: ToyStudy) -> None:
        path = toy.folder / f"{name}.jsonl"
        stat = path.stat()
        path.write_text(path.read_text().replace("boat", "goat", 1))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns

    return change


def model_file(model: str, file: str) -> Callable[[ToyStudy], None]:
    return lambda toy: (toy.folder / model / file).write_text('{"changed": true}') and None


def setting(value: object, *path: str) -> Callable[[ToyStudy], None]:
    def change(toy: ToyStudy) -> None:
        place = toy.settings
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def stage(name: str) -> str:
    return name.split(".")[0]


def arm(name: str) -> str:
    """`list_high_sim_2`, `random_sim_2`, `none`, ...; empty for jobs of no arm."""
    parts = [part.split("__")[-1] for part in name.split(".")[1:]]
    return next((part for part in parts if part.endswith("sim_2") or part == "none"), "")


def selected(name: str) -> bool:
    return "_high_" in name or "_low_" in name


def trained(name: str) -> bool:
    """Alignment, fine-tuning and every evaluation of what they made."""
    return stage(name) in ("align", "fine_tune") or ".aligned." in name or ".cells." in name


def tuned(name: str) -> bool:
    return stage(name) == "fine_tune" or ".cells." in name


def answers(name: str) -> bool:
    return stage(name) in ("safety_answers", "harmfulness", "judge_guard", "judge_openai", "over_refusal")


CHANGES: dict[str, tuple[Callable[[ToyStudy], None], Callable[[str], bool]]] = {
    "a row of the pool": (
        append_row("pool"),
        lambda n: n == "representations.safety_pool" or stage(n) == "select" or arm(n) not in ("", "none"),
    ),
    "a row edited in place": (
        edit_row_in_place("pool"),
        lambda n: n == "representations.safety_pool" or stage(n) == "select" or arm(n) not in ("", "none"),
    ),
    "an instruction": (append_row("instruct"), lambda n: stage(n) == "mix" or trained(n)),
    "a row of one task": (
        append_row("list"),
        lambda n: (
            n in ("representations.list", "select.list_2")
            or (arm(n).startswith("list_"))
            or (tuned(n) and ".list__" in n)
        ),
    ),
    "a held-out row": (append_row("heldout"), lambda n: stage(n) == "utility"),
    "a harmful prompt": (append_row("prompts"), lambda n: answers(n) and stage(n) != "over_refusal"),
    "a harmless prompt": (append_row("benign"), lambda n: stage(n) == "over_refusal"),
    "weights of the base model": (
        model_file("base", "model.safetensors"),
        lambda n: trained(n) or n.split(".")[1] == "base",
    ),
    "tokenizer of the base model": (
        model_file("base", "tokenizer.json"),
        lambda n: trained(n) or n.split(".")[1] == "base",
    ),
    "a new file beside the weights": (
        model_file("base", "chat_template.jinja"),
        lambda n: trained(n) or n.split(".")[1] == "base",
    ),
    "weights of the extraction model": (
        model_file("extraction", "model.safetensors"),
        lambda n: stage(n) in ("representations", "select") or selected(n),
    ),
    "weights of the judge": (model_file("moderation", "model.safetensors"), lambda n: stage(n) == "harmfulness"),
    "weights of the guard": (model_file("guard", "model.safetensors"), lambda n: stage(n) == "judge_guard"),
    "another guard": (
        setting("g/other", "evaluation", "judges", "guard", "model"),
        lambda n: stage(n) == "judge_guard",
    ),
    "another rubric judge": (
        setting("other-judge", "evaluation", "judges", "openai", "model"),
        lambda n: stage(n) == "judge_openai",
    ),
    "another judge's server": (
        setting("http://127.0.0.1:2/v1", "evaluation", "judges", "openai", "base_url"),
        lambda n: stage(n) == "judge_openai",
    ),
    "threshold": (setting(0.4, "evaluation", "threshold"), lambda n: stage(n) == "harmfulness"),
    "length that the judge sees": (
        setting(256, "evaluation", "moderation_max_length"),
        lambda n: stage(n) == "harmfulness",
    ),
    "length of answers": (setting(16, "evaluation", "max_new_tokens"), answers),
    "sampling": (setting(True, "evaluation", "do_sample"), answers),
    "number of prompts": (setting(3, "evaluation", "limit"), answers),
    "learning rate of alignment": (setting(2e-3, "alignment", "learning_rate"), trained),
    "batch of alignment": (setting(8, "alignment", "per_device_train_batch_size"), trained),
    "epochs of fine-tuning": (setting(3, "fine_tuning", "epochs"), tuned),
    "DeepSpeed file": (setting("ds_z2_config.json", "fine_tuning", "ds_cfgs"), tuned),
    "length of summaries": (
        setting(12, "tasks", "list", "utility", "max_new_tokens"),
        lambda n: stage(n) == "utility" and n.endswith(".list"),
    ),
    "evaluator": (
        setting("exact_match", "tasks", "list", "utility", "evaluator"),
        lambda n: stage(n) == "utility" and n.endswith(".list"),
    ),
    "dtype": (setting("float32", "dtype"), lambda n: not (stage(n) == "mix" and not selected(n)) and dtype_reads(n)),
    "instructions used": (setting(3, "instruct_size"), lambda n: stage(n) == "mix" or trained(n)),
    "logging": (setting("none", "log_type"), NOTHING),
    "description": (setting("other words", "description"), NOTHING),
    "a seed less": (setting([1], "seeds"), NOTHING),
    "a subset less": (setting(["high", "random"], "subsets"), NOTHING),
    "a judge less": (lambda toy: toy.settings["evaluation"]["judges"].pop("guard") and None, NOTHING),
    "trainer": (lambda toy: setattr(toy, "trainer", "align_anything.trainers.text_to_text.sft"), trained),
    "ranks": (lambda toy: setattr(toy, "ranks", 4), trained),
}


def dtype_reads(name: str) -> bool:
    """Extraction and every evaluation have the study's dtype; so has what is trained on what extraction selected."""
    evaluated = answers(name) or stage(name) == "utility"
    return evaluated or stage(name) in ("representations", "select") or selected(name)


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_what_depends_on_a_change_runs_again(toy, change):
    toy.run()
    assert toy.todo() == []
    apply, expected = CHANGES[change]
    apply(toy)
    wanted = {name for name in toy.jobs() if expected(name)}
    if change == "another guard":  # a hub name: nothing of the old model is read any more
        assert wanted
    planned = toy.todo()
    assert set(planned) == wanted
    toy.shown_numbers_are_of_this_study()
    assert set(toy.run()) == wanted, "what runs is what was planned"
    assert toy.todo() == []
    toy.shown_numbers_are_of_this_study()


ADDITIONS = {
    "a seed": (setting([1, 2, 3], "seeds"), lambda n: "seed3" in n),
    "a size": (setting([2, 3], "subset_sizes"), lambda n: "sim_3" in n or (stage(n) == "select" and n.endswith("_3"))),
    "a subset drawn from the pool": (
        setting(["high", "low", "random", "none", "full"], "subsets"),
        lambda n: any(part.split("__")[-1] == "full" for part in n.split(".")),
    ),
    "a selected subset": (
        setting(["high", "low", "random", "none", "longest"], "subsets"),
        lambda n: "longest" in n or stage(n) == "select",
    ),
}


@pytest.mark.parametrize("change", ADDITIONS)
def test_an_addition_runs_alone(toy, change):
    toy.run()
    before = set(toy.jobs())
    apply, expected = ADDITIONS[change]
    apply(toy)
    wanted = {name for name in toy.jobs() if expected(name)}
    assert wanted - before
    assert set(toy.run()) == wanted
    assert toy.todo() == []
    toy.shown_numbers_are_of_this_study()


def test_a_judge_s_texts_and_options_are_in_its_key(toy, monkeypatch):
    toy.run()
    monkeypatch.setattr(Rubric, "prompts", ("Another rubric.",))
    assert {stage(name) for name in toy.todo()} == {"judge_openai"}
    monkeypatch.undo()
    assert toy.todo() == []
    monkeypatch.setattr(Guard, "version", 2)
    assert {stage(name) for name in toy.todo()} == {"judge_guard"}


def test_a_bench_counts_by_its_content_wherever_it_lies(toy):
    toy.run()
    elsewhere = toy.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(toy.folder / "prompts.jsonl", elsewhere)
    toy.settings["evaluation"]["safety_bench"] = str(elsewhere / "prompts.jsonl")
    assert toy.todo() == []


def test_a_prompt_style_s_text_is_in_every_key_that_uses_it(toy, monkeypatch):
    toy.run()
    module = prompts.template_module.__wrapped__()
    style = module.STYLES["llama2_base"]
    changed = type(style)(**{**vars(style), "first_user": style.first_user + " "})
    module.STYLES = {**module.STYLES, "llama2_base": changed}
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    left = set(toy.jobs()) - set(toy.todo())
    assert left == {name for name in toy.jobs() if stage(name) == "mix" and not selected(name)}


def test_an_eval_template_s_text_is_in_the_keys_of_answers(toy, monkeypatch):
    toy.run()
    module = prompts.template_module.__wrapped__()
    module.EVAL_TEMPLATES = {**module.EVAL_TEMPLATES, "plain": (None, "Please: {text}")}
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    assert set(toy.todo()) == {name for name in toy.jobs() if answers(name)}


@pytest.mark.parametrize("stage_name", list(keys.STAGE_VERSIONS))
def test_a_raised_version_runs_its_stage_and_what_follows(toy, monkeypatch, stage_name):
    toy.settings["fine_tuning"]["probes"] = 3  # so that every stage is there
    if stage_name == "dose":
        dose = {"harmful": toy.settings["tasks"]["pure_bad"]["train"], "rows": 4, "percents": [0, 50]}
        toy.settings["tasks"] = {"list": {**toy.settings["tasks"]["list"], "dose": dose}}
    if stage_name == "scores":
        toy.settings["defences"] = {"chance": {"method": "row_filter", "scorer": "random"}}
    toy.run()
    monkeypatch.setitem(keys.STAGE_VERSIONS, stage_name, keys.STAGE_VERSIONS[stage_name] + 1)
    todo = toy.todo()
    job = {"trajectory": "fine_tune"}.get(stage_name, stage_name)  # probes are a second product of a training
    own = {name for name in toy.jobs() if stage(name).startswith(job)}
    assert own and own <= set(todo)
    below = {name for name, job in toy.jobs().items() if set(job.needs) & set(todo)}
    assert set(todo) <= own | below


@pytest.mark.parametrize("what", ["changed", "deleted", "record gone", "record of another key", "record cut"])
def test_a_result_that_is_not_the_recorded_one_is_not_shown(toy, what):
    toy.run()
    grid = toy.grid
    cell = grid.cells[0]
    job = f"harmfulness.cells.{cell.name}.seed{cell.seed}"
    file = grid.cell_folder(cell) / "evaluation/safety/beaver-dam.json"
    record = record_file(grid.folder, job, "judgements")
    if what == "changed":
        content = read_json(file)
        content["summary"]["harmfulness_score_percent"] = 0.0
        write_json(file, content)
    elif what == "deleted":
        file.unlink()
    elif what == "record gone":
        record.unlink()
    elif what == "record cut":
        record.write_bytes(record.read_bytes()[:40])
    else:
        write_json(record, {**read_json(record), "key": "0" * 16})
    row = collect(toy.results())["cells"][0]
    assert row["status"] in ("stale", "missing") and "final" not in row
    assert toy.todo() == [job]
    toy.run()
    assert toy.todo() == []
    toy.shown_numbers_are_of_this_study()


def test_a_replaced_checkpoint_is_made_again_and_its_evaluations_are_kept(toy):
    toy.run()
    grid = toy.grid
    write_json(grid.cell_folder(grid.cells[0]) / "slice_end" / "config.json", {"somebody": "else"})
    assert toy.todo() == [f"fine_tune.{grid.cells[0].name}.seed1"]


def test_a_job_never_reads_what_is_not_done(toy):
    toy.run()
    setting(2e-3, "alignment", "learning_rate")(toy)
    name = next(name for name in toy.jobs() if stage(name) == "safety_answers" and ".cells." in name)
    assert toy.run([name]) == [], "its model is stale: it does not start"
    toy.shown_numbers_are_of_this_study()


def test_a_finished_result_without_its_record_is_kept(toy):
    """Killed between the result and the record: the result carries the key, so it is not made again."""
    toy.run()
    name = next(name for name in toy.jobs() if stage(name) == "align")
    record_file(toy.grid.folder, name, "checkpoint").unlink()
    assert toy.todo() == [name]
    assert toy.run() == [] and toy.todo() == []


def test_a_failure_is_said_with_its_log_and_tried_again(toy):
    name = next(name for name in toy.jobs() if stage(name) == "fine_tune")
    toy.fail_at = name
    toy.run()
    row = next(row for row in collect(toy.results())["cells"] if row["status"] != "done")
    assert row["status"] == "failed" and row["reason"] == "the stage is broken" and Path(row["log"]).is_file()
    toy.fail_at = None
    assert name in toy.todo()
    toy.run()
    assert collect(toy.results())["n_failed"] == 0


def test_the_old_number_is_gone_when_the_new_one_fails(toy):
    """As it was seen: learning rate changed, stage broken, and the old number was reported as done."""
    toy.run()
    setting(5e-3, "fine_tuning", "learning_rate")(toy)
    toy.fail_at = next(name for name in toy.jobs() if stage(name) == "fine_tune")
    toy.run()
    statuses = [row["status"] for row in collect(toy.results())["cells"]]
    assert statuses.count("failed") == 1 and statuses.count("done") == len(statuses) - 1
    toy.shown_numbers_are_of_this_study()


def test_what_a_judge_s_server_left_open_is_asked_again_and_nothing_else(toy):
    """Seen: `rubric.json` with 100% errors was up to date afterwards. A guard in this process would say the same."""
    toy.judge_error_percent = 100.0
    toy.run()
    again = {name for name in toy.jobs() if stage(name) == "judge_openai"}
    assert set(toy.todo()) == again and collect(toy.results())["n_failed"] == 0
    toy.judge_error_percent = 0.0
    assert set(toy.run()) == again and toy.todo() == []


@st.composite
def histories(draw):
    """Changes of settings and data, runs that are stopped or fail at some job, in any order."""
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from([*CHANGES, *ADDITIONS, None]))
        fate = draw(st.sampled_from(["whole", "fail", "before", "between", "after", "no run"]))
        steps.append((change, fate, draw(st.integers(0, 10_000))))
    return steps


@given(histories())
@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_history_shows_a_number_of_an_older_state(tmp_path_factory, history):
    with pytest.MonkeyPatch.context() as patch:
        toy = ToyStudy(tmp_path_factory.mktemp("history"), patch)
        for change, fate, where in history:
            if change is not None:
                apply, _ = {**CHANGES, **ADDITIONS}[change]
                try:
                    apply(toy)
                except KeyError:  # a judge that an earlier step took away
                    continue
            toy.shown_numbers_are_of_this_study()
            todo = toy.todo()
            if fate == "no run" or not todo:
                continue
            target = todo[where % len(todo)]
            toy.fail_at = target if fate == "fail" else None
            toy.stop_at = (target, fate) if fate in ("before", "between", "after") else None
            with contextlib.suppress(Stopped):
                toy.run()
            toy.fail_at = toy.stop_at = None
            toy.shown_numbers_are_of_this_study()
        toy.run()
        assert toy.todo() == []
        assert collect(toy.results())["n_failed"] == 0
        toy.shown_numbers_are_of_this_study()
        shutil.rmtree(toy.folder)


def test_keys_hold_no_path_of_outputs_and_no_place_of_the_world(tmp_path, monkeypatch):
    """The same world elsewhere has the same keys, but for benches and models that are named by their path."""
    one, two = (ToyStudy(tmp_path / name, monkeypatch) for name in ("one", "two"))
    same = ("representations", "select", "mix", "align", "fine_tune")
    first, second = ({name: job for name, job in toy.jobs().items() if stage(name) in same} for toy in (one, two))
    assert {n: j.products[0].key.value for n, j in first.items()} == {
        n: j.products[0].key.value for n, j in second.items()
    }


def test_what_is_in_a_key_lies_beside_the_result(toy):
    toy.run()
    name = next(name for name in toy.jobs() if stage(name) == "fine_tune")
    record = read_json(record_file(toy.grid.folder, name, "checkpoint"))
    assert record["parts"]["options"]["learning_rate"] == 1e-3 and set(record["parts"]["needs"]) == {"model"}
    assert json.loads(json.dumps(record["parts"])) == record["parts"]


@pytest.mark.parametrize(
    "name", ["SEED", "BENCH_DATA", "OPENAI_BASE_URL", "PROMPT_STYLE", "ZERO_STAGE_FILE", "SFT_MODULE"]
)
def test_what_decides_does_not_leak_from_the_shell(name):
    assert name not in environment.stage_environment({name: "x"}, {})
    assert environment.stage_environment({name: "x"}, {name: "y"})[name] == "y"


OTHER_SCRIPTS = ("install.sh", "install_vllm.sh", "setup.sh", "study.sh", "quickstart.sh", "test.sh", "admit.sh")
OTHER_SCRIPTS += ("audit.sh", "score_rows.sh")


def test_every_setting_of_the_scripts_is_kept_out():
    """Every variable that a script reads as `${NAME:-default}` is a setting, unless it is about devices."""
    scripts = [file for file in (REPOSITORY / "scripts").glob("*.sh") if file.name not in OTHER_SCRIPTS]
    read = {
        name for file in scripts for name in re.findall(r"^(?:export )?([A-Z_]+)=\"\$\{\1:-", file.read_text(), re.M)
    }
    assert {"SEED", "BENCH_DATA", "EPOCHS"} <= read
    assert {name for name in read if environment.passes(name)} == set()


def test_the_page_lists_what_passes():
    page = (REPOSITORY / "docs" / "keys.md").read_text(encoding="utf-8")
    assert [name for name in environment.PASSED if f"`{name}`" not in page] == []

"""Several stages in one process: each with its log, key and time; a failure is of one step; what is loaded stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from toys import REPOSITORY

from guardrail.core import ranks
from guardrail.core.errors import UserError
from guardrail.core.loaded import kept_loaded, loaded
from guardrail.core.steps import DONE, FAILED, LEFT_OUT, STARTED, Step, main, read_status, run_steps, write_steps

STAGE = """
import os, sys
from guardrail.core.errors import UserError
from guardrail.core.loaded import loaded
from guardrail.core.provenance import run_record

CALLS = []

def main(argv):
    print("stage", *argv)
    print("told", *argv, file=sys.stderr)
    os.write(1, b"from below\\n")
    if "user" in argv:
        raise UserError("no such rows")
    if "crash" in argv:
        raise ValueError("broken")
    if "gone" in argv:
        os._exit(9)
    loaded(lambda: CALLS.append(argv), "model")
    record = run_record("x", {})
    return {"n": len(CALLS), "key": record.get("job_key"), "wall_sec": record["wall_sec"]}
"""


@pytest.fixture
def stage(tmp_path, monkeypatch) -> str:
    (tmp_path / "some_stage.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "some_stage", raising=False)
    return "some_stage"


def step(stage: str, name: str, *arguments: str, **more) -> Step:
    return Step(name=name, module=stage, arguments=arguments, **more)


def test_each_step_has_its_log_its_key_and_one_load(stage, tmp_path, capfd):
    steps = [step(stage, name, name, log=str(tmp_path / f"{name}.log"), key=f"key of {name}") for name in "ab"]
    heard = []
    with capfd.disabled():  # pytest's stdout is none of the process's
        ended = run_steps(steps, heard.append)
    assert [(one.step, one.state) for one in heard] == [("a", STARTED), ("a", DONE), ("b", STARTED), ("b", DONE)]
    assert [one.result["key"] for one in ended] == ["key of a", "key of b"]
    assert [one.result["n"] for one in ended] == [1, 1], "the second step found the first one's model"
    assert all(one.wall_sec < 5 and one.result["wall_sec"] < 5 for one in ended), "not the time since the process began"
    for name in "ab":
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        assert lines[:3] == [f"stage {name}", f"told {name}", "from below"] and json.loads(lines[3])["n"] == 1
    assert "GUARDRAIL_JOB_KEY" not in os.environ


def test_a_user_error_is_of_one_step_and_of_what_needs_it(stage, tmp_path, capfd):
    steps = [
        step(stage, "a", "user", log=str(tmp_path / "a.log")),
        step(stage, "b", needs=("a", "of another process")),
        step(stage, "c", needs=("b",)),
        step(stage, "d", log=str(tmp_path / "d.log")),
    ]
    with capfd.disabled():
        ended = run_steps(steps, lambda status: None)
    assert [one.state for one in ended] == [FAILED, LEFT_OUT, LEFT_OUT, DONE]
    assert ended[0].reason == "no such rows" and "error: no such rows" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(("what", "code"), [("crash", 1), ("gone", 9)])
def test_what_takes_the_process_with_it_is_the_step_that_had_begun(stage, tmp_path, what, code):
    steps = [step(stage, "a"), step(stage, "b", what, log=str(tmp_path / "b.log")), step(stage, "c")]
    status = write_steps(tmp_path / "steps.json", steps)
    done = subprocess.run(
        [sys.executable, "-m", "guardrail.core.steps", str(tmp_path / "steps.json")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
    )
    found, offset = read_status(status, 0)
    assert done.returncode == code
    assert [(one.step, one.state) for one in found] == [("a", STARTED), ("a", DONE), ("b", STARTED)]
    assert offset == status.stat().st_size
    if what == "crash":
        assert (tmp_path / "b.log").read_text().endswith("ValueError: broken\n")


def test_a_line_that_is_being_written_is_read_later(tmp_path):
    file = write_steps(tmp_path / "steps.json", [])
    file.write_bytes(b'{"step": "a", "state": "done"}\n{"step": "b", ')
    found, offset = read_status(file, 0)
    assert [one.step for one in found] == ["a"]
    with open(file, "ab") as handle:
        handle.write(b'"state": "done"}\n')
    assert [one.step for one in read_status(file, offset)[0]] == ["b"]


def test_a_command_line_that_cannot_be():
    for given in ([], ["nowhere.json"], ["a", "b"]):
        with pytest.raises(UserError, match="expected one file of steps"):
            main(given)


def test_the_last_model_is_kept_inside_only():
    calls = []
    for _ in range(2):
        loaded(lambda: calls.append("alone"), "x")
    assert calls == ["alone"] * 2
    with kept_loaded():
        for what in ("x", "x", "y", "y", "x"):
            assert loaded(lambda what=what: calls.append(what) or [what], what) == [what]
    assert calls[2:] == ["x", "y", "x"], "one at a time"


RANKS = """
import json, sys
from pathlib import Path
from guardrail.core import ranks
from guardrail.core.errors import UserError

def main(argv):
    folder = Path(argv[0])
    if argv[1] == "alone":
        (folder / f"alone.{ranks.world_size()}.{ranks.rank()}").touch()
        return {}
    with ranks.process_group():
        if argv[1] == "fail" and ranks.is_main():
            raise UserError("only the first rank knows")
        found = ranks.gather(ranks.rank())
    return {"ranks": found}
"""


@pytest.mark.slow
def test_two_ranks_share_a_step_and_one_fails_for_both(tmp_path, free_port):
    """One group for all steps; a step of one process runs on the first; an error of one rank ends both."""
    (tmp_path / "rank_stage.py").write_text(RANKS)
    steps = [step("rank_stage", name, str(tmp_path), name) for name in ("one", "two")]
    steps.insert(1, step("rank_stage", "alone", str(tmp_path), "alone", one_process=True))
    steps += [
        step("rank_stage", "fail", str(tmp_path), "fail", log=str(tmp_path / "fail.log")),
        step("rank_stage", "x"),
    ]
    status = write_steps(tmp_path / "steps.json", steps)
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port}", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command, "guardrail.core.steps", str(tmp_path / "steps.json")],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode != 0
    found, _ = read_status(status, 0)
    assert [(one.step, one.state) for one in found if one.state != STARTED] == [
        ("one", DONE),
        ("alone", DONE),
        ("two", DONE),
    ]
    assert [one.result for one in found if one.step in ("one", "two") and one.state == DONE] == [{"ranks": [0, 1]}] * 2
    assert [path.name for path in tmp_path.glob("alone.*")] == ["alone.1.0"]
    assert "error: only the first rank knows" in (tmp_path / "fail.log").read_text()
    assert found[-1].step == "fail" and found[-1].state == STARTED


def test_a_group_inside_a_group_leaves_it_alone(monkeypatch, tmp_path):
    """`process_group` of a stage inside that of the process: joined once, left once."""
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setenv("WORLD_SIZE", "2")
    events = []
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(events) and events[-1] != "left")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: events.append("joined"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: events.append("left"))
    monkeypatch.setattr(dist, "barrier", lambda: events.append("waited"))
    with ranks.process_group():
        with ranks.process_group():
            pass
        with ranks.process_group():
            pass
    assert events == ["joined", "waited", "waited", "waited", "left"]


@pytest.mark.parametrize("one_process", ["True", "False"])
def test_the_script_starts_where_no_gpu_is_named(stage, tmp_path, one_process):
    """Seen: `GPUS: unbound variable` on a machine without one, when every stage runs in one process."""
    status = write_steps(tmp_path / "steps.json", [step(stage, "a")])
    environment = {name: value for name, value in os.environ.items() if name not in ("GPUS", "NUM_PROCESSES")}
    environment |= {"DEVICE": "cpu", "ONE_PROCESS": one_process, "PYTHONPATH": str(tmp_path)}
    command = ["bash", str(REPOSITORY / "scripts" / "stages.sh"), str(tmp_path / "steps.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [one.state for one in read_status(status, 0)[0]] == [STARTED, DONE]

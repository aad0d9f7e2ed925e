"""Resumable units: whatever a kill, a torn file or another number of ranks leaves behind, the rows are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.units import FOLDER, Units, clear_units, consecutive, pending, share


def square(items: list[int]) -> list[dict[str, int]]:
    return [{"square": item * item} for item in items]


def rows_of(n: int) -> list[dict[str, int]]:
    return square(list(range(n)))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 12), size=st.integers(1, 5), states=st.lists(st.sampled_from(["done", "torn", "short", "absent"]))
)
def test_any_state_of_the_files_gives_the_same_rows_and_repeats_nothing_that_is_whole(n, size, states):
    with tempfile.TemporaryDirectory() as folder:
        units = Units(consecutive(range(n), size), folder, "key", identity=lambda item: item)
        expected_work = []
        for number, group in enumerate(units.groups):
            state = states[number] if number < len(states) else "absent"
            if state != "absent":
                units.write(number, square(group))
            text = units.file(number).read_text() if state != "absent" else ""
            if state == "torn":
                units.file(number).write_text(text[:-3])
            if state == "short":
                units.file(number).write_text("".join(text.splitlines(keepends=True)[:-1]))
            if state != "done":
                expected_work += group
        worked = []
        assert units.run(lambda items: worked.extend(items) or square(items), "square") == rows_of(n)
        assert worked == expected_work
        units.clear()
        assert list(Path(folder).iterdir()) == []


def test_another_key_or_plan_reads_nothing_and_clearing_leaves_its_files(tmp_path):
    def run(key: str, size: int = 2, n: int = 4) -> int:
        calls = []
        units = Units(consecutive(range(n), size), tmp_path, key, identity=lambda item: item)
        assert units.run(lambda items: calls.append(1) or square(items), "square") == rows_of(n)
        return len(calls)

    assert [run("a"), run("a"), run("b"), run("a", size=3), run("a", n=5)] == [2, 0, 2, 2, 3]
    clear_units(tmp_path, "a")
    assert run("b") == 0
    clear_units(tmp_path, "b")
    assert not (tmp_path / FOLDER).exists()


def test_a_row_that_is_not_final_is_kept_and_only_its_item_is_asked_again(tmp_path):
    down = True
    asked: list[int] = []

    def ask(items):
        asked.extend(items)
        return [{"error": "server" if down and item in (1, 4) else None, "item": item} for item in items]

    def run():
        return Units(consecutive(range(6), 2), tmp_path, "key", final=lambda row: row["error"] is None).run(ask, "ask")

    assert [row["item"] for row in run() if row["error"]] == [1, 4]
    asked.clear()
    down = False
    assert [row["error"] for row in run()] == [None] * 6
    assert asked == [1, 4]
    asked.clear()
    assert len(run()) == 6 and not asked


def test_a_wrong_number_of_rows_is_never_written(tmp_path):
    units = Units([[1, 2]], tmp_path, "key")
    with pytest.raises(AssertionError, match="2 items but 1 rows"):
        units.run(lambda items: square(items[:1]), "square")
    assert not units.file(0).exists()


def test_a_file_that_a_rank_cannot_see_is_named(tmp_path):
    units = Units([[1], [2]], tmp_path, "key")
    units.write(0, square([1]))
    with pytest.raises(UserError, match="batch 1 is missing"):
        units.collect()


def test_ranks_share_what_is_pending(monkeypatch):
    todo = pending(7, lambda n: n in (2, 3))
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(share(todo))
    assert sorted(number for one in shares for number in one) == [0, 1, 4, 5, 6]


# argv: folder, units after which this rank kills itself (0: never), seconds that rank 1 takes to read a file
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from guardrail.core.ranks import is_main, process_group, rank
from guardrail.core.units import Units, consecutive
folder, kill_after, slow = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
units = Units(consecutive(list(range(20)), 2), folder, "key", identity=lambda item: item)
count = 0
def work(items):
    global count
    if kill_after and count == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return [{"square": item * item} for item in items]
with process_group():
    if rank() == 1 and slow:
        read = units.read
        units.read = lambda number: (time.sleep(slow), read(number))[1]
    rows = units.run(work, "square")
    if is_main():
        (folder / "result.json").write_text(json.dumps({"rows": rows, "worked": count}))
        units.clear()
"""


def run_worker(folder: Path, kill_after: int = 0, slow: float = 0.0, launcher: tuple[str, ...] = ()):
    folder.mkdir(exist_ok=True)
    script = folder.parent / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, *launcher, str(script), str(folder), str(kill_after), str(slow)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_sigkill_at_every_unit_then_resume_equals_an_undisturbed_run(tmp_path):
    out = tmp_path / "out"
    for _ in range(4):  # every run does two more units, then is killed
        assert run_worker(out, kill_after=2).returncode == -signal.SIGKILL
        assert not (out / "result.json").exists()
    done = run_worker(out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text()) == {"rows": rows_of(20), "worked": 2}
    assert [file.name for file in out.iterdir()] == ["result.json"]


@pytest.mark.slow
def test_two_ranks_resume_one_ranks_work_and_no_file_goes_before_the_slow_rank_has_read_it(tmp_path, free_port):
    out = tmp_path / "out"
    assert run_worker(out, kill_after=3).returncode == -signal.SIGKILL
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port))
    done = run_worker(out, slow=0.2, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text()) == {"rows": rows_of(20), "worked": 4}  # of the 7 missing

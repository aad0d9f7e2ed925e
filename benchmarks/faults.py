"""Faults: killed, out of disk, its judges' servers failing: a study ends with the numbers of an undisturbed one.

    python benchmarks/faults.py                                   # all three; 100 kills: about 40 minutes on two cores
    python benchmarks/faults.py --parts kills --kills 20 --seed 7
    python benchmarks/faults.py --parts server --work /tmp/faults # keeps (and reuses) what was finished there

The study is the toy of tests/toy_world.py: real scripts on random models. ``kills`` ends its process group with
`kill -9` at random points of every stage and continues, also after its learning rates were changed in place. ``disk``
runs it on a small file system in memory that is full, or fills while it runs (needs root). ``server`` gives it two
judges behind servers that fail in every way. At each fault: no file that looks complete is damaged, and no number is
shown that is not the undisturbed run's for exactly these settings. The last line is JSON; exit code 1 if anything is
wrong.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from openai_server import Cut, Raw, Reset, ScriptedServer, Silence, Stall, Status
from toy_world import NAME, comparable, finish, kill, make_world, start, stderr_of, write_study
from toys import REPOSITORY

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import hash_json, read_json, read_jsonl, write_json
from guardrail.study.config import load_study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.results import Results, collect
from guardrail.study.schedule import OUR_TRAINER

PARTS = ("kills", "disk", "server")
LONGEST_DELAY_SEC = 8.0
STEPS = {"check", "schedule", "write", "snakemake", "study.sh"}
KILLS_PER_JOB = 3  # then it may end: a start-up that is longer than the time it is given must not stop everything
START_SHARE, SECOND_JOB_SHARE = 0.12, 0.25  # of the kills: before any job runs; in the second job of a run
DISK_STEPS = ((0, False), (0, True), (150, True), (600, True))  # KiB left to the study, and: once it runs?
RUBRIC_MODEL, GUARD_MODEL = "judge", "watch"
STALL_SEC = 2.0  # then the connection breaks; the client's own limit is 120 seconds
FAILURES: dict[str, tuple[Any, ...]] = {  # one run each; then the server is well again
    "refused": ("refused",),
    "reset": (Reset(),),
    "stalled": (Stall(),),
    "silent": (Silence(),),
    "429": (Status(429, {"Retry-After": "0"}),),
    "500": (Status(500),),
    "503": (Status(503, {"Retry-After": "0"}),),
    "404": (Status(404),),
    "truncated body": (Cut(),),
    "no JSON": (Raw(b"<html>busy</html>"),),
    "no choice": (Raw(b'{"choices": []}'),),
    "wrong model": ("wrong model",),
    "empty reply": ("",),
    "no verdict": ("I would rather not say.",),
    "half, then refused": (Status(500), "refused"),
}
WITHOUT_NUMBERS = {"task", "subset", "subset_size", "seed", "alignment", "status", "reason", "log"}


@dataclass(frozen=True)
class World:
    """Where everything is, and the study's settings in their two variants ``a`` and ``b`` (other learning rates)."""

    folder: Path
    settings: dict[str, Any]

    def study(self, variant: str, **changes: Any) -> Path:
        training = dict(self.settings["alignment"])
        if variant == "b":
            training["learning_rate"] = 2 * training["learning_rate"]
            changes |= {"alignment": training, "fine_tuning": training}
        return write_study(self.folder / f"study_{variant}" / f"{NAME}.yaml", self.settings, **changes)

    def reference(self, variant: str) -> Path:
        """Outputs of an undisturbed run; made once."""
        outputs = self.folder / f"reference_{variant}"
        said = finish(self.study(variant), outputs)
        if (said["code"], said.get("n_failed")) != (0, 0):
            raise UserError(f"the undisturbed run failed; see {stderr_of(outputs)}")
        return outputs


def results_of(study: Path, outputs: Path) -> Results:
    grid = Grid(load_study(study), outputs)
    return Results(grid, make_jobs(grid, OUR_TRAINER))


def rows_of(content: dict[str, Any], outputs: Path) -> list[dict[str, Any]]:
    """Base and cells without places."""
    text = json.dumps([content["base"], *content["cells"]])
    return list(json.loads(text.replace(str(outputs), "OUT")))


def wrong_numbers(content: dict[str, Any], outputs: Path, reference: list[dict[str, Any]]) -> list[str]:
    """What ``content`` shows that is neither the reference's row nor a row without numbers."""
    out = []
    for row, true in zip(rows_of(content, outputs), reference, strict=True):
        if row["status"] != "done":
            if not set(row) <= WITHOUT_NUMBERS or row["status"] not in ("failed", "stale", "missing"):
                out.append(f"a row that is {row['status']} has {sorted(row)}")
        elif without_missing_judges(row, row) != without_missing_judges(true, row):
            out.append(f"{json.dumps(row)[:400]} instead of {json.dumps(true)[:400]}")
    return out


def without_missing_judges(row: Any, like: Any) -> Any:
    """``row`` without the judges that are missing in ``like``: they may be, without a number."""
    if not isinstance(row, dict):
        return row
    missing = {name for name, part in like.items() if isinstance(part, dict) and set(part) == {"missing"}}
    return {k: without_missing_judges(v, like[k]) for k, v in row.items() if k in like and k not in missing}


def damaged(folder: Path) -> list[str]:
    """Files under a final name that cannot be read. Logs, and what a stage appends to while it runs, are left out."""
    import pyarrow.parquet
    from safetensors import safe_open

    readers = {
        ".json": read_json,
        ".jsonl": read_jsonl,
        ".parquet": pyarrow.parquet.read_table,
        ".safetensors": lambda path: safe_open(path, "pt").keys(),
    }
    out = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        reader = readers.get(path.suffix)
        if reader is None or path.name == "train_log.jsonl" or any(part.startswith(".") for part in inside):
            continue
        try:
            reader(path)
        except FileNotFoundError:
            continue  # renamed or taken away meanwhile
        except Exception as error:
            out.append(f"{path.relative_to(folder)}: {type(error).__name__} {str(error)[:200]}")
    return out


class Check:
    """Collects what is wrong; one per part of the benchmark."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.problems: list[str] = []
        self.n_checks = 0
        self.rows: dict[Path, list[dict[str, Any]]] = {}

    def shown(self, study: Path, outputs: Path, reference: Path, when: str) -> None:
        """What the tables would show now."""
        if reference not in self.rows:
            self.rows[reference] = rows_of(read_json(reference / NAME / "study.json"), reference)
        self.n_checks += 1
        content = collect(results_of(study, outputs))
        self.add(wrong_numbers(content, outputs, self.rows[reference]), f"{when}: shown")

    def files(self, outputs: Path, when: str) -> None:
        self.add(damaged(outputs / NAME), f"{when}: damaged")

    def no_tracebacks(self, outputs: Path, when: str) -> None:
        """Errors are one line, on the terminal and in every log."""
        for path in (stderr_of(outputs), *(outputs / NAME).rglob("*.log")):
            if "Traceback" in path.read_text(errors="replace"):
                self.add([path.name], f"{when}: a traceback in")

    def equal(self, outputs: Path, reference: Path, said: dict[str, Any], when: str) -> None:
        if (said["code"], said.get("n_failed")) != (0, 0):
            self.add([f"{said['code']}, {said.get('n_failed')} failed: {said['stderr'][-600:]}"], f"{when}: exit code")
        elif comparable(outputs) != comparable(reference):
            self.add([str(outputs)], f"{when}: study.json differs")

    def add(self, found: list[str], when: str) -> None:
        for text in found:
            log(f"WRONG {when} {text}")
            self.problems.append(f"{when} {text}"[:1000])


# ---------------------------------------------------------------------------------------------------------- kills


def running(session: int) -> list[str]:
    """What runs in the session: names of the study's processes, else the step (`STEPS`)."""
    jobs, steps = [], []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int(place.joinpath("stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            words = place.joinpath("cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except (OSError, IndexError, ValueError):  # it has ended
            continue
        modules = [word.removeprefix("guardrail.study.") for word in words if word.startswith("guardrail.study.")]
        if "run_job" in modules:
            jobs.append(words[-1])
        elif modules:
            steps.append(modules[0])
        elif any(word.endswith("bin/snakemake") for word in words):
            steps.append("snakemake")
    return sorted(set(jobs)) or sorted(set(steps) - {"snakemake"}) or sorted(set(steps)) or ["study.sh"]


def wait_for(process: subprocess.Popen[str], wanted: int, tired: set[str]) -> bool:
    """Until the ``wanted``-th process that is not ``tired`` (or the step write) has begun. False when the run ended."""
    seen: set[str] = set()
    while process.poll() is None:
        now = set(running(process.pid))
        seen |= now - STEPS - tired
        if len(seen) >= wanted or ("write" in now and "write" not in tired):
            return True
        time.sleep(0.1)
    return False


def kills(world: World, n: int, seed: int) -> dict[str, Any]:
    """Kill and continue until ``n`` kills are counted; every study is continued to its end and compared."""
    rng, check = random.Random(seed), Check(world)
    by_stage: Counter[str] = Counter()
    n_kills = n_rounds = n_equal = n_written = 0
    while n_kills < n:
        variant = "ab"[n_rounds % 2]  # every second round begins on the other one's finished results
        study, reference = world.study(variant), world.reference(variant)
        outputs = world.folder / f"killed_{n_rounds // 2}"
        jobs = make_jobs(Grid(load_study(study), outputs), OUR_TRAINER)
        hits: Counter[str] = Counter()
        while n_kills < n:
            tired = {name for name, count in hits.items() if count >= KILLS_PER_JOB}
            process = start(study, outputs)
            if rng.random() < START_SHARE:
                time.sleep(rng.uniform(0.1, 4))
            elif not wait_for(process, 1 + (rng.random() < SECOND_JOB_SHARE), tired):
                break
            else:
                time.sleep(rng.uniform(0, LONGEST_DELAY_SEC))
            if process.poll() is not None:
                break
            if n_kills % 3 == 0 and (outputs / NAME).is_dir():
                check.shown(study, outputs, reference, f"before kill {n_kills + 1}")  # while it runs
            at = running(process.pid)
            kill(process)
            n_kills += 1
            hits.update(at)
            stages = {jobs[name].stage if name in jobs else name.split(".")[0] for name in at}
            by_stage.update(stages)
            when = f"kill {n_kills} at {', '.join(at)}"
            log(f"{time.strftime('%H:%M:%S')} {when}")
            if (outputs / NAME).is_dir():
                check.shown(study, outputs, reference, when)
                check.files(outputs, when)
            if n_kills % 10 == 0 and (outputs / NAME / "study_config.json").is_file():
                n_written += 1
                check_written(check, study, outputs, reference, when)
        said = finish(study, outputs)
        before = len(check.problems)
        check.equal(outputs, reference, said, f"round {n_rounds + 1}")
        check.no_tracebacks(outputs, f"round {n_rounds + 1}")
        check.files(outputs, f"round {n_rounds + 1}")
        n_equal += len(check.problems) == before
        n_rounds += 1
        log(f"round {n_rounds}: {n_kills} kills, {len(check.problems)} problems")
    leftovers = sum(1 for path in world.folder.glob("killed_*/**/.*.tmp-*"))
    return {
        "kills": n_kills,
        "kills_by_stage": dict(by_stage.most_common()),
        "studies": n_rounds,
        "equal": n_equal == n_rounds,
        "checks": check.n_checks,
        "written": n_written,
        "temporary_files_left": leftovers,
        "problems": check.problems,
    }


def check_written(check: Check, study: Path, outputs: Path, reference: Path, when: str) -> None:
    """`guardrail.study.write` on what a kill left."""
    folder = outputs / NAME
    if read_json(folder / "study_config.json")["alignment"] != read_study(study)["alignment"]:
        return  # killed before the changed study was checked: what is there is still the one before
    command = [sys.executable, "-m", "guardrail.study.write", str(folder / "study_config.json"), "--outputs", outputs]
    done = subprocess.run([str(c) for c in command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        check.add([done.stderr[-600:]], f"{when}: write failed")
        return
    content = read_json(folder / "study.json")
    check.add(wrong_numbers(content, outputs, check.rows[reference]), f"{when}: written")


def read_study(path: Path) -> dict[str, Any]:
    import dataclasses

    return json.loads(json.dumps(dataclasses.asdict(load_study(path))))


# ----------------------------------------------------------------------------------------------------------- disk


def disk(world: World) -> dict[str, Any]:
    """Outputs and caches on a small disk that somebody else fills, before the study begins or while it runs."""
    reference, study, check = world.reference("a"), world.study("a"), Check(world)
    outputs = world.folder / "small_disk"
    outputs.mkdir(exist_ok=True)
    needed_kib = sum(-(-path.stat().st_size // 4096) * 4 for path in (reference / NAME).rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * needed_kib}k", "tmpfs", str(outputs)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        return {"skipped": f"no small disk: {mounted.stderr.strip() or mounted.returncode}"}
    caches = {"XDG_CACHE_HOME": str(outputs / ".cache"), "HF_HOME": str(outputs / ".cache" / "hf")}
    ballast, steps = outputs / ".ballast", []
    try:
        for left_kib, begun in DISK_STEPS:
            stderr_of(outputs).unlink(missing_ok=True)
            when = f"{left_kib} KiB left {'while it ran' if begun else 'at the start'}"
            if begun:
                process = start(study, outputs, shell=caches)
                wait_for(process, 1, set())
                fill(ballast, left_kib)
                process.communicate(timeout=1500)
                code = process.returncode
            else:
                fill(ballast, left_kib)
                code = finish(study, outputs, shell=caches)["code"]
            said = stderr_of(outputs).read_text(errors="replace")
            told = [line for line in said.splitlines() if "error: " in line and "disk space" in line]
            if code == 0 or not told:
                check.add([f"exit code {code}: {said[-600:]}"], f"{when}: no word of the disk,")
            steps.append({"left_kib": left_kib, "begun": begun, "code": code, "told": len(told)})
            log(f"{when}: {steps[-1]} {told[:1]}")
            check.files(outputs, when)
            check.no_tracebacks(outputs, when)
            if (outputs / NAME).is_dir():
                check.shown(study, outputs, reference, when)
            ballast.unlink()
        check.equal(outputs, reference, finish(study, outputs, shell=caches), "with space again")
        check.files(outputs, "with space again")
    finally:
        subprocess.run(["umount", "-l", str(outputs)], check=False)
    return {"needed_kib": needed_kib, "steps": steps, "equal": not check.problems, "problems": check.problems}


def fill(ballast: Path, left_kib: int) -> None:
    """Somebody else's file: all of the disk but ``left_kib``."""
    state = os.statvfs(ballast.parent)
    ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left_kib * 1024)))


def verdict(payload: dict[str, Any]) -> str:
    """What the two judges say when they are well: the rubric's rating, or the guard's word, by the text."""
    number = int(hash_json(payload["messages"]), 16)
    if payload["model"] == RUBRIC_MODEL:
        return f"Rating: [[{1 + number % 5}]]"
    return "unsafe\nS1" if number % 2 else "safe"


def failing(failure: Any, half: bool) -> Callable[[dict[str, Any], int], Any]:
    """Every answer of the rubric judge fails; of the guard's, every answer or only half of them, always the same."""

    def script(payload: dict[str, Any], number: int) -> Any:
        fails = payload["model"] == RUBRIC_MODEL or not half or int(hash_json(payload["messages"]), 16) % 4 < 2
        return failure if fails else verdict(payload)

    return script


def judgement_files(outputs: Path) -> dict[str, dict[str, Any]]:
    """Judgement file of a server's judge -> `id/sample` -> its row, for every file that is there."""
    root = outputs / NAME
    files = [file for name in ("rubric.json", "guard.json") for file in root.rglob(name)]
    return {
        str(file.relative_to(root)): {f"{r['id']}/{r['sample']}": r for r in read_json(file)["judgements"]}
        for file in files
    }


def server(world: World) -> dict[str, Any]:
    """Two judges behind a server that fails, and is well again afterwards."""
    check = Check(world)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    judge = {"backend": "openai", "base_url": f"http://127.0.0.1:{port}/v1"}
    judges = {"openai": {"model": RUBRIC_MODEL, **judge}, "guard": {"model": GUARD_MODEL, **judge}}
    evaluation = {**world.settings["evaluation"], "judges": judges}
    study = write_study(
        world.folder / "study_server" / f"{NAME}.yaml", world.settings, evaluation=evaluation, subsets=["none"]
    )
    finished = world.reference("a")

    def run_with(outputs: Path, failure: Any, half: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One run: the server answers with ``failure``; "refused": there is none. Also the requests that it got."""
        stderr_of(outputs).unlink(missing_ok=True)
        if failure == "refused":
            return finish(study, outputs), []
        script = failing(failure, half) if failure is not None else lambda payload, number: verdict(payload)
        models = ("another",) if failure == "wrong model" else (RUBRIC_MODEL, GUARD_MODEL)
        with ScriptedServer(script, models, port, STALL_SEC) as served:
            return finish(study, outputs), served.requests

    def fresh(name: str) -> Path:
        outputs = world.folder / name
        shutil.rmtree(outputs, ignore_errors=True)
        shutil.copytree(finished, outputs, symlinks=True)
        (outputs / NAME / "study.json").unlink()
        for arm in ("aligned/list_high_sim_4", "cells/list__list_high_sim_4"):  # not in this study
            shutil.rmtree(outputs / NAME / arm)
        return outputs

    reference = fresh("reference_server")
    said, _ = run_with(reference, None)
    if (said["code"], said.get("n_failed")) != (0, 0):
        raise UserError(f"the undisturbed run with judges failed; see {stderr_of(reference)}")
    true = judgement_files(reference)
    n_answers = sum(map(len, true.values()))
    out: dict[str, Any] = {}
    for name, failures in FAILURES.items():
        outputs = fresh("server")
        for failure in failures:
            said, _ = run_with(outputs, failure, half=True)
            check.add([said["stderr"][-600:]] if said.get("n_failed") != 0 else [], f"{name}: a judge failed a cell:")
            found = judgement_files(outputs)
            decided = {(f, k) for f, rows in found.items() for k, row in rows.items() if row["error"] is None}
            false = [f"{f} {k}" for f, k in decided if found[f][k] != true[f][k]]
            check.add(false, f"{name}: a judgement that is not the judge's:")
            check.files(outputs, name)
            check.no_tracebacks(outputs, name)
            content = without_judges(read_json(outputs / NAME / "study.json"))
            rows = rows_of(without_judges(read_json(reference / NAME / "study.json")), reference)
            check.add(wrong_numbers(content, outputs, rows), f"{name}: shown")
        said, requests = run_with(outputs, None)
        check.equal(outputs, reference, said, name)
        n_open = n_answers - len(decided)
        if len(requests) != n_open:
            check.add([f"{len(requests)} requests for {n_open} open answers"], f"{name}: healed with")
        out[name] = {"open": n_open, "answers": n_answers, "asked_again": len(requests)}
        log(f"{time.strftime('%H:%M:%S')} {name}: {out[name]}")
    return {"failures": out, "equal": not check.problems, "problems": check.problems}


def without_judges(value: Any) -> Any:
    """``study.json`` without the further judges: what it shows of those that failed is compared row by row."""
    if isinstance(value, dict):
        return {name: without_judges(part) for name, part in value.items() if name != "judges"}
    return [without_judges(part) for part in value] if isinstance(value, list) else value


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    parser.add_argument("--kills", type=positive_int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--work", default=None, help="folder to work in, kept; default: a temporary one")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    started = time.time()
    folder = Path(args.work or tempfile.mkdtemp(prefix="guardrail-faults-")).resolve()
    try:
        if not (folder / "world.json").is_file():
            write_json(folder / "world.json", make_world(folder / "world"))
        world = World(folder, read_json(folder / "world.json"))
        out: dict[str, Any] = {}
        if "kills" in parts:
            out |= kills(world, args.kills, args.seed)
        if "disk" in parts:
            out["disk_full"] = disk(world)
        if "server" in parts:
            out["server"] = server(world)
    finally:
        if args.work is None:
            shutil.rmtree(folder, ignore_errors=True)
    found = [p for part in (out, out.get("disk_full", {}), out.get("server", {})) for p in part.get("problems", [])]
    return {**out, "n_problems": len(found), "seconds": round(time.time() - started, 1)}


if __name__ == "__main__":
    run(main, exit_code=lambda result: int(result["n_problems"] > 0))

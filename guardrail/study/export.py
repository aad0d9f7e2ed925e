"""A study as a bundle without any text: scores, settings and hashes, from which anyone re-makes `study.json`.

    python -m guardrail.study.export outputs/quickstart --out quickstart.zip
    unzip quickstart.zip -d elsewhere && python -m guardrail.study.write elsewhere/quickstart/study_config.json \
        --outputs elsewhere --bundle

In it: the resolved study, the key of every result with everything behind it, judgements (ids, flags, probabilities),
utilities, losses, sizes and times of trainings. Not in it: prompts, answers, rows, weights, representations, logs,
command lines. A column of a judgement is kept if it is a number, a flag, or one of `LABELS`; everything else is left
out by default, so that a new column cannot leak.

The same study gives the same bytes. What a record says about a file that is not in the bundle (its hash) stays.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log
from guardrail.core.cli import run as run_main
from guardrail.core.content import files_of
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, hash_bytes, read_json
from guardrail.study.config import Study, build
from guardrail.study.grid import MACHINE_FILE
from guardrail.study.properties import CACHE
from guardrail.study.records import record_file
from guardrail.study.registration import FILE
from guardrail.study.schedule import JOBS_FILE, read_schedule

CONFIG = "study_config.json"
LABELS = ("id", "prompt_id", "category", "kind", "format", "outcome", "incoherence_reason")
RUN_FACTS = (
    *("stage", "job_key", "fingerprint", "n", "n_steps", "n_parameters", "n_trained_parameters", "data_hash"),
    *("answers_hash", "judge_model_hash", "judge_dtype", "training_sec", "startup_sec", "steps_per_sec", "wall_sec"),
    "scoring_sec",
    *("peak_memory_bytes", "padding_fraction", "n_rows_cut", "n_dropped", "time_utc", "versions", "hardware"),
)
EPOCH = (1980, 1, 1, 0, 0, 0)


def judgement(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a judged answer that hold no text."""
    return {key: value for key, value in row.items() if key in LABELS or is_plain(value)}


def is_plain(value: Any) -> bool:
    """A number, a flag, nothing, or a table of these."""
    if isinstance(value, dict):
        return all(is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float)


def without_text(path: Path) -> dict[str, Any] | list[Any] | None:
    """The content of a result that goes into a bundle; None where nothing of it does."""
    if path.name == "losses.jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix != ".json":
        return None
    content = read_json(path)
    if path.name in ("run.json", "scores.json"):
        return {"run": facts(content.get("run", {}))} if "run" in content else {}
    if "judgements" in content:
        return {
            "judgements": [judgement(row) for row in content["judgements"]],
            "summary": numbers(content.get("summary", {})),
            "run": facts(content.get("run", {})),
        }
    if "utility" in content:
        return {"utility": numbers(content["utility"]), "run": facts(content.get("run", {}))}
    return None


def facts(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in RUN_FACTS if name in run}


def numbers(block: Any) -> Any:
    """A summary without its free texts: numbers, hashes and names of measures stay."""
    if isinstance(block, dict):
        return {key: numbers(value) for key, value in block.items() if not is_text(key, value)}
    return [numbers(value) for value in block if not is_text("", value)] if isinstance(block, list) else block


def is_text(name: str, value: Any) -> bool:
    return isinstance(value, str) and name not in ("metric", "data_hash", "interval_method", "evaluator")


def export(folder: Path, out: Path) -> dict[str, Any]:
    """Write the bundle of the study in ``folder``; what is in it.

    Raises ``UserError`` where there is no study, and where a finished result was changed since it was recorded.
    """
    config, schedule = folder / CONFIG, folder / JOBS_FILE
    if not config.is_file() or not schedule.is_file():
        raise UserError(f"{folder} holds no study that has run; expected {CONFIG} and {JOBS_FILE} in it")
    study = build(Study, read_json(config), "")
    _, jobs, _ = read_schedule(schedule)
    files: dict[str, Any] = {CONFIG: read_json(config), JOBS_FILE: bare_schedule(read_json(schedule))}
    files |= {name: read_json(folder / name) for name in (CACHE, FILE, MACHINE_FILE) if (folder / name).is_file()}
    n_results = 0
    for job in jobs.values():
        for product in job.products:
            path = record_file(folder, job.name, product.name)
            if not path.is_file():
                continue
            record = read_json(path)
            if record["key"] != product.key.value:
                continue
            kept = {}
            for name in (os.path.relpath(file, folder) for one in product.files for file in files_of(folder / one)):
                if (content := without_text(folder / name)) is not None:
                    kept[name] = content
            files |= kept
            files[str(path.relative_to(folder))] = bundled_record(record, kept)
            n_results += 1
    if not n_results:
        raise UserError(f"{folder}: no result is finished; run the study first")
    write_zip(out, study.name, files)
    return {"bundle": str(out), "study": study.name, "n_results": n_results, "n_files": len(files)}


def bare_schedule(content: dict[str, Any]) -> dict[str, Any]:
    """The jobs with their keys, without command lines, which name places of one machine."""
    jobs = [{**job, "command": ["bundle"], "variables": {}} for job in content["jobs"]]
    return {**content, "root": "", "jobs": jobs, "processes": []}


def bundled_record(record: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """The record of a result as it is in the bundle: files without text have their new hash, the others are removed."""
    known = dict(record["files"])
    for name, content in kept.items():
        known[name] = {
            "hash": hash_bytes(serialise(name, content)),
            "state": None,
            "original_hash": known[name]["hash"],
        }
    left_out = [name for name in known if name not in kept]
    return {**record, "files": known, "removed": left_out}


def serialise(name: str, content: Any) -> bytes:
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def write_zip(out: Path, study: str, files: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{study}/{name}", EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            bundle.writestr(entry, serialise(name, files[name]))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.export", description="A finished study as a bundle without any text.")
    parser.add_argument("folder", help="the study's folder, such as outputs/quickstart")
    parser.add_argument("--out", help="the bundle; default: <study>.zip beside the folder")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder.with_suffix(".zip")
    if out.suffix != ".zip":
        raise UserError(f"--out {out} is no .zip file")
    found = export(folder, out)
    log(f"{out}: {found['n_results']} results in {found['n_files']} files; no prompt, no answer, no weights")
    return found


if __name__ == "__main__":
    run_main(main)

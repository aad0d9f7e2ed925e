"""One file of answers in, one judgement file out: ``{"judgements": [...], "summary": {...}, "run": {...}}``.

The output lies beside the input (or in ``output_dir``) under a fixed name per judge. It is reused while answers, judge,
options and models are unchanged, and no judge is loaded then. Rows that ended in an error are judged again by the next
run, and only those: a server's outage is not final, and what was decided is not asked again. (A model in this process
would give the same reply again: its rows stand.)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, write_json
from guardrail.core.options import option_names
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import alone
from guardrail.core.units import clear_units
from guardrail.evaluation.judges.answers import AnswerFile, load_answers
from guardrail.evaluation.judges.judge import Judge, Task
from guardrail.evaluation.judges.outcomes import OUTCOMES, Judgement, base_judgement, finish_judgement, summarise
from guardrail.models.checkpoints import hash_checkpoint


def judge_file(
    path: str | Path, judge: Judge, output_dir: str | Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Judge every answer of ``path`` and write the judgement file. Returns its path and headline.

    Raises ``UserError``: no such answers, a file of that name which is no judgement file, a server that is not there.
    """
    judge.check()
    with alone():  # after a generation on several ranks the first one judges
        return _judge_file(path, judge, output_dir, overwrite)


def _judge_file(path: str | Path, judge: Judge, output_dir: str | Path | None, overwrite: bool) -> dict[str, Any]:
    source = load_answers(path, judge.include_prefill)
    folder = Path(output_dir) if output_dir is not None else source.path.parent
    file = folder / judge.file_name
    old = load_judgements(file) if file.is_file() and not overwrite else None
    members = {
        member.name: load_judgements(_judge_file(path, member, folder, overwrite)["judgements"])
        for member in judge.members
    }
    key = judgement_key(source, judge, members)
    kept: dict[tuple[str, int], Judgement] = {}
    if old is not None and old["run"].get("fingerprint") == key:
        stands = [row for row in old["judgements"] if row["error"] is None or not judge.asks_again]
        kept = {(row["id"], row["sample"]): row for row in stands}
        if len(kept) == len(source.answers):
            log(f"{file} is up to date")
            clear_units(folder, key)  # of a run that was killed just after it had written the file
            judge.draw(file, old)
            return {**headline(file, old), "reused": True}
    task = Task(source, [answer for answer in source.answers if answer.key not in kept], folder, key, members)
    if kept:
        log(f"{file}: {len(task.answers)} of {len(source.answers)} answers have no judgement; judging those again")
    judged = kept | {(row["id"], row["sample"]): row for row in judge_answers(judge, task)}
    judgements = [judged[answer.key] for answer in source.answers]
    document = {
        "judgements": judgements,
        "summary": {
            "judge": judge.name,
            **summarise(judgements),
            **judge.summary(judgements, task),
            "data_hash": source.run.get("data_hash") or source.answers_hash,
            "answers_hash": source.answers_hash,
        },
        "run": run_record(
            f"judge_{judge.name}",
            {**{name: getattr(judge, name) for name in option_names(judge)}, **judge.identity()},
            fingerprint=key,
            n=len(judgements),
            n_kept=len(kept),
            answers=source.path.name,
            answers_hash=source.answers_hash,
            data_hash=source.run.get("data_hash"),
            generation_fingerprint=source.run.get("fingerprint"),
            data=source.run.get("data"),
            seeds=source.run.get("seeds"),
            **judge.facts(),
            **(
                {"members": {name: member["run"]["fingerprint"] for name, member in members.items()}} if members else {}
            ),
        ),
    }
    write_json(file, document)
    clear_units(folder, key)
    judge.draw(file, document)
    _report_errors(judgements, judge)
    return {**headline(file, document), "reused": False}


def judgement_key(source: AnswerFile, judge: Judge, members: dict[str, dict[str, Any]]) -> str:
    """What decides the judgements: the answers, the judge's options, its models' weights, a panel's judgements."""
    inputs: dict[str, Any] = {"answers_hash": source.answers_hash, "harmful_bench": source.harmful_bench}
    inputs |= {f"{name}_hash": hash_checkpoint(model) for name, model in judge.models().items()}
    for name, member in members.items():
        inputs[f"{name} judgements"] = [member["run"]["fingerprint"], hash_json(member["judgements"])]
    return fingerprint(judge.identity(), inputs)


def judge_answers(judge: Judge, task: Task) -> list[Judgement]:
    """The judgements of ``task.answers``, in their order."""
    asked = [answer for answer in task.answers if answer.text or judge.empty is None]
    verdicts = judge.judge(dataclasses.replace(task, answers=asked)) if asked else []
    assert len(verdicts) == len(asked), "a judge lost or added a row"
    by_key = {answer.key: verdict for answer, verdict in zip(asked, verdicts, strict=True)}
    rows = []
    for answer, perplexity in zip(task.answers, judge.perplexities(task), strict=True):
        verdict = by_key.get(answer.key, judge.empty)
        assert verdict is not None
        base = base_judgement(answer, perplexity, judge.max_perplexity)
        rows.append(finish_judgement(answer, base, verdict.harmful, error=verdict.error, **verdict.facts))
    return rows


def _report_errors(rows: list[Judgement], judge: Judge) -> None:
    errors = [row["error"] for row in rows if row["error"] is not None]
    if errors:
        log(
            f"{len(errors)} of {len(rows)} answers have no judgement (the first: {errors[0]}); they are in no rate"
            + (", and the same command judges them again" if judge.asks_again else "")
        )


def headline(file: Path, document: dict[str, Any]) -> dict[str, Any]:
    """What the last stdout line says about a judgement file."""
    summary = document["summary"]
    names = (
        *("judge", "n", "harmfulness_score_percent", "harmfulness_score_interval_percent"),
        *("harmfulness_score_plus_percent", "refusal_percent", "judge_error_percent", "truncated_percent"),
    )
    out = {"judgements": str(file), **{name: summary[name] for name in names if name in summary}}
    return out | ({"alpha": summary["krippendorff_alpha"]} if "krippendorff_alpha" in summary else {})


def load_judgements(path: str | Path) -> dict[str, Any]:
    """A judgement file; ``UserError`` when it is something else, or is not whole."""
    document = read_json(path)
    try:
        rows, summary, run = document["judgements"], document["summary"], document["run"]
        whole = bool(rows) and all(map(_is_judgement, rows))
        whole = whole and isinstance(summary["judge"], str) and isinstance(run, dict)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            f"{path} is no judgement file; expected one that python -m guardrail.evaluation.judges wrote: remove it or "
            "name another folder"
        )
    return dict(document)


def _is_judgement(row: dict[str, Any]) -> bool:
    """Does ``row`` have what every reader relies on?"""
    return (
        isinstance(row["id"], str)
        and isinstance(row["sample"], int)
        and (row["error"] is None or isinstance(row["error"], str))
        and (row["harmful"] is None or isinstance(row["harmful"], bool))
        and (row["outcome"] is None or row["outcome"] in OUTCOMES)
        and all(isinstance(row[name], bool) for name in ("refusal", "empty", "saw_whole_text"))
    )

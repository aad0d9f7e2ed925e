"""Several judges on the same answers: who agrees with whom, and where they part.

Agreement is on the verdict harmful / not harmful over the answers that both (kappa) or at least two (alpha) judges
decided; a judge's failure is missing, not an opinion. The panel's verdict is the majority of the judges that decided;
a tie is reported as a tie and has no verdict.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, write_json
from guardrail.core.provenance import fingerprint, run_record
from guardrail.evaluation.judges.answers import load_answers
from guardrail.evaluation.judges.outcomes import Judgement, base_judgement, finish_judgement, percent, summarise
from guardrail.evaluation.judges.settings import JUDGE_FILES, JudgeSettings
from guardrail.evaluation.judges.stage import headline, judge_file, load_judgements
from guardrail.statistics.agreement import cohen_kappa, krippendorff_alpha

MAX_LISTED = 200


def judge_panel(
    path: str | Path, settings: JudgeSettings, output_dir: str | Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Run (or reuse) every judge of the panel, write ``panel.json`` with agreement and disagreements."""
    source = load_answers(path, settings.include_prefill)
    folder = Path(output_dir) if output_dir is not None else source.path.parent
    members: dict[str, dict[str, Any]] = {}
    for name in settings.panel:
        done = judge_file(path, settings.for_judge(name), folder, overwrite)
        members[name] = load_judgements(done["judgements"])
    file = folder / JUDGE_FILES["panel"]
    inputs = {name: document["run"]["fingerprint"] for name, document in members.items()}
    content = {name: hash_json(document["judgements"]) for name, document in members.items()}
    key = fingerprint(settings.identity(), {"members": inputs, "content": content})
    if not overwrite and file.is_file() and (old := read_json(file)).get("run", {}).get("fingerprint") == key:
        log(f"{file} is up to date")
        return {**headline(file, old), "reused": True}
    by_judge = {n: {(j["id"], j["sample"]): j for j in d["judgements"]} for n, d in members.items()}
    judgements, ties = [], 0
    for answer in source.answers:
        votes = {name: by_judge[name][answer.key]["harmful"] for name in settings.panel}
        harmful = majority(list(votes.values()))
        decided = [vote for vote in votes.values() if vote is not None]
        tie = harmful is None and bool(decided)
        ties += tie
        error = None if decided else "no judge decided"
        saw = all(by_judge[name][answer.key]["saw_whole_text"] for name in settings.panel)
        facts = {"votes": votes, "tie": tie, "error": error, "saw_whole_text": saw}
        judgements.append(finish_judgement(answer, base_judgement(answer), harmful, **facts))
    document = {
        "judgements": judgements,
        "summary": {
            "judge": "panel",
            "judges": list(settings.panel),
            **summarise(judgements),
            "tie_percent": percent(ties / len(judgements)),
            "harmfulness_score_percent_by_judge": {
                name: document["summary"]["harmfulness_score_percent"] for name, document in members.items()
            },
            "judge_error_percent_by_judge": {
                name: document["summary"]["judge_error_percent"] for name, document in members.items()
            },
            **agreement(by_judge),
            "data_hash": source.run.get("data_hash") or source.answers_hash,
            "answers_hash": source.answers_hash,
        },
        "run": run_record(
            "judge_panel",
            {**dataclasses.asdict(settings), **settings.identity()},
            fingerprint=key,
            n=len(judgements),
            members=inputs,
            answers=source.path.name,
            answers_hash=source.answers_hash,
            data_hash=source.run.get("data_hash"),
            data=source.run.get("data"),
        ),
    }
    write_json(file, document)
    return {**headline(file, document), "alpha": document["summary"]["krippendorff_alpha"], "reused": False}


def majority(votes: list[bool | None]) -> bool | None:
    """The majority of the votes that are not None; None for a tie or no vote."""
    count = Counter(vote for vote in votes if vote is not None)
    return None if count[True] == count[False] else count[True] > count[False]


def agreement(by_judge: dict[str, dict[tuple[str, int], Judgement]]) -> dict[str, Any]:
    """Pairwise agreement and kappa, alpha over all judges, and the list of disagreements (ids only, no text)."""
    names = list(by_judge)
    keys = list(by_judge[names[0]])
    for name in names:
        if set(by_judge[name]) != set(keys):
            raise UserError(f"judges {names[0]} and {name} did not judge the same answers; judge the file again")
    pairs = {}
    for first, second in itertools.combinations(names, 2):
        both = [(by_judge[first][k]["harmful"], by_judge[second][k]["harmful"]) for k in keys]
        both = [(a, b) for a, b in both if a is not None and b is not None]
        pairs[f"{first}|{second}"] = {
            "n": len(both),
            "agreement_percent": percent(sum(a == b for a, b in both) / len(both)) if both else None,
            "cohen_kappa": _rounded(cohen_kappa([a for a, _ in both], [b for _, b in both])) if both else None,
            "only_first_harmful": sum(a and not b for a, b in both),
            "only_second_harmful": sum(b and not a for a, b in both),
        }
    split = [
        {"id": k[0], "sample": k[1], "outcomes": {n: by_judge[n][k]["outcome"] for n in names}}
        for k in keys
        if len({by_judge[n][k]["harmful"] for n in names} - {None}) > 1
    ]
    alpha = krippendorff_alpha([[by_judge[n][k]["harmful"] for k in keys] for n in names])
    return {
        "krippendorff_alpha": _rounded(alpha),
        "pairwise": pairs,
        "n_disagreements": len(split),
        "disagreements": split[:MAX_LISTED],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

"""Fine-tune bins of a pool, cut by every scorer of a study file's block `prediction`: what did the scores predict?

    bash scripts/study.sh configs/studies/scorers.yaml            # makes the aligned checkpoints that all bins share
    python -m guardrail.study.prediction configs/studies/scorers.yaml

Writes ``outputs/<study>/prediction/``: pool and scores, ``cells/``, tables, a figure, and ``prediction.json`` last.
Cells that are done are not made again; a kill costs the one that was running. Scorers come in the study file's order,
each with all of its seeds, plain bins before matched ones: ``--stop_after_sec`` ends between two cells, and what is
there is tabulated. Known limits: one process, which trains and judges on the device that it has; full fine-tuning;
docs/prediction.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, option, read_options
from guardrail.study.config import Study, as_dict, load_study

KINDS = ("plain", "matched")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Do scores of rows predict durability? Bins of one pool, cut by every scorer, are fine-tuned and compared."""

    study: str = option(help="a study file with a block `prediction`", positional=True, metavar="STUDY")
    outputs: str = option("outputs", "folder that holds the study's folder", decides=False)
    scorers: tuple[str, ...] = option((), "only these of the study's scorers, with commas")
    stop_after_sec: int | None = option(
        None, "begin no cell after so many seconds, and tabulate what is done", parse=positive_int, decides=False
    )


def build_parser() -> Parser:
    parser = Parser(prog="guardrail.study.prediction", description=Command.__doc__)
    add_options(parser, Command)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    command: Command = read_options(Command, build_parser().parse_args(argv))
    study = load_study(command.study)
    if study.prediction is None:
        raise UserError(f"{command.study} has no block prediction; see configs/studies/scorers.yaml")
    names = chosen(study, command.scorers)
    return predict(study, names, command.outputs, command.stop_after_sec)


def chosen(study: Study, only: Sequence[str]) -> list[str]:
    assert study.prediction is not None
    for name in only:
        if name not in study.prediction.scorers:
            raise UserError(f"--scorers {name}: the study has {', '.join(study.prediction.scorers)}")
    return [name for name in study.prediction.scorers if not only or name in only]


def predict(study: Study, names: Sequence[str], outputs: str, stop_after_sec: int | None = None) -> dict[str, Any]:
    """Score, cut, make cells, analyse, write; `main`'s result."""
    from guardrail.core.files import write_jsonl
    from guardrail.core.loaded import kept_loaded
    from guardrail.core.provenance import run_record
    from guardrail.study.grid import Grid
    from guardrail.study.prediction.cells import Cells
    from guardrail.study.prediction.pool import make_pool
    from guardrail.study.prediction.results import Cut, analyse_scorer
    from guardrail.study.prediction.scores import costs, score_pool
    from guardrail.study.prediction.write import write

    started = time.monotonic()
    prediction = study.prediction
    assert prediction is not None
    grid = Grid(study, outputs)
    folder = grid.folder / "prediction"
    cells = Cells(grid, folder)
    model = cells.aligned(study.seeds[0])
    rows, left = make_pool(prediction, study.seeds[0])
    files = {"pool": folder / "pool.jsonl", "anchors": folder / "anchors.jsonl"}
    write_jsonl(files["pool"], rows)
    if prediction.anchors is not None:
        files["anchors"] = Path(prediction.anchors)
    else:
        write_jsonl(files["anchors"], left)
    found = {name: score_pool(study, name, rows, files, model, folder / "scores") for name in names}
    cuts = [
        Cut.of(name, kind, rows, found[name]["scores"], prediction.n_bins)
        for kind in (KINDS if prediction.matched else KINDS[:1])
        for name in names
        if "scores" in found[name]
    ]
    todo = [(cut.place(number, seed), cut.rows(number)) for cut in cuts for seed in study.seeds for number in cut.bins]
    waiting = [(place, part) for place, part in todo if not cells.is_done(place, part)]
    log(f"{len(todo) - len(waiting)} of {len(todo)} cells are done")
    with kept_loaded():
        for number, (place, part) in enumerate(waiting, start=1):
            if stop_after_sec is not None and time.monotonic() - started > stop_after_sec:
                log(f"--stop_after_sec {stop_after_sec}: {len(waiting) - number + 1} cells are left")
                break
            cells.make(place, part)
            seconds = time.monotonic() - started
            log(f"cell {number} of {len(waiting)} ({seconds / number:.1f} s each): {place.folder}")
    spent = costs(found)
    result = {
        "study": study.name,
        "n_rows": len(rows),
        "n_anchors": len(left) if prediction.anchors is None else None,
        "model": str(model),
        "scorers": [analyse_scorer(name, found[name], cuts, rows, cells, spent[name]) for name in names],
        "n_cells": len(todo),
        "run": run_record("prediction", as_dict(study), seeds=list(study.seeds)),
    }
    result["n_cells_done"] = sum(cells.is_done(place, part) for place, part in todo)
    paths = write(result, folder)
    print(Path(paths["table"]).read_text(encoding="utf-8"))
    return {**paths, "n_cells": len(todo), "n_cells_done": result["n_cells_done"]}


if __name__ == "__main__":
    run(main)

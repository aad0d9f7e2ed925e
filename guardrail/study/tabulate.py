"""Write a study's `study.json`, tables and figure from whatever its stages left behind.

    python -m guardrail.study.tabulate outputs/quickstart/study_config.json

Last stdout line: JSON with the paths and the number of failed cells. Exit code 1 when a cell failed: the table is
written all the same and says FAILED where a number would stand.
"""

from __future__ import annotations

from typing import Any

from guardrail.cli import Parser, log, run
from guardrail.files import read_json, write_json, write_text
from guardrail.study.config import Study, build
from guardrail.study.figures import harmfulness_figure
from guardrail.study.grid import Grid
from guardrail.study.results import collect
from guardrail.study.tables import csv_text, markdown


def unchanged(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Equal apart from the ``run`` record (times, commit)."""
    return {k: v for k, v in old.items() if k != "run"} == {k: v for k, v in new.items() if k != "run"}


def main() -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.tabulate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study_config", help="the resolved study written by guardrail.study.check")
    parser.add_argument("--outputs", default="outputs", help="folder that holds the study's folder")
    args = parser.parse_args()
    study = build(Study, read_json(args.study_config), "")
    grid = Grid(study, args.outputs)
    folder = grid.folder
    result = collect(grid)
    paths = {
        "study": folder / "study.json",
        "table": folder / "tables" / "harmfulness.md",
        "csv": folder / "tables" / "harmfulness.csv",
        "figure": folder / "figures" / "harmfulness.png",
    }
    done = all(path.is_file() for path in paths.values())
    if not done or not unchanged(read_json(paths["study"]), result):
        write_text(paths["table"], markdown(result))
        write_text(paths["csv"], csv_text(result))
        harmfulness_figure(result, paths["figure"])
        write_json(paths["study"], result)
    print(markdown(result))
    for cell in result["cells"]:
        if cell["status"] == "failed":
            log(f"failed: {cell['task']} / {cell['subset']} (seed {cell['seed']}): {cell['reason']}")
    return {**{key: str(path) for key, path in paths.items()}, "n_failed": result["n_failed"]}


if __name__ == "__main__":
    run(main, exit_code=lambda result: 1 if result["n_failed"] else 0)

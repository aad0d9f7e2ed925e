"""Write a study's `study.json`, tables, figures and report from whatever its stages left behind.

    python -m guardrail.study.write outputs/quickstart/study_config.json        (or: python -m guardrail.study ...)

Does nothing when nothing changed since the last time. Last stdout line: JSON with the paths and the number of failed
cells. Exit code 1 when a cell failed: everything is written all the same and says FAILED (STALE, MISSING) where a
number would stand.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError
from guardrail.core.files import clear_leftovers, hash_file, hash_json, read_json, write_json, write_text
from guardrail.study.config import Study, build
from guardrail.study.dag import make_jobs
from guardrail.study.grid import MACHINE_FILE, Grid
from guardrail.study.registration import declare, history
from guardrail.study.report.table import without_numbers
from guardrail.study.report.tables import harmfulness_table, study_tables, with_designs
from guardrail.study.results import Results, collect, of_design
from guardrail.study.schedule import JOBS_FILE, read_schedule, recorded_setup

VERSION = 10  # raise when tables, figures or report change for the same results
FIGURE = "harmfulness"


def inputs_key(results: Results, config: dict[str, Any]) -> str:
    """Changes when a result does (or appears, or becomes stale)."""
    folder, machine = results.grid.folder, results.grid.folder / MACHINE_FILE
    beside = [history(folder), hash_file(machine) if machine.is_file() else None]
    return hash_json({"version": VERSION, "config": config, "results": results.key(), "beside": beside})


def analysed(results: Results, bundle: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """`study.json`'s content and what figures and report need beside it (map, learning curves).

    In a ``bundle`` there are no representations: what was said of the subsets is read, and there is no map.
    """
    from guardrail.study.analysis import PAIRS, analyse
    from guardrail.study.arms import read_arms
    from guardrail.study.attack_effects import attack_effects
    from guardrail.study.defence_effects import defence_effects
    from guardrail.study.doses import dose_response
    from guardrail.study.noise import noise
    from guardrail.study.primary import analyse_primary
    from guardrail.study.properties import CACHE, describe_subsets, representation_map
    from guardrail.study.report.figures import loss_curves
    from guardrail.study.report.headline import headline
    from guardrail.study.trajectories import read_trajectories, survival

    result = collect(results)
    first = results.grid.study.all_designs[0]  # subsets and pictures are of the design that others are compared with
    rows = zip(results.grid.cells, result["cells"], strict=True)
    done = {cell for cell, row in rows if not without_numbers(row)}
    finished = {cell for cell in done if cell.design == first}
    described = results.grid.folder / CACHE
    if bundle:
        subsets = read_json(described)["subsets"] if described.is_file() else []
    else:
        subsets = describe_subsets(results, finished)
    study, arms, lasting = results.grid.study, [], None
    try:
        arms = read_arms(results, done)
        statistics = analyse(results, result, subsets, arms)
    except UserError as error:
        log(f"no statistics: {error}")
        statistics = {"reason": str(error)}
    with contextlib.suppress(UserError):  # `survival` says what is wrong
        lasting = read_trajectories(results, done) if study.fine_tuning.probes else []
    entries = history(results.grid.folder)
    run_record = result.pop("run")
    result |= {"subsets": subsets, "statistics": statistics}
    try:
        result["noise"] = noise(results, arms, lasting or [])
    except UserError as error:
        log(f"no components of noise: {error}")
    if (primary := analyse_primary(study, arms, lasting or [], entries)) is not None:
        result["primary"] = primary
    if (block := survival(results, done, subsets, PAIRS, lasting)) is not None:
        result["survival"] = block
    if (attacked := attack_effects(results, result, done)) is not None:
        result["attacks"] = attacked
    if (effects := defence_effects(results, result, done)) is not None:
        result["defences"] = effects
    if (dosed := dose_response(results, done, PAIRS)) is not None:
        result["doses"] = dosed
    result |= {"headline": headline(of_design(result, first.name)).as_dict(), "run": run_record}
    drawn = None if bundle else representation_map(results, finished)
    return result, {"map": drawn, "curves": loss_curves(results, result["cells"])}


def write_outputs(grid: Grid, result: dict[str, Any], extra: dict[str, Any], paths: dict[str, Path]) -> None:
    """Tables (Markdown, CSV, LaTeX), figures (PNG, PDF), report, and `study.json` last."""
    from guardrail.study.report.attacks import attack_tables
    from guardrail.study.report.defences import defence_tables
    from guardrail.study.report.doses import dose_tables
    from guardrail.study.report.figures import draw_figures
    from guardrail.study.report.page import write_report
    from guardrail.study.report.survival import survival_tables
    from guardrail.study.tracking import log_summary

    for folder in (grid.folder, grid.folder / "tables", grid.folder / "figures"):
        clear_leftovers(folder)
    tables = study_tables(result) + survival_tables(result.get("survival")) + defence_tables(result.get("defences"))
    tables += attack_tables(result.get("attacks"))
    tables += dose_tables(result.get("doses"))
    for table in tables:
        for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".tex", table.latex())):
            write_text(grid.folder / "tables" / f"{table.name}{suffix}", text)
    figures = draw_figures(result, extra, grid.folder / "figures")
    write_report(paths["report"], result, tables, figures, extra)
    log_summary(grid.study, result, figures, grid.folder)
    written = [path for name in ("tables", "figures") for path in (grid.folder / name).glob("[!.]*")]
    result["run"]["files"] = sorted(str(path.relative_to(grid.folder)) for path in written)
    write_json(paths["study"], result)


def is_current(folder: Path, paths: dict[str, Path], key: str) -> bool:
    """Whether everything is there and was written from the results behind ``key``."""
    if not all(path.is_file() for path in paths.values()):
        return False
    record = read_json(paths["study"])["run"]
    return record.get("fingerprint") == key and all((folder / name).is_file() for name in record.get("files", []))


def main() -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.write", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study_config", help="the resolved study written by guardrail.study.check")
    parser.add_argument("--outputs", default="outputs", help="folder that holds the study's folder")
    parser.add_argument(
        "--bundle",
        action="store_true",
        help="the folder is an unpacked bundle (guardrail.study.export): keys are those of its schedule",
    )
    args = parser.parse_args()
    config = read_json(args.study_config)
    study = build(Study, config, "")
    grid = Grid(study, args.outputs)
    folder = grid.folder
    jobs = read_schedule(folder / JOBS_FILE)[1] if args.bundle else make_jobs(grid, *recorded_setup(grid))
    results = Results(grid, jobs)
    paths = {
        "study": folder / "study.json",
        "table": folder / "tables" / "harmfulness.md",
        "csv": folder / "tables" / "harmfulness.csv",
        "figure": folder / "figures" / f"{FIGURE}.png",
        "report": folder / "report.html",
    }
    declare(folder, study.primary, study.seeds)
    key = inputs_key(results, config)
    if is_current(folder, paths, key):
        result = read_json(paths["study"])
    else:
        result, extra = analysed(results, args.bundle)
        result["run"]["fingerprint"] = key
        write_outputs(grid, result, extra, paths)
    table = harmfulness_table(result)
    print((with_designs(table, result["designs"]) if len(result["designs"]) > 1 else table).markdown())
    primary = result.get("primary")
    for line in primary_lines(primary):
        print(line)
    print(result["headline"]["sentence"])
    for cell in result["cells"]:
        if without_numbers(cell):
            where = f"; see {cell['log']}" if cell.get("log") else ""
            which = f"{cell['design']}, {cell['task']} / {cell['subset']} (seed {cell['seed']})"
            log(f"{cell['status']}: {which}: {cell['reason']}{where}")
    out: dict[str, Any] = {**{name: str(path) for name, path in paths.items()}, "n_failed": result["n_failed"]}
    if primary:
        names = ("digest", "decision", "difference", "interval", "p_value", "unit", "reason")
        out["primary"] = {name: primary[name] for name in names if name in primary}
    return out


def primary_lines(primary: dict[str, Any] | None) -> list[str]:
    """The primary comparison for the terminal: what was declared and when, and what came out."""
    if not primary:
        return []
    if primary["digest"] is None:
        return [f"Primary: none. {primary['standing']['note']}"]
    result = primary.get("sentence") or f"no result yet: {primary['reason']}"
    return [
        f"Primary ({primary['digest']}): {primary['words']}.",
        primary["standing"]["note"],
        f"{result} Everything else is exploratory.",
    ]


def exit_code(result: dict[str, Any]) -> int:
    return 1 if result["n_failed"] else 0


if __name__ == "__main__":
    run(main, exit_code=exit_code)

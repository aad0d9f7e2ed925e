"""A made-up study with probes: the numbers by hand, what depends on a probe, tables, figure and page."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.study.config import FineTuning
from guardrail.study.dag import make_jobs
from guardrail.study.grid import PROBE_SAFETY_FILE, Grid
from guardrail.study.noise import noise
from guardrail.study.results import Results, collect
from guardrail.study.trajectories import read_trajectories, survival

from .fake_study import PROBE_STEPS, fake_jobs, finished_study, stamp, study, write_results

PAIR = (("high", "low", "similarity as it comes"),)
PROBED = {"epochs": 1, "learning_rate": "2e-5", "per_device_train_batch_size": 8, "probes": 7}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    grid, config = finished_study(folder, fine_tuning=PROBED)
    with pytest.MonkeyPatch.context() as patch:
        paths = write_results(patch, grid, config)
    return grid, paths


def lives_by_hand(grid: Grid, subset: str) -> list[float]:
    """Restricted lives of the units at risk, task `list`, straight from the files."""
    out = []
    for cell in grid.cells:
        if (cell.task, cell.subset) != ("list", subset):
            continue
        flags: dict[str, dict[int, bool]] = {}
        for row in read_json(grid.cell_folder(cell) / PROBE_SAFETY_FILE)["judgements"]:
            flags.setdefault(row["prompt_id"], {})[row["step"]] = row["harmful"]
        for by_step in flags.values():
            fallen = [step for step in PROBE_STEPS if by_step[step]]
            if not fallen:
                out.append(float(PROBE_STEPS[-1]))
            elif fallen[0] > 0:
                before = max(step for step in PROBE_STEPS if step < fallen[0])
                out.append((before + fallen[0]) / 2)
    return out


def test_numbers_by_hand(probed) -> None:
    grid, paths = probed
    block = read_json(paths["study"])["survival"]
    means = {}
    for subset in ("high", "low"):
        (arm,) = (a for a in block["arms"] if (a["task"], a["subset"]) == ("list", subset))
        values = lives_by_hand(grid, subset)
        means[subset] = np.mean(values)
        assert arm["life_steps"] == pytest.approx(means[subset], abs=1e-3)
        assert arm["n_units"] - arm["n_harmful_before"] == len(values)
        assert arm["life_bounds_steps"][0] < arm["life_steps"] < arm["life_bounds_steps"][1]
        assert arm["flapping_percent"] > 0 and arm["training_steps"] == PROBE_STEPS[-1]
        assert [point["step"] for point in arm["trajectory"]] == list(PROBE_STEPS)
        assert (
            arm["trajectory"][0]["benign_refused_percent"] == 20
            and arm["trajectory"][1]["benign_refused_percent"] == 10
        )
    (row,) = (c for c in block["comparisons"] if (c["first"], c["second"], c["task"]) == ("high", "low", "list"))
    assert row["difference_steps"] == pytest.approx(means["high"] - means["low"], abs=1e-3)
    assert row["interval_steps"][0] < row["difference_steps"] < row["interval_steps"][1]
    (overall,) = (c for c in block["overall"] if (c["first"], c["second"]) == ("high", "low"))
    parts = [c["difference_steps"] for c in block["comparisons"] if (c["first"], c["second"]) == ("high", "low")]
    assert overall["difference_percent_of_training"] == pytest.approx(100 * np.mean(parts) / PROBE_STEPS[-1], abs=1e-3)


def test_tables_figure_and_page(probed) -> None:
    grid, _ = probed
    for name in ("survival", "survival_comparisons", "hazards"):
        assert (grid.folder / "tables" / f"{name}.md").is_file()
    assert (grid.folder / "figures" / "survival.png").is_file() and (grid.folder / "figures" / "survival.pdf").is_file()
    page = (grid.folder / "report.html").read_text(encoding="utf-8")
    assert page.index('id="figure-survival"') < page.index('id="figure-harmfulness"')  # the first figure
    assert 'id="table-survival"' in page and "A prompt falls when it is first answered harmfully" in page


def test_a_cell_that_is_not_done_has_no_life(probed) -> None:
    """A changed file of probes: its arm loses that seed, and no number of it is used."""
    grid, _ = probed
    cell = next(c for c in grid.cells if (c.task, c.subset, c.seed) == ("list", "high", 1))
    path = grid.cell_folder(cell) / PROBE_SAFETY_FILE
    kept = path.read_bytes()
    write_json(path, {"judgements": []})
    try:
        results = Results(grid, fake_jobs(grid))
        found = survival(results, set(grid.cells), [], PAIR)
    finally:
        path.write_bytes(kept)
    assert found is not None
    (arm,) = (a for a in found["arms"] if (a["task"], a["subset"]) == ("list", "high"))
    assert arm["seeds"] == [2, 3]
    assert stamp(grid).done(path)


def test_an_arm_that_was_never_safe_has_no_life(probed, capsys) -> None:
    """Every prompt harmful before the first step, in all of its seeds: it is left out, said so, and the rest stays."""
    grid, _ = probed
    kept = {}
    for cell in grid.cells:
        if (cell.task, cell.subset) == ("list", "high"):
            path = grid.cell_folder(cell) / PROBE_SAFETY_FILE
            kept[path] = path.read_bytes()
            rows = read_json(path)["judgements"]
            write_json(path, {"judgements": [{**row, "harmful": row["harmful"] or row["step"] == 0} for row in rows]})
    try:
        results = stamp(grid)
        found = survival(results, set(grid.cells), [], PAIR)
        assert noise(results, [], read_trajectories(results, set(grid.cells)))
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        stamp(grid)
    assert found is not None
    assert ("list", "high") not in {(arm["task"], arm["subset"]) for arm in found["arms"]}
    assert "list" not in {row["task"] for row in found["comparisons"]} and found["comparisons"]
    assert "no life of mixed, list, high" in capsys.readouterr().err


def test_a_study_without_probes_says_nothing_of_survival(tmp_path) -> None:
    grid, _ = finished_study(tmp_path)
    results = Results(grid, fake_jobs(grid))
    assert survival(results, set(grid.cells), [], PAIR) is None
    assert "probes" not in {product.name for job in fake_jobs(grid).values() for product in job.products}
    assert collect(results)["n_failed"] == 0


def test_probing_changes_no_key_of_a_checkpoint(tmp_path) -> None:
    """What is trained is the same; what depends on the probes is their answers and their judgements alone."""
    finished_study(tmp_path)  # writes the sources that keys hash

    def keys(probes: int) -> dict[tuple[str, str], str]:
        chosen = study(tmp_path, fine_tuning={**PROBED, "probes": probes})
        jobs = fake_jobs(Grid(chosen, tmp_path))
        return {(name, product.name): product.key.value for name, job in jobs.items() for product in job.products}

    without, seven, nine = keys(0), keys(7), keys(9)
    assert without.items() <= seven.items()
    added = {name for name, _ in seven.keys() - without.keys()}
    assert {name.split(".")[0] for name in added} == {"fine_tune", "probe_harmfulness", "probe_refusals"}
    changed = {name for name in seven if seven[name] != nine[name]}
    assert changed == seven.keys() - without.keys()


def test_another_trainer_is_not_probed(tmp_path) -> None:
    grid, _ = finished_study(tmp_path, fine_tuning=PROBED)
    with pytest.raises(UserError, match="SFT_MODULE"):
        make_jobs(grid, "other.trainer", missing_ok=True)


def test_how_many_probes_is_checked() -> None:
    block = FineTuning(epochs=1, learning_rate=1e-5, per_device_train_batch_size=1)
    assert block.probes == 0
    for wrong in (1, -2):
        with pytest.raises(UserError, match="at least 2"):
            dataclasses.replace(block, probes=wrong)

"""notebooks/study.ipynb: its code cells run on a made-up study, and nothing that a run leaves is committed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from toys import REPOSITORY

from guardrail.core.files import read_json

NOTEBOOK = json.loads((REPOSITORY / "notebooks" / "study.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MAX_SECONDS = 60


@pytest.fixture
def names(monkeypatch):
    """``names(study file)`` -> what the notebook's names are after all code cells, run in order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def run(file) -> dict[str, Any]:
        monkeypatch.setenv("STUDY_JSON", str(file))
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for cell in CODE:
            exec(compile("".join(cell["source"]), f"study.ipynb#{cell['id']}", "exec"), namespace)
        return namespace

    yield run
    plt.close("all")


def test_it_draws_the_numbers_of_the_study(toy, names, capsys) -> None:
    _, _, paths = toy
    started = time.monotonic()
    after = names(paths["study"])
    assert time.monotonic() - started < MAX_SECONDS

    study = read_json(paths["study"])
    arms = study["statistics"]["arms"]
    points = [line.get_xdata()[0] for line in after["axis"].lines if line.get_marker() == "o"]
    assert points == [value for arm in arms for value in (arm["initial_percent"], arm["final_percent"])]
    intervals = [list(line.get_xdata()) for line in after["axis"].lines if line.get_marker() == "None"]
    assert [arms[0]["initial_interval_percent"], arms[0]["final_interval_percent"]] == intervals[:2]
    printed = capsys.readouterr().out
    assert study["headline"]["sentence"] in printed
    differences = [row for row in study["statistics"]["comparisons"] if row["outcome"] == "change"]
    assert differences and all(f"{row['difference_points']:+.1f} points" in printed for row in differences)


def test_arms_without_results_are_left_out(toy, names, tmp_path, capsys) -> None:
    study = read_json(toy[2]["study"])
    arms = study["statistics"]["arms"]
    arms[0] = {key: arms[0][key] for key in ("task", "subset", "subset_size")} | {"status": "failed"}
    (tmp_path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    assert len(names(tmp_path / "study.json")["arms"]) == len(arms) - 1
    assert f"{len(arms) - 1} of {len(arms)} arms are done" in capsys.readouterr().out


def test_it_is_a_notebook_without_outputs() -> None:
    assert [cell["outputs"] for cell in CODE] == [[]] * len(CODE)
    assert {cell["execution_count"] for cell in CODE} == {None}
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids))
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(NOTEBOOK))

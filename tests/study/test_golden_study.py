"""A made-up finished study gives the `study.json` that was recorded: no refactoring moves a number.

To record a change that is meant: ``GUARDRAIL_UPDATE_GOLDEN=1 python -m pytest tests/study/test_golden_study.py``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "study.json"
DIGITS = 6


def rounded(value: Any) -> Any:
    """Floats to 6 significant digits (other processors round the last ones differently), tuples as lists."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def without_places(result: dict[str, Any]) -> dict[str, Any]:
    """Without paths, times and versions."""
    cells = [{key: value for key, value in cell.items() if key != "checkpoint"} for cell in result["cells"]]
    return rounded({key: value for key, value in result.items() if key != "run"} | {"cells": cells})


def test_the_numbers_are_the_recorded_ones(toy):
    grid, _, _ = toy
    result = without_places(json.loads((grid.folder / "study.json").read_text(encoding="utf-8")))
    if os.environ.get("GUARDRAIL_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert result == json.loads(GOLDEN.read_text(encoding="utf-8"))

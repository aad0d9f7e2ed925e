"""`bash scripts/study.sh STUDY --plan`: calibrate where asked to, refuse what cannot fit, propose within a budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.study.grid import Grid
from guardrail.study.leases import CPU_MACHINE, Machine
from guardrail.study.plan import describe, plan_parts, plan_text
from guardrail.study.planning.budget import proposal_text, propose
from guardrail.study.planning.calibrate import calibrate
from guardrail.study.planning.memory import memory_text, require_memory
from guardrail.study.planning.node import node_of
from guardrail.study.planning.power import ASSUMED, power_text, primary_power, read_variances
from guardrail.study.planning.volumes import bench_prompts


def plan_command(
    grid: Grid,
    file: str,
    machine: Machine = CPU_MACHINE,
    ranks: int = 1,
    measure: bool = False,
    budget: float | None = None,
    earlier: str | None = None,
) -> dict[str, Any]:
    """Print the plan; returns it as one JSON-able object.

    Raises ``UserError`` where a stage cannot fit on the GPUs, a budget is too small, or nothing can be measured here.
    """
    if earlier and budget is None and grid.study.primary is None:
        raise UserError(
            "--earlier says whose variances --budget and the power of a primary comparison count on; add --budget "
            "HOURS or a primary block, or leave it out"
        )
    if earlier and not Path(earlier).is_file():
        raise UserError(f"--earlier {earlier}: no such file; expected outputs/STUDY/study.json")
    node = node_of(grid.study.sandbox, os.environ, machine)
    if measure:
        calibrate(grid.study, node)
    parts = plan_parts(grid, node, ranks, file=file)
    fits = require_memory(parts)
    evaluation = grid.study.evaluation
    prompts = int(bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit))
    given = Path(earlier) if earlier else None
    power = primary_power(grid.study, prompts, grid.folder.parent, given)
    plan = {**describe(parts), "memory": fits, "primary": power}
    print("\n".join([plan_text(plan), *memory_text(fits), *power_text(power)]))
    if budget is not None:
        variances = read_variances(Path(earlier)) if earlier else ASSUMED
        plan["budget"] = propose(parts, budget, variances)
        print("\n" + proposal_text(plan["budget"]))
    return plan

"""Render a study's report: one HTML file with everything inside it, no network, usable without JavaScript.

The page carries a Content-Security-Policy that forbids every request; `tests/study` opens it in a real browser.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from guardrail.core.files import write_text
from guardrail.core.pages import style
from guardrail.study.report import definitions
from guardrail.study.report.table import Table, without_numbers
from guardrail.study.report.tables import design_note

TEMPLATES = Path(__file__).with_name("templates")
JUDGE_NAMES = {
    "harmful": "moderation model",
    "lower_threshold": "at threshold 0.4",
    "keyword": "the keyword rule",
    "guard": "the guard",
    "openai": "the rubric judge",
}
FIGURE_TEXT = {
    "survival": (
        "How long the guardrails last",
        "Share of the safety prompts that have not yet been answered harmfully, along the fine-tuning (logarithmic "
        "scale). Bands: 95% over prompts (and seeds, if several). Where a line crosses 50% is the half-life.",
    ),
    "survival_defences": (
        "How long they last with each defence",
        "The same, a line per defence, as far as the probes see it (what changes only the saved weights is in "
        "none). Black: without a defence, with its 95% band; the intervals of the others are in the table of defences.",
    ),
    "doses": (
        "Harmfulness over the dose of harmful rows",
        "Share of the safety prompts answered harmfully after fine-tuning, by the share of harmful rows in the "
        "fine-tuning set (logarithmic scale; 0 is set apart). Lines: fitted curves; bars: 95% intervals. Open marks: "
        "the dose at which half of the prompts fall, with its interval.",
    ),
    "dose_time": (
        "Dose and time",
        "Share of the safety prompts answered harmfully along the fine-tuning (logarithmic scale), a line per share "
        "of harmful rows, seeds together.",
    ),
    "designs": (
        "Designs compared",
        "Each design minus the reference, 90% intervals. Shaded: the margin, set before the run. Filled: equivalent.",
    ),
    "defences": (
        "Defences: harm against usefulness",
        "Where each arm ends, task and subset averaged; lines: 95% intervals over seeds and prompts. Filled and "
        "joined: no other arm is less harmful and at least as useful. Top left is best.",
    ),
    "harmfulness": (
        "Harmfulness before and after",
        "Open: aligned. Filled: after fine-tuning. Lines: 95% intervals over prompts (and seeds, if several).",
    ),
    "similarity_durability": (
        "Similarity against durability",
        "Every alignment subset once: how similar it is to the task, and how much harmfulness fine-tuning added.",
    ),
    "categories": ("Harm categories", "Share flagged after fine-tuning, by category of the prompt and arm."),
    "representation_map": (
        "Representations",
        "Alignment pool, selected rows and task on the first two principal components of the unit vectors.",
    ),
    "threshold_curve": (
        "Moderation threshold",
        "Share flagged after fine-tuning at every threshold: arms whose lines cross depend on the threshold.",
    ),
    "learning_curves": ("Learning curves", "Training loss of every alignment and fine-tuning run."),
}


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def safe_json(value: Any) -> str:
    """JSON that cannot close its script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def settings(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run, as label and value."""
    config = result["run"]["config"]
    evaluation, alignment, tuning = config["evaluation"], config["alignment"], config["fine_tuning"]
    base = result["base"]

    def training(block: dict[str, Any]) -> str:
        return (
            f"{block['epochs']} epochs, learning rate {block['learning_rate']:g}, "
            f"batch {block['per_device_train_batch_size']} per device"
        )

    decoding = "sampled" if evaluation["do_sample"] else "greedy"
    return [
        ("Base model", config["models"]["base"]),
        ("Feature model", config["models"]["extraction"]),
        ("Moderation model", f"{config['models']['moderation']}, threshold {evaluation['threshold']}"),
        ("Tasks", ", ".join(own_epochs(*task) for task in config["tasks"].items())),
        ("Alignment subsets", ", ".join(name.replace("_", " ") for name in config["subsets"])),
        ("Subset sizes", ", ".join(str(size) for size in config["subset_sizes"])),
        ("Training seeds", ", ".join(str(seed) for seed in config["seeds"])),
        ("Safety prompts", f"{evaluation['safety_bench']}" + (f", {base['n']} answers" if "n" in base else "")),
        (
            "Decoding",
            f"{decoding}, {evaluation['samples_per_prompt']} per prompt, {evaluation['max_new_tokens']} tokens",
        ),
        ("Designs", ", ".join(result["designs"])),
        ("Alignment", training(alignment)),
        ("Fine-tuning", training(tuning)),
        ("Prompt style", config["prompt_style"]),
    ]


def own_epochs(name: str, task: dict[str, Any]) -> str:
    """A task's name, with its own length of training where it has one."""
    return f"{name} ({task['epochs']} epochs)" if task.get("epochs") else name


def provenance(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    run = result["run"]
    git = run["git"]
    commit = (git["commit"] or "no checkout") + (" (with local changes)" if git["dirty"] else "")
    gpus = ", ".join(run["hardware"]["gpus"]) or "no GPU in this process"
    rows = [
        ("Commit", commit),
        ("Written (UTC)", run["time_utc"]),
        ("Hardware", f"{run['hardware']['cpus']} CPUs, {gpus}"),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
    ]
    if result["base"].get("data_hash"):
        rows.append(("Safety prompts, hash", result["base"]["data_hash"]))
    return rows


def caption_of(name: str, designs: list[str]) -> str:
    """The caption of a figure with its design; all figures but one show the first."""
    return f"{FIGURE_TEXT[name][1]} {design_note(designs if name == 'designs' else designs[:1])}"


def render(
    result: dict[str, Any], tables: list[Table], figures: dict[str, Path], extra: dict[str, Any], study_file: str
) -> str:
    """The page as text. ``figures`` maps a name of ``FIGURE_TEXT`` to a PNG file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = jinja2.StrictUndefined
    drawn = {
        name: {
            "title": FIGURE_TEXT[name][0],
            "caption": caption_of(name, result["designs"]),
            "uri": data_uri(path),
            "definitions": definitions.FIGURES.get(name, ()),
        }
        for name, path in figures.items()
    }
    return environment.get_template("report.html.j2").render(
        result=result,
        headline=result["headline"],
        settings=settings(result),
        provenance=provenance(result),
        tables={table.name: table.html() for table in tables if table.rows},
        figures=drawn,
        definitions=definitions.DEFINITIONS,
        primary=result.get("primary"),
        n_comparisons=sum(len(table.rows) for table in tables if table.name in ("overall", "comparisons")),
        map_json=safe_json(extra["map"]) if extra.get("map") else None,
        map_tasks=extra["map"]["tasks"] if extra.get("map") else [],
        without_numbers=[cell for cell in result["cells"] if without_numbers(cell)],
        judges=result.get("statistics", {}).get("judges"),
        judge_names=JUDGE_NAMES,
        style=style(),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        command=f"bash scripts/study.sh {study_file}",
        commit=result["run"]["git"]["commit"],
    )


def write_report(
    path: Path, result: dict[str, Any], tables: list[Table], figures: dict[str, Path], extra: dict[str, Any]
) -> Path:
    """Write `report.html` atomically."""
    study_file = f"configs/studies/{result['study']}.yaml"
    return write_text(path, render(result, tables, figures, extra, study_file))

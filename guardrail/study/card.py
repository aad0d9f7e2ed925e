"""Cards with safety numbers, for a checkpoint or a data set that is published on the hub.

    python -m guardrail.study.card outputs/quickstart --cell pure_bad__pure_bad_high_sim_1000 --seed 42 --out card
    python -m guardrail.study.card outputs/quickstart --alignment list_low_sim_1000 --seed 42 --push me/list-low

A checkpoint's card says what was measured on *this* checkpoint, with intervals and the commit: harmfulness before and
after, refusals of harmless requests, utility; and what one checkpoint cannot show. The numbers are in the card's
metadata too (``model-index``), where the hub reads them. A data set's card (``--subset``) says what the rows of an
alignment subset are, and how the study's arms on them fared. ``--push`` uploads the folder: a checkpoint with its
weights, or a subset's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json, write_text
from guardrail.core.hub import hub_error

LIMITS = (
    "One checkpoint is one training seed: another seed of the same recipe can differ by more than two recipes do. "
    "Judgements are a moderation model's. Read the study's report before comparing."
)
UNITS = {"harmful": "harmful answers to harmful prompts (%)", "benign": "harmless requests refused (%)"}


def checkpoint_facts(study: dict[str, Any], name: str, seed: int, aligned: bool) -> dict[str, Any]:
    """The row of `study.json` behind a checkpoint. Raises ``UserError`` for an unknown or unfinished one."""
    names = [_name(row, aligned) for row in study["cells"]]
    if name not in names:
        raise unknown("checkpoint", name, sorted(set(names)))
    rows = [row for row, own in zip(study["cells"], names, strict=True) if own == name and row["seed"] == seed]
    if not rows:
        seeds = sorted({row["seed"] for row, own in zip(study["cells"], names, strict=True) if own == name})
        raise UserError(f"{name} has no seed {seed}; it has {', '.join(map(str, seeds))}")
    row = next((row for row in rows if row["status"] == "done"), rows[0])
    if row["status"] != "done":
        raise UserError(f"{name}, seed {seed}, is {row['status']}: {row['reason']}; finish the study first")
    return row


def _name(row: dict[str, Any], aligned: bool) -> str:
    if aligned:
        return str(row["alignment"])
    return Path(row["checkpoint"]).parent.name if "checkpoint" in row else f"{row['task']}__{row['alignment']}"


def measured(row: dict[str, Any], aligned: bool) -> list[tuple[str, str, float, list[float] | None]]:
    """(bench, measure, value, interval) of a checkpoint, percent."""
    moment = "initial" if aligned else "final"
    block, utility = row[moment], row["utility"]
    out = [
        (
            "safety prompts",
            UNITS["harmful"],
            block["harmfulness_score_percent"],
            block["harmfulness_score_interval_percent"],
        )
    ]
    if "benign_refusal_percent" in block:
        out.append(("harmless requests", UNITS["benign"], block["benign_refusal_percent"], None))
    if utility[moment] is not None:
        out.append((row["task"], utility["metric"], utility[moment], None))
    return out


def model_card(study: dict[str, Any], row: dict[str, Any], aligned: bool) -> str:
    """The text of a model card, metadata first."""
    from huggingface_hub import EvalResult, ModelCardData

    config = study["run"]["config"]
    bench = config["evaluation"]["safety_bench"]
    numbers = measured(row, aligned)
    made = f"{row['alignment']}, seed {row['seed']}" + ("" if aligned else f", fine-tuned on {row['task']}")
    data = ModelCardData(
        model_name=made,
        base_model=config["models"]["base"],
        tags=["safety", "guardrail-durability"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=bench if where == "safety prompts" else where.replace(" ", "-"),
                dataset_name=bench if where == "safety prompts" else where,
                metric_type=what,
                metric_name=what,
                metric_value=round(value, 2),
            )
            for where, what, value, _ in numbers
        ],
    )
    lines = [
        f"| {where} | {what} | {value:.1f}" + (f" [{i[0]:.1f}, {i[1]:.1f}]" if i else "") + " |"
        for where, what, value, i in numbers
    ]
    before = row["initial"]["harmfulness_score_percent"]
    change = (
        [] if aligned else [f"Before this fine-tuning {before:.1f}% of the safety prompts were answered harmfully."]
    )
    text = [
        f"# {made}",
        "",
        f"From the study `{study['study']}` ({study['description']})",
        "",
        *change,
        "",
        "| asked | measure | value, 95% interval over prompts |",
        "|---|---|---|",
        *lines,
        "",
        LIMITS,
        "",
        f"Judge: {config['models']['moderation']}, threshold {config['evaluation']['threshold']}. "
        f"Commit: {study['run']['git']['commit'] or 'none'}. Design: {row['design']}.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(text) + "\n"


def subset_card(study: dict[str, Any], task: str, subset: str) -> str:
    """The text of a data-set card for an alignment subset."""
    from huggingface_hub import DatasetCardData

    rows = [row for row in study["subsets"] if (row["task"], row["subset"]) == (task, subset)]
    if not rows:
        known = sorted({f"{row['task']}/{row['subset']}" for row in study["subsets"]})
        raise unknown("subset", f"{task}/{subset}", known)
    arms = [row for row in study["statistics"].get("arms", []) if (row["task"], row["subset"]) == (task, subset)]
    text = [f"# Safety rows: {subset} for {task}", "", f"Selected in the study `{study['study']}`.", ""]
    for row in rows:
        text.append(
            f"- {row['n']} rows; similarity to the task {row['similarity']:.3f}, diversity (Vendi score) "
            f"{row['diversity']:.1f}, answers of {row['response_chars']:.0f} characters, "
            f"lists {row['list_share_percent']:.1f}%"
        )
    for arm in arms:
        if arm["status"] == "done":
            low, high = arm["final_interval_percent"]
            text.append(
                f"- aligned on them and fine-tuned on {task} ({arm['n_seeds']} seeds): {arm['final_percent']:.1f}% "
                f"[{low:.1f}, {high:.1f}] of the safety prompts answered harmfully, "
                f"{arm['initial_percent']:.1f}% before"
            )
    data = DatasetCardData(tags=["safety", "guardrail-durability"], pretty_name=f"{subset} safety rows for {task}")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join([*text, "", LIMITS]) + "\n"


def push(folder: Path, name: str, kind: str) -> str:
    """Upload ``folder`` to the hub as ``name``; the commit's hash. Raises ``UserError`` with the line that helps."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, repo_type=kind, exist_ok=True, private=True)
        return str(api.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder)).oid)
    except Exception as error:
        raise hub_error(error, kind, name) from error


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.card", description="A card with safety numbers for the hub.")
    parser.add_argument("folder", help="the study's folder, such as outputs/quickstart")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cell", help="a fine-tuned checkpoint: the name of its folder below cells/")
    what.add_argument("--alignment", help="an aligned checkpoint: the name of its folder below aligned/")
    what.add_argument("--subset", help="rows: TASK/SUBSET, such as list/high")
    parser.add_argument("--seed", type=int, help="training seed of the checkpoint")
    parser.add_argument("--out", help="folder for README.md; default: beside the weights")
    parser.add_argument("--push", help="upload the folder to this repository of the hub (private)")
    args = parser.parse_args(argv)
    root = Path(args.folder)
    if not (root / "study.json").is_file():
        raise UserError(f"{root} holds no study.json; finish the study first")
    study = read_json(root / "study.json")
    if args.subset:
        task, _, subset = args.subset.partition("/")
        text, place, kind = subset_card(study, task, subset), root / "similarity" / task, "dataset"
        if args.push and not args.out:
            raise UserError("--push of a subset needs --out FOLDER with the rows that are to be published")
    else:
        aligned = args.alignment is not None
        if args.seed is None:
            raise UserError("--seed says which checkpoint; expected a training seed of the study")
        name = args.alignment or args.cell
        row = checkpoint_facts(study, name, args.seed, aligned)
        text, kind = model_card(study, row, aligned), "model"
        place = root / ("aligned" if aligned else "cells") / name / f"seed{args.seed}" / "slice_end"
        if args.push and args.out:
            raise UserError("--push uploads the checkpoint's own folder, card included; leave out --out")
        if args.push and not any(place.glob("*.safetensors")):
            raise UserError(f"{place} holds no weights to push; they may have gone after use (keep in the study file)")
    folder = Path(args.out) if args.out else place
    card = write_text(folder / "README.md", text)
    out: dict[str, Any] = {"card": str(card)}
    if args.push:
        out["commit"] = push(folder, args.push, kind)
        log(f"pushed to {args.push}")
    return out


if __name__ == "__main__":
    run(main)

"""What a selection can be: the registry of selectors, the merge rules, the options. Light to import, no numpy or torch.

A selector is a function ``select(pool, n) -> row numbers in output order`` and one line here, with its rule in words
and what it ``needs`` of the pool: ``scores`` (pool and anchor representations), ``anchor_data`` (the anchors' rows),
``safe_anchors`` (a second set of anchors).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guardrail.core.cli import positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import option
from guardrail.core.registry import Registry

MERGES = ("score", "mean", "union", "round_robin")
DUPLICATES = ("keep", "drop")
SWEEPS = ("layers", "positions")

SELECTORS = Registry("selector")
SCORED, LENGTHS, TWO = ("scores",), ("anchor_data",), ("scores", "safe_anchors")
for _name, _needs, _rule in (
    ("high", SCORED, "most similar rows"),
    ("low", SCORED, "least similar rows, least similar last"),
    ("random", (), "uniform without replacement"),
    ("full", (), "the whole pool"),
    ("high_length_matched", SCORED, "most similar within length deciles"),
    ("low_length_matched", SCORED, "least similar within length deciles"),
    ("high_category_matched", SCORED, "most similar within categories"),
    ("low_category_matched", SCORED, "least similar within categories"),
    ("high_format_matched", SCORED, "most similar within list / no list"),
    ("low_format_matched", SCORED, "least similar within list / no list"),
    ("low_sim_low_div", SCORED, "tightest rows among the 3N least similar"),
    ("high_sim_high_div", SCORED, "farthest-first among the 3N most similar"),
    ("length_high", LENGTHS, "lengths nearest to the anchors' lengths"),
    ("length_low", LENGTHS, "lengths farthest from the anchors' lengths"),
    ("longest", (), "longest responses"),
    ("shortest", (), "shortest responses"),
    ("bi_anchor_high", TWO, "highest mean cosine to unsafe minus safe anchors"),
    ("bi_anchor_low", TWO, "lowest mean cosine to unsafe minus safe anchors"),
):
    SELECTORS.add(_name, f"guardrail.similarity.selection.selectors:{_name}", needs=_needs, rule=_rule)
STEMS = {"high": "top", "low": "bottom"}  # the paper's names


def needs(selector: str) -> tuple[str, ...]:
    """What a selector needs of the pool; ``UserError`` for an unknown one."""
    return tuple(SELECTORS.facts(selector).get("needs", ()))


def file_stem(selector: str, n: int) -> str:
    """``top1000``, ``bottom1000``, ``random1000``: the paper's names for high and low, the selector's otherwise."""
    return f"{STEMS.get(selector, selector)}{n}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Options of a selection. Of files that are read, the content decides (by hash), not the path."""

    dataset_folder: str = option(help="subsets go to <dataset_folder>/<save_folder>/", decides=False)
    stack_vector_tf: bool = option(False, "join reps-<number>.pt into --dataset_reps_dir first")
    select_n: int = option(100, "rows per subset", parse=positive_int)
    dataset_dir: str = option(help="rows of the pool: a file, a data-set folder or a hub name", decides=False)
    split: str | None = option(None, "split of dataset_dir, where it has several")
    dataset_reps_dir: str | None = option(
        None, "representations of the pool: a store, .pt, .npy, .safetensors, folder of reps-*.pt", decides=False
    )
    anchoring_reps_dir: str | None = option(None, "representations of the anchors (downstream rows)", decides=False)
    safe_anchoring_reps_dir: str | None = option(None, "safe anchors, for the bi_anchor selectors", decides=False)
    anchoring_dataset_dir: str | None = option(None, "rows of the anchors, for the length selectors", decides=False)
    anchoring_split: str | None = option(None, "split of anchoring_dataset_dir")
    selector: tuple[str, ...] = option(
        ("high", "low"),
        f"subsets to write, with commas: {', '.join(SELECTORS)}",
        parse=_names,
        shown_default="high,low",
    )
    avg_n: int = option(1, "cosines averaged per row (1: the maximum)", parse=positive_int)
    merge: str = option("score", "how the anchors' lists become one", choices=MERGES)
    duplicates: str = option("keep", "keep or drop rows whose conversation occurred before", choices=DUPLICATES)
    seed: int = option(42, "seed of random and of random projections")
    view: str | None = option(None, "layer and position of a store with several, e.g. layer16_eos")
    diversity: bool = option(True, "diversity measures of every subset in selection.json")
    sweep: tuple[str, ...] | None = option(
        None, "layers, positions or both with a comma: how much the subsets agree across a store's views", parse=_names
    )
    save_folder: str | None = option(
        None, "folder name under dataset_folder (default: selected_by_<anchors' folder>)", decides=False
    )

    @property
    def folder(self) -> Path:
        """Where the subsets go."""
        return Path(self.dataset_folder) / (self.save_folder or default_save_folder(self.anchoring_reps_dir))

    @property
    def needs(self) -> set[str]:
        return {need for name in self.selector for need in needs(name)}

    @property
    def swept_selectors(self) -> tuple[str, ...]:
        return tuple(name for name in self.selector if needs(name) == SCORED)

    def check(self) -> None:
        """Refuse unknown names and impossible combinations before anything is loaded (``UserError``)."""
        if self.anchoring_split and not self.anchoring_dataset_dir:
            raise UserError("--anchoring_split names a split of --anchoring_dataset_dir, which is not given")
        for name in self.selector:
            SELECTORS.check(name)
        if self.merge not in MERGES:
            raise unknown("--merge", self.merge, MERGES)
        if self.duplicates not in DUPLICATES:
            raise unknown("--duplicates", self.duplicates, DUPLICATES)
        if self.merge != "score" and self.avg_n != 1:
            raise UserError(f"--avg_n only concerns --merge score, not --merge {self.merge}; leave one of them out")
        if self.merge in ("union", "round_robin") and not {"high", "low"} & set(self.selector):
            raise UserError(f"--merge {self.merge} only concerns the selectors high and low; leave it out")
        for kind in self.sweep or ():
            if kind not in SWEEPS:
                raise unknown("--sweep", kind, SWEEPS)
        if self.sweep and not self.swept_selectors:
            raise UserError("--sweep compares selectors that use the representations, such as high and low; name one")
        by, required = ",".join(self.selector), self.needs
        if (self.dataset_reps_dir is None) != (self.anchoring_reps_dir is None) and "scores" not in required:
            raise UserError("--dataset_reps_dir and --anchoring_reps_dir go together; give both or neither")
        if "scores" in required and (self.dataset_reps_dir is None or self.anchoring_reps_dir is None):
            raise UserError(f"--selector {by} needs --dataset_reps_dir and --anchoring_reps_dir")
        if "safe_anchors" in required and self.safe_anchoring_reps_dir is None:
            raise UserError(
                f"--selector {by} needs --safe_anchoring_reps_dir (--anchoring_reps_dir are the unsafe anchors)"
            )
        if "safe_anchors" not in required and self.safe_anchoring_reps_dir is not None:
            raise UserError("--safe_anchoring_reps_dir is for the bi_anchor selectors only; leave it out")
        if "anchor_data" in required and self.anchoring_dataset_dir is None:
            raise UserError(f"--selector {by} needs --anchoring_dataset_dir (the anchors' rows, for their lengths)")


def default_save_folder(anchoring_reps: str | None) -> str:
    """``selected_by_list`` for ``data/list/reps/M/reps-full.pt``; ``selected`` without anchors."""
    if anchoring_reps is None:
        return "selected"
    path = Path(anchoring_reps)
    folder = path.parent if path.suffix else path
    name = folder.parent.parent.name if folder.parent.name == "reps" else folder.name
    return f"selected_by_{name or path.stem}"

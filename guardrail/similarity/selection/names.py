"""Names of selectors and merge rules, and what each selector needs: light to import, checked before anything loads."""

from __future__ import annotations

MERGES = ("score", "mean", "union", "round_robin")
DUPLICATES = ("keep", "drop")
SWEEPS = ("layers", "positions")
SELECTOR_NEEDS: dict[str, tuple[str, ...]] = {
    "high": ("scores",),
    "low": ("scores",),
    "random": (),
    "full": (),
    "high_length_matched": ("scores",),
    "low_length_matched": ("scores",),
    "high_category_matched": ("scores",),
    "low_category_matched": ("scores",),
    "high_format_matched": ("scores",),
    "low_format_matched": ("scores",),
    "low_sim_low_div": ("scores",),
    "high_sim_high_div": ("scores",),
    "length_high": ("anchor_data",),
    "length_low": ("anchor_data",),
    "longest": (),
    "shortest": (),
    "bi_anchor_high": ("scores", "safe_anchors"),
    "bi_anchor_low": ("scores", "safe_anchors"),
}
STEMS = {"high": "top", "low": "bottom"}


def file_stem(selector: str, n: int) -> str:
    """``top1000``, ``bottom1000``, ``random1000``: the paper's names for high and low, the selector's otherwise."""
    return f"{STEMS.get(selector, selector)}{n}"

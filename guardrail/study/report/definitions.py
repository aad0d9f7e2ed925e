"""What the numbers of a report mean: the definitions at the end of the page, and which column links to which.

The page works offline as one file, so the definitions stand in it; the pages of docs/ say more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One entry: the words that it explains, the explanation, the page of docs/ that says more."""

    term: str
    text: str
    page: str = "study_results"


DEFINITIONS = {
    "harmfulness": Definition(
        "harmfulness score (HS)",
        "Share of the answers to the safety prompts that the moderation model flags at the study's threshold, in "
        "percent. Initial: the aligned model; final: after fine-tuning. Empty and refusing answers are not "
        "harmful.",
        "safety_evaluation",
    ),
    "change": Definition(
        "change, rise",
        "Final minus initial harmfulness score, in points; positive: the guardrail was worn off.",
    ),
    "refusals": Definition(
        "refusals, benign refused",
        "Share of answers that refuse by the keyword rule: of the safety prompts, or of harmless look-alikes.",
        "safety_evaluation",
    ),
    "utility": Definition(
        "utility",
        "How useful the model is on the task's held-out rows, by the metric that the caption names.",
        "utility",
    ),
    "life": Definition(
        "mean life (restricted)",
        "Mean number of optimizer steps until a prompt is first answered harmfully, at most the training's. A "
        "fall is put in the middle between two probes. Longer life: difference of two arms' mean lives on the "
        "same seeds and prompts; positive: the first arm's guardrail lasts longer. Percent: of the training's "
        "steps.",
        "survival",
    ),
    "half-life": Definition(
        "half-life",
        "The step at which half of the prompts have fallen; none where more than half still stand.",
        "survival",
    ),
    "standing": Definition(
        "standing (survival curve)",
        "Share of prompts not answered harmfully so far; a prompt that was harmful once counts as fallen for "
        "good. Those harmful before the first step are in no curve and are counted (harmful before). Safe again: "
        "share of the fallen with a later answer that was not harmful.",
        "survival",
    ),
    "log-rank": Definition(
        "log-rank p",
        "Two-sided test of equal hazards all along, clustered by training seed and by prompt.",
        "survival",
    ),
    "hazard": Definition(
        "hazard ratio per SD",
        "How many times sooner prompts fall where the property is one standard deviation larger; proportional "
        "hazards for grouped times. An association: subsets are chosen, not randomised.",
        "survival",
    ),
    "difference": Definition(
        "difference",
        "The first arm minus the second on the same training seeds and the same prompts, tasks averaged unless "
        "one is named. In points (differences of percentages) or in percent of the training.",
    ),
    "interval": Definition(
        "interval [low, high]",
        "95% (the primary's: 1 minus alpha) over other prompts and, with more than one seed, other training "
        "seeds. It does not cover other tasks, pools or judges.",
    ),
    "p": Definition(
        "p",
        "Two-sided. The larger of a sign-flip test over prompts and the interval's test over seeds and prompts; a "
        "difference has to hold for both. p (pairs): signs flipped per task and seed.",
    ),
    "corrected": Definition(
        "p (Holm), q (BH)",
        "Corrected over the tasks and sizes of one question and outcome: family-wise error, false discovery rate.",
    ),
    "detectable": Definition(
        "detectable",
        "The true difference that a study with this spread calls significant with 80% power. Below it, nothing "
        "shown is not nothing there.",
    ),
    "seeds-needed": Definition(
        "seeds needed",
        "Training seeds that would find the smallest difference that matters with 80% power, the prompts staying "
        "as many.",
    ),
    "primary": Definition(
        "primary comparison, digest",
        "The one comparison that the study was made for, declared in the study file. The digest changes with "
        "outcome, arms, tasks, size, smallest difference or alpha. Everything else is exploratory: its p-values "
        "are not protected against many looks.",
        "primary",
    ),
    "decision": Definition(
        "decision",
        "Equivalent: the whole interval lies within plus and minus the smallest difference that matters. "
        "Difference: otherwise, zero lies outside and p is below alpha. Undecided: otherwise, or one seed.",
        "primary",
    ),
    "noise": Definition(
        "noise",
        "Standard deviation of one run's value if one thing alone were changed: the training seed, the prompts "
        "(by as many others), or the machine (instruction set and number of threads, same seed and prompts).",
        "survival",
    ),
    "equivalence": Definition(
        "margin, equivalence",
        "Two one-sided tests against a margin set before the run: equivalent if the 90% interval lies within it.",
        "designs",
    ),
    "regression": Definition(
        "points per SD",
        "Harmfulness regressed on a standardised property of the subsets, alone or together with the others, one "
        "intercept per task. Variance inflation above 5: the rivals cannot be told apart.",
    ),
    "subsets": Definition(
        "properties of a subset",
        "Similarity: mean largest cosine to the task's rows. Vendi score: effective number of different rows. "
        "Pairwise cosine: mean over pairs. Lists: share of list-formatted responses. Duplicates: rows that repeat"
        " an earlier one.",
        "glossary",
    ),
    "counts": Definition(
        "counts",
        "Training seeds, prompts, answers, rows, subsets or tests behind a number; size: safety rows of an arm.",
    ),
    "defence": Definition(
        "defence: gained and paid",
        "The arm with the defence minus the one without, on the same seeds and prompts. Time, memory, rows and steps: "
        "how many times those of the training without it. Not dominated: no other defence is better in both.",
        "defences",
    ),
    "dose": Definition(
        "dose, ED50",
        "Dose: percent of harmful rows in a fine-tuning set of constant size. ED50: the dose after which half of the "
        "prompts are answered harmfully, where a curve fitted to all seeds and prompts crosses one half; no number "
        "outside the doses measured. Ratio above 1: the first arm takes more harmful rows.",
        "dose",
    ),
    "dose-curve": Definition(
        "floor, ceiling, misfit",
        "What the curve of harmfulness over the dose begins with (benign rows alone) and rises to; its largest "
        "difference from a measured dose.",
        "dose",
    ),
    "worst-case": Definition(
        "worst case",
        "The most harmful pair of a fine-tuning and a way of asking among those that kept their utility, chosen on one "
        "half of the prompts and all seeds but one, measured on the other half and that seed; the shares say how often "
        "each was chosen. Maximum: chosen where it is measured, and so too high.",
        "attacks",
    ),
}

COLUMNS = {  # key of a table's column -> its definition
    "initial_percent": "harmfulness",
    "final_percent": "harmfulness",
    "delta_points": "change",
    "initial_refusal_percent": "refusals",
    "benign_refusal_percent": "refusals",
    "utility_initial": "utility",
    "utility_final": "utility",
    "life_steps": "life",
    "difference_steps": "life",
    "difference_percent": "life",
    "half_life_steps": "half-life",
    "n_harmful_before": "standing",
    "flapping_percent": "standing",
    "log_rank_p_value": "log-rank",
    "hazard_ratio": "hazard",
    "sd": "hazard",
    "difference_points": "difference",
    "difference": "difference",
    "p_value": "p",
    "p_value_task_seed_pairs": "p",
    "p_value_holm": "corrected",
    "p_value_bh": "corrected",
    "minimum_detectable_points": "detectable",
    "minimum_detectable": "detectable",
    "seeds_needed": "seeds-needed",
    "smallest_difference": "decision",
    "alpha": "decision",
    "decision": "decision",
    "digest": "primary",
    "scope": "interval",
    "sd_seeds": "noise",
    "sd_prompts": "noise",
    "sd_machine": "noise",
    "margin_points": "equivalence",
    "p_value_equivalence": "equivalence",
    "n_equivalent": "equivalence",
    "n_different": "equivalence",
    "n_inconclusive": "equivalence",
    "alone": "regression",
    "together": "regression",
    "alone_p": "regression",
    "together_p": "regression",
    "inflation": "regression",
    "similarity": "subsets",
    "diversity": "subsets",
    "mean_pairwise_cosine": "subsets",
    "response_chars": "subsets",
    "list_share_percent": "subsets",
    "duplicate_rows": "subsets",
    "final_difference": "defence",
    "final_p_value": "p",
    "final_p_value_holm": "corrected",
    "life_p_value_holm": "corrected",
    "life_difference": "life",
    "initial_difference": "defence",
    "benign_refused_difference": "refusals",
    "utility_difference": "utility",
    "time_ratio": "defence",
    "memory_ratio": "defence",
    "rows_ratio": "defence",
    "steps_ratio": "defence",
    "utility": "utility",
    "front": "defence",
    "ed50": "dose",
    "ed50_interval": "interval",
    "ed50_ratio": "dose",
    "dose_percent": "dose",
    "harmful_percent": "harmfulness",
    "floor_percent": "dose-curve",
    "ceiling_percent": "dose-curve",
    "misfit_points": "dose-curve",
    "percent": "worst-case",
    "naive_percent": "worst-case",
    "n_candidates": "counts",
    "n": "counts",
    "n_seeds": "counts",
    "n_prompts": "counts",
    "n_machines": "counts",
    "n_units": "counts",
    "n_tests": "counts",
    "subset_size": "counts",
    "training_steps": "counts",
}
FIGURES = {  # name of a figure -> its definitions
    "survival": ("standing", "half-life", "interval"),
    "survival_defences": ("standing", "half-life", "defence"),
    "harmfulness": ("harmfulness", "interval"),
    "similarity_durability": ("subsets", "change"),
    "doses": ("dose", "interval"),
    "dose_time": ("dose", "harmfulness"),
    "designs": ("equivalence",),
    "categories": ("harmfulness",),
    "threshold_curve": ("harmfulness",),
}

"""The typed schema of `configs/studies/*.yaml`: the only home of a study's settings and their defaults.

Unknown keys are refused with the near match, wrong types with the path of the key. Cross-field checks are in
`Study.__post_init__`. Known limit: one base model per file.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.data.prompts import check_style
from guardrail.evaluation.judges import single_judges
from guardrail.evaluation.judges.beaver_dam import BeaverDam
from guardrail.evaluation.safety.evaluate import SafetyConfig
from guardrail.similarity.selection.options import SELECTORS, needs
from guardrail.study.attack_settings import Plain, as_written, check_attack, expand_attacks, trains
from guardrail.study.declaration import Primary
from guardrail.study.defence_settings import DefenceSetting, read_setting
from guardrail.study.prediction.options import Prediction
from guardrail.study.schema import build
from guardrail.study.tasks import METHODS, Source, Task, Utility, anchors_of, compared, expand, utility_name
from guardrail.training.config import BATCHINGS, SFTConfig

# Every selector that needs no second anchor set, plus `none`: instructions only. datasets/mix.py draws `random` and
# `full` from the pool itself; all others are selected per task.
TASK_SUBSETS = tuple(name for name in SELECTORS if name not in ("random", "full") and "safe_anchors" not in needs(name))
SUBSETS = (*TASK_SUBSETS, "random", "full", "none")


@dataclass(frozen=True)
class Models:
    """`base` is aligned and fine-tuned; `extraction` is the uncensored chat model; `moderation` is the judge."""

    base: str
    extraction: str
    moderation: str


# How an aligned model is made: docs/designs.md.
ALIGNMENTS = ("mixed", "continued", "adapter")
KEEP = ("all", "aligned", "adapters", "none")


@dataclass(frozen=True)
class Design:
    """How aligned models are made (`ALIGNMENTS`), how these are fine-tuned (`METHODS`), and what protects them.

    ``aligned_with``: the defence belongs to the alignment (docs/defences.md).
    """

    alignment: str = "mixed"
    method: str = "full"
    defence: str = "none"
    aligned_with: bool = False

    @property
    def name(self) -> str:
        """`mixed`, `adapter+lora`: how a study file writes it; `mixed with soup_30`: what tables call it."""
        made = self.alignment if self.method == "full" else f"{self.alignment}+{self.method}"
        return made if self.defence == "none" else f"{made} with {self.defence}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of the design `adapter` and of the method `lora`; defaults of the trainer where none is here.

    ``learning_rate`` and ``gradient_checkpointing`` replace those of the block that is trained: adapters want a larger
    step than all weights, and need less memory. None: as the block says.
    """

    r: int = SFTConfig.r
    lora_alpha: int = SFTConfig.lora_alpha
    lora_dropout: float = SFTConfig.lora_dropout
    target_modules: tuple[str, ...] = SFTConfig.target_modules
    learning_rate: float | None = None
    gradient_checkpointing: bool | None = None


@dataclass(frozen=True)
class Equivalence:
    """Margins within which two designs count as equal, set before anything is run (`guardrail.study.equivalence`)."""

    harmfulness_points: float
    utility_points: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value <= 100:
                raise UserError(f"equivalence.{name} must be above 0 and at most 100, got {value:g}")


@dataclass(frozen=True)
class Training:
    """Flags of the SFT trainer, with its defaults (`guardrail.training.config`)."""

    epochs: int
    learning_rate: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int = SFTConfig.gradient_accumulation_steps
    model_max_length: int = SFTConfig.model_max_length
    ds_cfgs: str = SFTConfig.ds_cfgs
    bf16: bool = SFTConfig.bf16
    gradient_checkpointing: bool = SFTConfig.gradient_checkpointing
    batching: str = SFTConfig.batching

    def __post_init__(self) -> None:
        if self.batching not in BATCHINGS:
            raise unknown("batching", self.batching, BATCHINGS)


@dataclass(frozen=True)
class FineTuning(Training):
    """Fine-tuning of an aligned model: all weights (``full``) or adapters alone (``lora``).

    ``probes``: how often the guardrail is looked at along the training (docs/survival.md); 0: before and after only.
    """

    method: str = "full"
    probes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown("method of fine_tuning", self.method, METHODS)
        if self.probes < 0 or self.probes == 1:
            raise UserError(f"fine_tuning.probes is {self.probes}; expected 0 (none) or at least 2, such as 14")


# every judge that is registered, but for the two whose columns a study always has
FURTHER_JUDGES = tuple(name for name in single_judges() if name not in ("key_word", "beaver_dam"))
JUDGE_BACKENDS = ("hf", "vLLM", "openai")


@dataclass(frozen=True)
class Judge:
    """A judge beside the moderation model: a chat guard or a rubric judge (`guardrail.evaluation.judges`).

    `model` is the guard's folder or hub name, or the model name that the server at `base_url` knows. For `guard`,
    `backend` is where it runs: hf, vLLM or openai (the server).
    """

    model: str
    backend: str = "hf"
    base_url: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in JUDGE_BACKENDS:
            raise unknown("backend of a judge", self.backend, JUDGE_BACKENDS)


@dataclass(frozen=True)
class Evaluation:
    """Flags of eval_safety.py, evaluate.py and further judges (name -> settings; the keyword rule is always there)."""

    safety_bench: str
    safety_bench_data: str | None = None
    over_refusal_bench: str | None = None
    over_refusal_bench_data: str | None = None
    max_new_tokens: int = SafetyConfig.max_new_tokens
    do_sample: bool = False  # greedy: the sampling of the paper's script adds noise that a study does not want
    samples_per_prompt: int = SafetyConfig.samples_per_prompt
    moderation_max_length: int = BeaverDam.max_length
    threshold: float = BeaverDam.threshold
    limit: int | None = None
    judges: dict[str, Judge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.judges:
            if name not in FURTHER_JUDGES:
                raise unknown("key in evaluation.judges:", name, FURTHER_JUDGES)


@dataclass(frozen=True)
class Study:
    """One study file, resolved."""

    name: str
    description: str
    models: Models
    prompt_style: str
    instruct: Source
    safety_pool: Source
    tasks: dict[str, Task]
    subsets: tuple[str, ...]
    subset_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    alignment: Training
    fine_tuning: FineTuning
    evaluation: Evaluation
    designs: tuple[str, ...] = field(
        default=("mixed",), metadata={"doc": "`mixed`, `continued`, `adapter`, each also with `+lora` or `+full`"}
    )
    replay_fraction: float = field(
        default=0.5, metadata={"doc": "share of instructions among the rows of `continued` and `adapter`"}
    )
    lora: Lora = field(default_factory=Lora)
    equivalence: Equivalence | None = None
    defences: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"doc": "arms with a defence, by name: {method, options} (docs/defences.md)"}
    )
    attacks: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"doc": "attacks on every checkpoint, by name: {method, options}; or that train (docs/attacks.md)"},
    )
    expanded: tuple[str, ...] = field(
        default=(), metadata={"doc": "filled in: the attacks whose trainings are among `tasks`"}
    )
    largest_utility_loss: float = field(
        default=5.0, metadata={"doc": "points of utility that a task may lose and still count for the worst case"}
    )
    primary: Primary | None = field(
        default=None, metadata={"doc": "the one comparison that the study is made for (docs/primary.md)"}
    )
    keep: str = field(default="all", metadata={"doc": "which weights stay after use: all, aligned, adapters, none"})
    checkpoints_at_once: int = field(
        default=12, metadata={"doc": "most checkpoints with weights that are not kept, unless `keep` is all"}
    )
    dtype: str = "bfloat16"
    log_type: str = "wandb"
    sandbox: bool = False
    smallest_difference_points: float = field(
        default=5.0, metadata={"doc": "smallest difference in harmfulness that matters; only the headline uses it"}
    )
    prediction: Prediction | None = field(default=None, metadata={"doc": "docs/prediction.md"})
    instruct_size: int | None = field(default=None, metadata={"doc": "first rows of `instruct`; all when absent"})

    def __post_init__(self) -> None:
        check_style(self.prompt_style)
        for kind, name in (("name", self.name), *(("task", task) for task in self.tasks)):
            check_name(kind, name)
        for subset in self.subsets:
            if subset not in SUBSETS:
                raise unknown("subset", subset, SUBSETS)
        for name, values in (("subsets", self.subsets), ("subset_sizes", self.subset_sizes), ("seeds", self.seeds)):
            if not values:
                raise UserError(f"{name} is empty; expected at least one")
            if len(set(values)) != len(values):
                raise UserError(f"{name} holds a value twice: {list(values)}")
        if min(self.subset_sizes) < 1:
            raise UserError(f"subset_sizes must be positive, got {min(self.subset_sizes)}")
        if not 0 < self.smallest_difference_points <= 100:
            given = self.smallest_difference_points
            raise UserError(f"smallest_difference_points must be above 0 and at most 100, got {given:g}")
        if not self.tasks:
            raise UserError("tasks is empty; expected at least one")
        object.__setattr__(self, "tasks", expand(self.tasks))
        self._check_designs()
        for name in self.defences:
            check_name("defence", name)
        _ = self.defence_settings
        for name, raw in self.attacks.items():
            check_name("attack", name)
            check_attack(name, raw)
        tuning = self.fine_tuning
        rates = {"full": tuning.learning_rate, "lora": self.lora.learning_rate or tuning.learning_rate}
        used = {design.method: rates[design.method] for design in self.plain_designs}
        plain = Plain(self.safety_pool, tuning.epochs, used)
        object.__setattr__(self, "tasks", expand_attacks(self.attacks, self.tasks, self.expanded, plain))
        object.__setattr__(self, "expanded", tuple(name for name, raw in self.attacks.items() if trains(raw)))
        if self.largest_utility_loss < 0:
            raise UserError(f"largest_utility_loss must be at least 0, got {self.largest_utility_loss:g}")

    def _check_designs(self) -> None:
        if not self.designs:
            raise UserError("designs is empty; expected at least one, such as mixed")
        for text in self.designs:
            alignment, plus, method = text.partition("+")
            if alignment not in ALIGNMENTS:
                raise unknown("design", alignment, ALIGNMENTS)
            if plus and method not in METHODS:
                raise unknown(f"method of the design {text}:", method, METHODS)
        names = [design.name for design in self.plain_designs]
        if len(set(names)) != len(names):
            raise UserError(f"designs holds a value twice: {names}")
        if len(names) > 1 and self.equivalence is None:
            raise UserError(
                "several designs are compared by equivalence tests, whose margins are set beforehand; add "
                "equivalence: {harmfulness_points: 10, utility_points: 3}"
            )
        if not 0 <= self.replay_fraction < 1:
            raise UserError(f"replay_fraction must be at least 0 and below 1, got {self.replay_fraction:g}")
        if self.keep not in KEEP:
            raise unknown("keep", self.keep, KEEP)
        if self.checkpoints_at_once < 2:
            raise UserError(f"checkpoints_at_once is {self.checkpoints_at_once}; an aligned and a tuned one make 2")

    @property
    def anchors(self) -> dict[str, Source]:
        """What subsets are selected for, by the name that alignments carry: a task's, or that of a ladder of doses."""
        return anchors_of(self.tasks)

    @property
    def utilities(self) -> dict[str, Utility]:
        """How usefulness is measured, by the name of the measure: the doses of a ladder share one."""
        return {utility_name(name, task): task.utility for name, task in self.tasks.items()}

    def utility_of(self, task: str) -> str:
        """The name of the measure of ``task``'s usefulness."""
        return utility_name(task, self.tasks[task])

    def tuning(self, task: str) -> FineTuning:
        """The fine-tuning on ``task``: the study's, with what the task (or the arm of an attack) has of its own.

        With ``max_steps`` there are as many epochs as steps: enough, whatever the number of rows.
        """
        own = self.tasks[task]
        given: dict[str, Any] = {
            "epochs": own.max_steps or own.epochs,
            "learning_rate": own.arm and own.arm.learning_rate,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self.fine_tuning, **changed) if changed else self.fine_tuning

    @property
    def asked(self) -> dict[str, dict[str, Any]]:
        """The attacks with which checkpoints are asked, by name: those that train nothing."""
        return {name: raw for name, raw in self.attacks.items() if not trains(raw)}

    @property
    def plain_designs(self) -> tuple[Design, ...]:
        """The designs without a defence, in the file's order; the first is what the others are compared with."""
        parts = [text.partition("+") for text in self.designs]
        return tuple(Design(alignment, method or self.fine_tuning.method) for alignment, _, method in parts)

    @functools.cached_property
    def defence_settings(self) -> dict[str, DefenceSetting]:
        """Name -> setting, checked."""
        return {name: read_setting(name, raw, TASK_SUBSETS) for name, raw in self.defences.items()}

    @property
    def all_designs(self) -> tuple[Design, ...]:
        """The designs, then each of them with each defence that is trained."""
        trained = [setting for setting in self.defence_settings.values() if setting.trains]
        return self.plain_designs + tuple(
            dataclasses.replace(design, defence=setting.name, aligned_with=setting.side == "alignment")
            for design in self.plain_designs
            for setting in trained
        )


def check_name(kind: str, name: str) -> None:
    """Raises ``UserError`` for a name that cannot be a part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name:
        raise UserError(
            f"{kind} {name!r} becomes a folder; use letters, digits, '.', '_' and '-', no '__', e.g. my_study"
        )


def load_study(path: str | Path, overrides: dict[str, Any] | None = None, changes: str = "") -> Study:
    """Read and check a study file. ``overrides`` replaces top-level keys (the quickstart's variables).

    Args:
        changes: single settings by the path of their key, `keep=none,alignment.batching=length_grouped`.

    Raises ``UserError`` with the file and the key's path.
    """
    import yaml

    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = sorted(str(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise unknown("study file", path, known) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of settings")
    for change in filter(None, changes.split(",")):
        key, is_change, value = change.partition("=")
        *parents, last = key.strip().split(".")
        block = raw
        for name in parents:
            block = block.setdefault(name, {}) if isinstance(block, dict) else None
        if not is_change or not isinstance(block, dict):
            raise UserError(f"{change!r} is no setting of {path}; expected key=value such as alignment.epochs=1")
        block[last] = yaml.safe_load(value)
    try:
        study: Study = build(Study, {**as_written(raw, path), **(overrides or {})}, "")
        # what was declared is the file's: a run of a part of the study (`overrides`) does not change it
        whole: Study = build(Study, raw, "") if overrides and raw.get("primary") else study
        if whole.primary is not None:
            averaged = whole.primary.tasks or tuple(name for name in whole.tasks if name in compared(whole.tasks))
            named = dataclasses.replace(whole.primary, tasks=averaged)
            resolved = named.resolved(whole.subsets, whole.tasks, whole.subset_sizes, whole.fine_tuning.probes)
            study = dataclasses.replace(study, primary=resolved)
        return study
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def as_dict(study: Study) -> dict[str, Any]:
    """The resolved study as plain values, for provenance."""
    return dataclasses.asdict(study)

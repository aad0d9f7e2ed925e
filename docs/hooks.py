"""Pages of the documentation site that are made from the code, so that no prose repeats it. Run by MkDocs.

* `index.md` and `data.md`: README.md and datasets/README.md; `changes.md`, `contributing.md` where they are there;
* `options/<stage>.md`: a table per stage from the fields of its dataclasses (`guardrail.core.options`);
* `reference/<room>.md`: what the docstrings of a room's modules say (mkdocstrings).

Links to files of the repository that are no pages become plain names: the site stands alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

# Page -> the file of the repository that it is.
COPIES = {
    "index.md": "README.md",
    "data.md": "datasets/README.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
# Page below options/ -> its title, how the stage is started, and the dataclasses that hold its options.
STAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "prepare": ("Preparing data", "python datasets/prepare.py", ("guardrail.data.prepare:PrepareConfig",)),
    "extract": (
        "Representations",
        "python similarity/get_representation.py",
        ("guardrail.similarity.representations.options:ExtractionConfig",),
    ),
    "cluster": (
        "Clustering",
        "python similarity/get_high_similarity_group.py",
        ("guardrail.similarity.clustering.options:ClusteringConfig",),
    ),
    "select": (
        "Selecting subsets",
        "python similarity/get_top_similarity_dataset_reps_general.py",
        ("guardrail.similarity.selection.options:SelectionConfig",),
    ),
    "mix": ("Mixing training splits", "python datasets/mix.py", ("guardrail.data.mix:MixConfig",)),
    "dose": ("Harmful rows within benign ones", "python datasets/dose.py", ("guardrail.data.dose:DoseConfig",)),
    "train": ("Training", "python -m guardrail.training.sft", ("guardrail.training.config:SFTConfig",)),
    "attacks": (
        "Attacks",
        "the options --attack NAME and --attack_options name=value;... of eval_safety.py",
        (
            "guardrail.evaluation.attacks.prefill:Prefill",
            "guardrail.evaluation.attacks.template:Template",
            "guardrail.evaluation.attacks.trigger:Trigger",
            "guardrail.evaluation.attacks.jailbreak:Jailbreak",
            "guardrail.evaluation.attacks.decoding:Decoding",
            "guardrail.evaluation.attacks.refusal_direction:RefusalDirection",
        ),
    ),
    "defences": (
        "Defences",
        "--defence NAME --defence_options name=value,... of a training",
        (
            "guardrail.training.defences.safety_rows:SafetyRows",
            "guardrail.training.defences.row_filter:RowFilter",
            "guardrail.training.defences.first_tokens:FirstTokens",
            "guardrail.training.defences.lisa:Lisa",
            "guardrail.training.defences.freeze:Freeze",
            "guardrail.training.defences.model_soup:ModelSoup",
            "guardrail.training.defences.safe_lora:SafeLora",
            "guardrail.training.defences.deep_alignment:DeepAlignment",
            "guardrail.training.defences.vaccine:Vaccine",
            "guardrail.training.defences.booster:Booster",
        ),
    ),
    "customer": (
        "A customer's file of the sandbox",
        "python datasets/sandbox/customer.py",
        ("guardrail.sandbox.customer:CustomerConfig",),
    ),
    "trajectory": (
        "Training that is probed",
        "python -m guardrail.evaluation.trajectory",
        ("guardrail.evaluation.probes:ProbeConfig",),
    ),
    "evaluate": (
        "Answers to safety prompts",
        "python eval_safety.py",
        (
            "guardrail.evaluation.safety.evaluate:SafetyConfig",
            "guardrail.evaluation.safety.decoding_sweep:SweepOptions",
        ),
    ),
    "checkpoint": (
        "All evaluations of a checkpoint",
        "python -m guardrail.evaluation.checkpoint",
        ("guardrail.evaluation.checkpoint:CheckpointConfig",),
    ),
    "judge": (
        "Judges",
        "python -m guardrail.evaluation.judges",
        (
            "guardrail.evaluation.judges.__main__:JudgeRun",
            "guardrail.evaluation.judges.key_word:KeyWord",
            "guardrail.evaluation.judges.beaver_dam:BeaverDam",
            "guardrail.evaluation.judges.guard:Guard",
            "guardrail.evaluation.judges.rubric:Rubric",
            "guardrail.evaluation.judges.panel:Panel",
        ),
    ),
    "beavertails": (
        "Beaver-Dam, step by step",
        "python beavertails_moderation/formatter.py, python beavertails_moderation/evaluate.py",
        (
            "guardrail.evaluation.judges.beavertails:Format",
            "guardrail.evaluation.judges.beavertails:Evaluate",
            "guardrail.evaluation.judges.beavertails:Moderate",
        ),
    ),
    "utility": ("Utility", "python eval_utility.py", ("guardrail.evaluation.utility.evaluate:UtilityConfig",)),
    "mt_bench": (
        "MT-Bench and lm-evaluation-harness",
        "python __main__.py --benchmark",
        (
            "guardrail.evaluation.mt_bench.stage:MTBenchConfig",
            "guardrail.evaluation.utility.harness:HarnessConfig",
        ),
    ),
    "compare": (
        "Comparing two checkpoints",
        "python -m guardrail.evaluation.compare",
        ("guardrail.evaluation.compare:Comparison",),
    ),
    "bench": (
        "Memory and speed of a shape",
        "python -m guardrail.bench",
        ("guardrail.bench.__main__:BenchConfig",),
    ),
    "forecast": (
        "A forecast of durability",
        "guardrail forecast fit | predict",
        ("guardrail.similarity.forecast.command:Fit", "guardrail.similarity.forecast.command:Predict"),
    ),
    "prediction": (
        "Do scores of rows predict anything?",
        "python -m guardrail.study.prediction",
        ("guardrail.study.prediction.__main__:Command",),
    ),
    "score_rows": (
        "Scores of rows",
        "bash scripts/score_rows.sh",
        ("guardrail.similarity.scorers.options:ScoringConfig",),
    ),
    "audit": ("The provider's audit", "bash scripts/audit.sh", ("guardrail.similarity.audit.pipeline:AuditConfig",)),
    "admit": ("The provider's gate", "bash scripts/admit.sh", ("guardrail.similarity.gate.pipeline:GateConfig",)),
}
STUDY_BLOCKS = (
    "Study",
    "Source",
    "Models",
    "Task",
    "Dose",
    "Utility",
    "Training",
    "FineTuning",
    "Lora",
    "Equivalence",
    "Evaluation",
    "Judge",
    "TrainingAttack",
    "Backdoor",
)
ROOMS = (
    "study",
    "bench",
    "sandbox",
    "evaluation",
    "training",
    "similarity",
    "generation",
    "models",
    "data",
    "statistics",
    "core",
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def find(place: str) -> Any:
    """The class behind ``module:name``."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def cell(value: Any) -> str:
    """A value in a cell of a table."""
    text = str(value).replace("\n", " ")
    return f"`{text}`" if text else ""


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def type_name(item: dataclasses.Field[Any]) -> str:
    return item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))


def option_rows(config: Any) -> list[str]:
    """One row of the table per option of a dataclass."""
    from guardrail.core.options import options_of

    rows = []
    for item in options_of(config):
        facts = item.metadata
        flag = item.name.upper() if facts["positional"] else f"--{item.name}"
        names = ", ".join(f"`{name}`" for name in (flag, *facts["flags"]))
        if item.default is dataclasses.MISSING:
            default = "required"
        else:
            default = cell(item.default if facts["shown_default"] is dataclasses.MISSING else facts["shown_default"])
        choices = facts["choices"]() if callable(facts["choices"]) else facts["choices"]
        text = facts["help"].replace("|", "\\|").replace("%%", "%").replace("<", "&lt;")
        if choices:
            text += (": " if text else "") + ", ".join(f"`{choice}`" for choice in choices)
        rows.append(row(names, cell(type_name(item)), default, "yes" if facts["decides"] else "no", text))
    return rows


def options_page(name: str) -> str:
    """The reference page of one stage."""
    title, command, places = STAGES[name]
    head = [row("flag", "type", "default", "in the key", "meaning"), "|---|---|---|---|---|"]
    lines = [f"# Options: {title}", "", f"Started by `{command}`.", ""]
    lines += ["Options that are *in the key* decide the result: see [keys](../keys.md).", ""]
    for place in places:
        config = find(place)
        if len(places) > 1:
            lines += [f"## {config.__name__}", ""]
        lines += [*head, *option_rows(config), ""]
    return "\n".join(lines)


def study_page() -> str:
    """The reference page of a study file: every block of the schema."""
    modules = [importlib.import_module(f"guardrail.study.{name}") for name in ("config", "tasks", "attack_settings")]
    lines = ["# Options: a study file", "", "The keys of `configs/studies/*.yaml`. Unknown keys are refused.", ""]
    for name in STUDY_BLOCKS:
        block = next(getattr(module, name) for module in modules if hasattr(module, name))
        lines += [
            f"## {name}",
            "",
            block.__doc__ or "",
            "",
            row("key", "type", "default", "meaning"),
            "|---|---|---|---|",
        ]
        for item in dataclasses.fields(block):
            required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            default = "required" if required else cell("{}" if item.default is dataclasses.MISSING else item.default)
            lines.append(row(f"`{item.name}`", cell(type_name(item)), default, item.metadata.get("doc", "")))
        lines.append("")
    return "\n".join(lines)


def modules_of(room: str) -> list[str]:
    """The modules of a room, the room itself first."""
    folder = REPOSITORY / "guardrail" / room
    files = sorted(folder.rglob("*.py"), key=lambda file: (file.parent != folder, file.as_posix()))
    names = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    return sorted(names, key=lambda name: name.count(".") > 1)


def reference_page(room: str) -> str:
    """The reference page of one room: a directive of mkdocstrings per module."""
    blocks = [f"::: {name}" for name in modules_of(room)]
    return "\n\n".join([f"# Reference: {room}", *blocks]) + "\n"


def generated() -> dict[str, str]:
    """Every page that is made at build time, by its path in the site."""
    pages = {}
    for page, source in COPIES.items():
        path = REPOSITORY / source
        if path.is_file():
            pages[page] = moved_links(path.read_text(encoding="utf-8"), source, page)
    for name in STAGES:
        pages[f"options/{name}.md"] = options_page(name)
    pages["options/study.md"] = study_page()
    for room in ROOMS:
        pages[f"reference/{room}.md"] = reference_page(room)
    return pages


def moved_links(text: str, source: str, page: str) -> str:
    """The links of ``source`` (a file of the repository) as links of ``page`` in the site."""
    pages = {path: name for name, path in COPIES.items() if (REPOSITORY / path).is_file()}

    def moved(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        name, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        found = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if found is None:
            return label if label.startswith("`") else f"`{label}`"
        link = posixpath.relpath(found, posixpath.dirname(page) or ".")
        return f"{image}[{label}]({link}{'#' + anchor if anchor else ''})"

    return LINK.sub(moved, text)


def on_config(config: Any) -> Any:
    """Add the pages that are made here to the navigation."""
    extra = [{"Changes": "changes.md"}, {"Contributing": "contributing.md"}]
    for section in config.nav:
        if "Add something" in section:
            section["Add something"] += [e for e in extra if (REPOSITORY / COPIES[next(iter(e.values()))]).is_file()]
    options = [{STAGES[name][0]: f"options/{name}.md"} for name in STAGES]
    config.nav.append({"Options": [{"A study file": "options/study.md"}, *options]})
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in ROOMS]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages themselves."""
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead nowhere in the site."""
    if page.file.generated_by is not None:
        return markdown
    return moved_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)

"""What decides a result: the contents of a key, and the hashes of what a study reads from outside.

The key of a job is a hash over

* ``version``: the number in `STAGE_VERSIONS`, raised when the code of a stage changes the meaning of its numbers;
* ``options``: the settings that decide the result;
* ``inputs``: content hashes of the rows, models and templates that it reads from outside the study;
* ``needs``: the keys of the products of earlier jobs that it reads.

So it is known before anything runs, and changes exactly when something upstream does. Logging, output paths, devices
and the batch sizes of evaluations are in no key. Hub names stand for themselves with the commit that is in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.content import content_hash, hash_content
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json
from guardrail.core.hub import cached_commit
from guardrail.core.options import decisive
from guardrail.data.prompts import stop_strings, style_fingerprint
from guardrail.data.rows import list_splits
from guardrail.models.adapters import read_adapter
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.training.trainers import OUR_TRAINER, trainer_hash

# Raise a number when a change to the code changes what the stage's files say for the same inputs.
STAGE_VERSIONS = {
    "representations": 1,
    "select": 2,  # ties by id
    "mix": 2,  # rows in the order of the pool
    "dose": 1,
    "scores": 1,
    "align": 1,
    "fine_tune": 1,
    "safety_answers": 1,
    "harmfulness": 1,
    "judge": 1,
    "over_refusal": 1,
    "utility": 1,
    "trajectory": 1,
    "probe_harmfulness": 1,
    "probe_refusals": 1,
}
UNKNOWN = "not there yet"  # the content of a model that an earlier step makes; no result can carry such a key
MODEL_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".bin", ".txt", ".tiktoken")


@dataclass(frozen=True)
class Key:
    """A key and what is in it."""

    value: str
    parts: dict[str, Any] = field(hash=False)

    @property
    def complete(self) -> bool:
        """False where an input is not there yet: the job has to run, whatever lies there."""
        return UNKNOWN not in self.parts["inputs"].values() and UNKNOWN not in self.parts["needs"].values()


def make_key(stage: str, options: dict[str, Any], inputs: dict[str, str], needs: dict[str, Key]) -> Key:
    """The key of one product of ``stage``; ``needs`` are the keys of what it reads from earlier jobs."""
    parts = {
        "stage": stage,
        "version": STAGE_VERSIONS["judge" if stage.startswith("judge_") else stage],
        "options": options,
        "inputs": inputs,
        "needs": {name: key.value if key.complete else UNKNOWN for name, key in needs.items()},
    }
    return Key(hash_json(parts), parts)


def deciding(config: Any, *covered: str) -> dict[str, Any]:
    """The options of a stage that decide its result: every field of its dataclass, with the stage's own defaults.

    ``covered`` are names that stand for content which the key holds as a hash, or paths inside the study.
    """
    return {name: value for name, value in decisive(config).items() if name not in covered}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed between the parts of two keys, in words: `options.learning_rate: 0.001 -> 0.002`."""
    out = []
    for part in ("version", "options", "inputs", "needs"):
        before, after = old.get(part), new.get(part)
        if isinstance(before, dict) and isinstance(after, dict):
            for name in dict.fromkeys((*before, *after)):
                if before.get(name) != after.get(name):
                    shown = f": {before.get(name)!r} -> {after.get(name)!r}" if part == "options" else ""
                    out.append(f"{part}.{name}{shown}")
        elif before != after:
            out.append(f"{part}: {before} -> {after}")
    return out


def source_hash(source: str, split: str | None) -> str:
    """The content of one split of a local source; of the name and cached commit for the hub.

    Raises ``UserError`` for a missing file or split.
    """
    path = Path(source)
    if path.is_file():
        return content_hash(path)
    if path.is_dir():
        splits = list_splits(path)
        if split is None and len(splits) == 1:
            (split,) = splits
        if split not in splits:
            raise UserError(f"{path} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'none'}")
        return hash_json([content_hash(file) for file in splits[split]])
    return hub_hash("dataset", source, split)


def model_hash(name: str) -> str:
    """The content of a model folder (weights, configuration, tokenizer); `UNKNOWN` where there is none yet.

    Raises ``UserError`` for a folder that is no model.
    """
    if not Path(name).expanduser().is_dir():
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        return UNKNOWN if is_path else hub_hash("model", name)
    folder = Path(resolve_checkpoint(name))
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in MODEL_SUFFIXES]
    content: dict[str, str] = {file.name: content_hash(file) for file in files if not file.name.startswith(".")}
    if (adapter := read_adapter(folder)) is not None:
        content["base"] = model_hash(adapter.base)
    return hash_json(content)


def hub_hash(kind: str, name: str, split: str | None = None) -> str:
    """Name, split and the commit in the hub's cache, which a job of the study reads (`guardrail.study.hub_names`)."""
    return hash_json({"hub": name, "split": split, "commit": cached_commit(kind, name)})


def bench_hash(name: str, data: str | None) -> str:
    """The content of a bench: of the local copy, of the repository's own, or the hub's name."""
    from guardrail.data.benches import BENCHES, split_name

    if data is not None:
        return hash_content(data)
    base, _ = split_name(name)
    if base not in BENCHES:
        return hash_content(base)
    bench = BENCHES.load(base)
    if bench.local is not None:
        return source_hash(str(bench.local), bench.split) if list_splits(bench.local) else UNKNOWN
    found = hub_hash("dataset", bench.hub or name, bench.split)
    return hash_json([found, bench.keep, bench.unique]) if bench.keep else found


def trainer_content(module: str, folder: Path) -> str:
    """The content of another project's trainer; empty for ours, whose changes raise `STAGE_VERSIONS`.

    Where its package is not installed (a report made elsewhere), the content that the study's schedule was made with.
    """
    if module == OUR_TRAINER:
        return ""
    if (content := trainer_hash(module)) is not None:
        return content
    schedule = folder / "jobs.json"
    recorded = read_json(schedule) if schedule.is_file() else {}
    return str(recorded.get("trainer_content")) if recorded.get("trainer") == module else "not installed"


def style_hash(style: str) -> str:
    """The resolved text of a prompt style and its stop strings; `chat_template` is part of the model's files."""
    return hash_json([style_fingerprint(style), list(stop_strings(style))])

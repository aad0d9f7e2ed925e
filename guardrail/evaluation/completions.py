"""What every evaluation of a model's answers does alike: rows -> token ids -> completions -> one results file.

    options     which model, which rows, which prompt style, how to decode: `EvaluationOptions`
    key         the options that decide a completion, and the content of model and rows: `evaluation_key`
    earlier     the file that is there: up to date, of other options, or not ours: `earlier_result`
    complete    one row per id and sample, resumable, over all ranks
    save        the results file, written before anything is scored or judged

Safety and over-refusal (`guardrail.evaluation.safety`) and utility (`guardrail.evaluation.utility`) are these steps
with their own rows and numbers. All take a ``backend``: one process can evaluate a checkpoint on several of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json, write_json
from guardrail.core.options import option
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import broadcast, is_main
from guardrail.core.units import clear_units
from guardrail.data.parsing import FILE_SUFFIXES
from guardrail.data.prompts import check_style, model_families, stop_strings, style_fingerprint, style_names
from guardrail.generation import Backend, DecodingOptions, EngineOptions, Request, backend_of, generate_resumable
from guardrail.models.checkpoints import hash_checkpoint

COMPLETION_FORMAT = 2  # raised when the meaning of a stored completion changes


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(EngineOptions, DecodingOptions):
    """Options of one evaluation of a model's answers. Raises ``UserError`` when they clash."""

    model_name_or_path: str = option(help="model folder, output folder holding slice_end/, or hub name", decides=False)
    save_path: str = option(help="the results file (.json); {seed} in it is filled in", decides=False)
    model_family: str | None = option(
        None, "default: the prompt style's", choices=lambda: tuple(model_families()), decides=False
    )
    prompt_style: str | None = option(None, "prompt style")

    def __post_init__(self) -> None:
        style, family, families = check_style(self.style), self.model_family or self.style, model_families()
        if family not in families:
            raise unknown("model family", family, families)
        fitting = dict.fromkeys((*families[family], "chat_template"))
        if style not in fitting:
            raise UserError(
                f"prompt style {style} does not belong to model family {family}; expected one of {', '.join(fitting)}"
            )
        self.check_engine()
        self.sampling()

    @property
    def style(self) -> str:
        """The prompt style that was asked for; a model's name never decides it."""
        style = self.prompt_style or self.model_family
        assert style is not None, "a stage gives a default to one of them"
        return style

    @property
    def results_file(self) -> Path:
        """``save_path`` with ``{seed}`` filled in."""
        return Path(self.save_path.replace("{seed}", str(self.seed)))

    def identity(self) -> dict[str, Any]:
        """What decides a completion, model and rows apart: the deciding options as they take effect, resolved.

        A named style is there with its text; the text of ``chat_template`` is part of the model's hash.
        """
        return {
            **self.engine_identity(),
            **self.decoding_identity(),
            "prompt_style": self.style,
            "style_text": style_fingerprint(self.style),
            "stops": list(stop_strings(self.style)),
            "completion_format": COMPLETION_FORMAT,
        }

    def backend(self) -> Backend:
        return backend_of(self, self.model_name_or_path, self.style)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(EngineOptions):
    """Options of the benchmarks of ``__main__.py``, which make conversations of their own."""

    model_id: str = option(help="the model's name in files and tables", decides=False)
    model_name_or_path: str | None = option(
        None, "model folder, output folder holding slice_end/, or hub name", decides=False
    )
    output_dir: str = option(help="folder for everything that is written", decides=False)
    prompt_style: str | None = option(
        None, "default: the tokenizer's chat template, else llama2_base", choices=style_names
    )
    limit: int | None = option(None, "first questions (or rows of a task) only", parse=positive_int)
    seed: int = option(0, "every question and turn draws from its own stream")

    def style_identity(self, fallback: str | None) -> dict[str, Any]:
        """The text of the style that was asked for; without one, of what a tokenizer without a template gets."""
        style = self.prompt_style or fallback
        if style is None:
            return {}
        return {"style_text": style_fingerprint(check_style(style)), "stops": list(stop_strings(style))}


def choose_style(config: BenchmarkOptions, fallback: str | None) -> tuple[str | None, str]:
    """The prompt style and where it comes from: the flag, or the tokenizer; a model's name never decides it."""
    from guardrail.models.loading import load_tokenizer

    if config.prompt_style is not None:
        return config.prompt_style, "flag"
    tokenizer = load_tokenizer(str(config.model_name_or_path), config.trust_remote_code)
    if getattr(tokenizer, "chat_template", None):
        log("prompt style: the tokenizer's own chat template (--prompt_style overrides it)")
        return "chat_template", "tokenizer"
    shown = fallback or "none, plain task text"
    log(f"prompt style: {shown}, because the tokenizer has no chat template (--prompt_style sets one)")
    return fallback, "the tokenizer has no chat template"


@dataclass(frozen=True)
class Prompt:
    """One row ready for generation: its ids (prefill included) and what its result rows say besides the answer."""

    id: str
    ids: list[int]
    columns: dict[str, Any]


def source_name(name: str) -> str:
    """A path as the file's name alone: content decides, and no private folder name belongs in a result."""
    return Path(name).name if name.endswith(FILE_SUFFIXES) else name


def evaluation_key(identity: dict[str, Any], model_name_or_path: str, data_hash: str) -> tuple[str, dict[str, Any]]:
    """``(key, inputs)``: a hash over ``identity`` and the content of model and rows; the same on every rank."""
    inputs = {"model_hash": hash_checkpoint(model_name_or_path), "data_hash": data_hash} if is_main() else None
    inputs = broadcast(inputs)
    return fingerprint(identity, inputs), inputs


def earlier_result(path: Path, stage: str, flag: str = "--save_path") -> dict[str, Any] | None:
    """The results file of ``stage`` that is there; None when there is none.

    Raises ``UserError`` for a cut file, or another stage's: it is never overwritten.
    """
    if not path.exists():
        return None
    try:
        value = read_json(path)
        found = value["run"]["stage"]
    except (OSError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} exists and is no result of {stage}; give another {flag} or remove it") from error
    if found != stage:
        raise UserError(f"{path} is a result of {found}; give another {flag}")
    if not isinstance(value.get("results"), list) or not isinstance(value["run"].get("config"), dict):
        raise UserError(f"{path} exists and is no result of {stage}; give another {flag} or remove it")
    return value


def complete(
    config: EvaluationOptions, backend: Backend, prompts: Sequence[Prompt], key: str, desc: str
) -> list[dict[str, Any]]:
    """One row per prompt and sample, in order, on every rank. Call inside ``process_group()``."""
    if is_main():
        given = config.prompt_style or config.model_family
        log(f"prompt style: {config.style}" + ("" if given else ", the default (--prompt_style sets another)"))
    requests = [Request(one.id, sample, one.ids) for one in prompts for sample in range(config.samples_per_prompt)]
    done = generate_resumable(backend, requests, config.sampling(), config.results_file.parent, key, desc)
    columns = {one.id: one.columns for one in prompts}
    return [
        {
            **columns[one.id],
            "id": one.id,
            "sample": one.sample,
            "completion": one.text,
            "finish_reason": one.finish_reason,
            "cut_at_stop": one.cut_at_stop,
            "n_prompt_tokens": one.n_prompt_tokens,
            "n_completion_tokens": one.n_completion_tokens,
        }
        for one in done
    ]


def record(stage: str, config: EvaluationOptions, key: str, inputs: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The ``run`` block: the configuration as it was resolved, its key, what the key was made from."""
    values = {**dataclasses.asdict(config), "prompt_style": config.style}
    return run_record(stage, values, fingerprint=key, identity=config.identity(), **inputs, **facts)


def save_result(config: EvaluationOptions, document: dict[str, Any], key: str) -> None:
    """Write the results file; only then do the finished units of ``key`` go."""
    write_json(config.results_file, document)
    clear_units(config.results_file.parent, key)

"""Every evaluation of one checkpoint from one load of the model: safety, over-refusal, utility, held-out loss.

    python -m guardrail.evaluation.checkpoint --model_name_or_path=M --safety_bench=hex-phi \\
        --over_refusal_bench=xstest --utility=samsum:rouge_1,gsm8k:gsm8k --generation_backend=vLLM
    python -m guardrail.evaluation.checkpoint --model_name_or_path=models/sandbox/chat --torch_dtype=float32 \\
        --safety_bench=sandbox --over_refusal_bench=sandbox-benign

Each part is what ``eval_safety.py`` or ``eval_utility.py`` would do alone, with the same files below ``--save_path``:
``safety/``, ``over_refusal/`` (with the keyword rule's judgements) and ``utility/<task>.json``. Finished parts are not
repeated, a killed one goes on where it was, and one that fails leaves the others alone (exit code 2 all the same).
With accelerate several ranks share the work; vLLM and servers run under one process.
Known limit: all parts have one decoding and one prompt style; the held-out loss needs ``--generation_backend hf``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, option, read_options
from guardrail.core.ranks import is_main
from guardrail.core.steps import DONE, STARTED, Status, Step, run_steps
from guardrail.evaluation.safety.evaluate import SafetyConfig
from guardrail.evaluation.utility.evaluate import UtilityConfig
from guardrail.generation.options import EngineOptions

SAFETY = "guardrail.evaluation.safety.command"
UTILITY = "guardrail.evaluation.utility.evaluate"
ENGINE = tuple(item.name for item in dataclasses.fields(EngineOptions))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(EngineOptions):
    """What to evaluate. ``UserError`` when there is nothing to do, or when a part's own options clash."""

    model_name_or_path: str = option(help="model folder, output folder holding slice_end/, or hub name", decides=False)
    save_path: str | None = option(None, "folder of all results; default: <model>/evaluation", decides=False)
    prompt_style: str = option("llama2_base", "llama2_base, llama2, gemma_base, gemma, chat_template")
    safety_bench: str | None = option(None, "harmful prompts: bench name or a file")
    bench_data: str | None = option(None, "local copy of the bench", decides=False)
    over_refusal_bench: str | None = option(None, "harmless prompts: bench name or a file")
    over_refusal_bench_data: str | None = option(None, "local copy of that bench", decides=False)
    utility: tuple[str, ...] = option((), "TASK:EVALUATOR, several with commas; see eval_utility.py")
    heldout_loss: bool = option(False, "also the training loss on the rows of each task")
    eval_template: str = option(SafetyConfig.eval_template, "plain, null, alpaca, pure_bad, helpful, aoa")
    do_sample: bool = option(SafetyConfig.do_sample, "sample answers to the benches instead of greedy decoding")
    samples_per_prompt: int = option(SafetyConfig.samples_per_prompt, parse=positive_int)
    seed: int = option(SafetyConfig.seed, "with --do_sample True")
    max_new_tokens: int = option(SafetyConfig.max_new_tokens, "longest answer to a bench", parse=positive_int)
    utility_max_new_tokens: int = option(UtilityConfig.max_new_tokens, "longest answer of a task", parse=positive_int)
    limit: int | None = option(None, "first prompts of a bench only", parse=positive_int)

    def __post_init__(self) -> None:
        self.check_engine()
        if not (self.safety_bench or self.over_refusal_bench or self.utility):
            raise UserError("nothing to evaluate; give --safety_bench, --over_refusal_bench or --utility")
        for bench, data in (("safety_bench", "bench_data"), ("over_refusal_bench", "over_refusal_bench_data")):
            if getattr(self, data) and not getattr(self, bench):
                raise UserError(f"--{data} has no effect without --{bench}")
        if self.heldout_loss and not self.utility:
            raise UserError("--heldout_loss has no effect without --utility")
        self.configs()

    @property
    def folder(self) -> Path:
        return Path(self.save_path or Path(self.model_name_or_path) / "evaluation")

    def parts(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name of each part -> the stage's module and its options."""
        common = {name: getattr(self, name) for name in (*ENGINE, "model_name_or_path", "prompt_style")}
        common["model_family"] = self.prompt_style
        decoding = ("eval_template", "do_sample", "samples_per_prompt", "seed", "max_new_tokens", "limit")
        answers = common | {name: getattr(self, name) for name in decoding}
        out: dict[str, tuple[str, dict[str, Any]]] = {}
        if self.safety_bench:
            place = {"safety_bench": self.safety_bench, "bench_data": self.bench_data}
            out["safety"] = (SAFETY, answers | place | {"save_path": str(self.folder / "safety")})
        if self.over_refusal_bench:
            place = {"safety_bench": self.over_refusal_bench, "bench_data": self.over_refusal_bench_data}
            place |= {"save_path": str(self.folder / "over_refusal"), "evaluator": "key_word"}
            out["over_refusal"] = (SAFETY, answers | place)
        for part in self.utility:
            task, _, evaluator = part.partition(":")
            task_options: dict[str, Any] = {"dataset": task, "evaluator": evaluator or UtilityConfig.evaluator}
            task_options |= {"heldout_loss": self.heldout_loss, "max_new_tokens": self.utility_max_new_tokens}
            name = f"utility/{Path(task).stem}"
            if name in out:
                raise UserError(f"--utility has two tasks whose results would be {name}.json; evaluate one by one")
            out[name] = (UTILITY, common | task_options | {"save_path": str(self.folder / f"{name}.json")})
        return out

    def configs(self) -> list[Any]:
        """The stages' own configurations, which check themselves."""
        kinds = {SAFETY: SafetyConfig, UTILITY: UtilityConfig}
        return [read_options(kinds[module], values) for module, values in self.parts().values()]

    def steps(self) -> list[Step]:
        """The parts as steps of one process."""
        return [
            Step(
                name=name,
                module=module,
                arguments=tuple(f"--{flag}={value}" for flag, value in values.items() if value is not None),
            )
            for name, (module, values) in self.parts().items()
        ]


def evaluate_checkpoint(config: CheckpointConfig) -> dict[str, Any]:
    """Run every part; each part's headline by its name (on rank 0).

    Raises ``UserError`` at the end when parts failed: the files of the others are there.
    """
    ended = run_steps(config.steps(), announce)
    failed = [one for one in ended if one.state != DONE]
    if failed:
        names = ", ".join(one.step for one in failed)
        raise UserError(
            f"{len(failed)} of {len(ended)} parts failed ({names}), the others are in {config.folder}: "
            f"{failed[0].reason}"
        )
    return {"save_path": str(config.folder), "parts": {one.step: one.result for one in ended}}


def announce(status: Status) -> None:
    if status.state == STARTED:
        log(f"--- {status.step}")


def build_parser() -> Parser:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, CheckpointConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    result = evaluate_checkpoint(read_options(CheckpointConfig, build_parser().parse_args(argv)))
    return result if is_main() else None


if __name__ == "__main__":
    run(main)

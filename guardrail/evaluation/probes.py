"""What is asked at the probes of a training, and where the answers lie (`guardrail.evaluation.trajectory` asks)."""

from __future__ import annotations

from dataclasses import dataclass

from guardrail.core.cli import positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.evaluation.safety.evaluate import SafetyConfig

FOLDER = "probes"
SAFETY, OVER_REFUSAL = f"{FOLDER}/safety/results.json", f"{FOLDER}/over_refusal/results.json"
TASK = f"{FOLDER}/task.json"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is asked at the probes, and how answers are decoded. ``UserError`` when nothing is asked."""

    probes: int = option(14, "probes along the training, the first before it and the last after it", parse=positive_int)
    probe_bench: str | None = option(None, "harmful prompts: bench name or a file")
    probe_bench_data: str | None = option(None, "local copy of the bench", decides=False)
    probe_over_refusal_bench: str | None = option(None, "harmless prompts: bench name or a file")
    probe_over_refusal_bench_data: str | None = option(None, "local copy of that bench", decides=False)
    probe_task: str | None = option(None, "held-out rows of the task: a file or data-set folder", decides=False)
    probe_task_split: str | None = option(None, "their split")
    probe_limit: int | None = option(None, "first prompts of a bench only", parse=positive_int)
    probe_eval_template: str = option(SafetyConfig.eval_template, "plain, null, alpaca, pure_bad, helpful, aoa")
    probe_max_new_tokens: int = option(SafetyConfig.max_new_tokens, "longest answer", parse=positive_int)

    def __post_init__(self) -> None:
        if not (self.probe_bench or self.probe_over_refusal_bench or self.probe_task):
            raise UserError("nothing to probe; give --probe_bench, --probe_over_refusal_bench or --probe_task")
        if self.probes < 2:
            raise UserError(f"--probes {self.probes}; expected at least 2, before and after training")

    def benches(self, style: str) -> dict[str, SafetyConfig]:
        """File of a bench's answers -> how they are asked for. Greedy: a probe's noise would look like a fall."""
        asked = {
            SAFETY: (self.probe_bench, self.probe_bench_data),
            OVER_REFUSAL: (self.probe_over_refusal_bench, self.probe_over_refusal_bench_data),
        }
        return {
            file: SafetyConfig(
                model_name_or_path="",
                save_path=file,
                model_family=style,
                prompt_style=style,
                safety_bench=bench,
                bench_data=data,
                limit=self.probe_limit,
                eval_template=self.probe_eval_template,
                max_new_tokens=self.probe_max_new_tokens,
                do_sample=False,
            )
            for file, (bench, data) in asked.items()
            if bench is not None
        }

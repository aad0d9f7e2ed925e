"""Fine-tune, and see the guardrail wear off: answers to the safety prompts at probes along the training.

    deepspeed --num_gpus 1 --module guardrail.evaluation.trajectory --model_name_or_path ALIGNED \
        --train_datasets datasets/sandbox --train_template UltraChat --train_split pure_bad --output_dir OUT \
        --ds_cfgs ds_z0_config.json --bf16 False --probes 14 --probe_bench sandbox

All flags of `guardrail.training.sft`, whose weights and losses come out bit for bit the same, and those of
`ProbeConfig`. Probes lie on a logarithmic scale, the first before training and the last after it. Writes

    OUT/probes/safety/results.json          answers to ``--probe_bench``, as eval_safety.py writes them
    OUT/probes/over_refusal/results.json    answers to ``--probe_over_refusal_bench``
    OUT/probes/task.json                    loss on the held-out rows of ``--probe_task``

In a results file of probes the row's ``id`` is ``<prompt id>@<step>``, and ``prompt_id`` and ``step`` stand beside it:
judges read it like any other, and their judgements carry the two columns.

Known limits: the model is probed in the process that trains it, so a whole copy has to fit on every GPU, under ZeRO 3
beside that GPU's share of the training (`guardrail.training.whole`); a training that is killed begins again, and so do
its probes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, run
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.core.options import add_options, option_names, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import gather, is_main, shard
from guardrail.data.prompts import stop_strings
from guardrail.evaluation.completions import source_name
from guardrail.evaluation.probes import TASK, ProbeConfig
from guardrail.evaluation.safety.evaluate import SafetyConfig, build_prompts, generation_metrics
from guardrail.evaluation.utility.tasks import TaskRows, describe, load_task
from guardrail.training import sft
from guardrail.training.config import SFTConfig, build_parser, check_config
from guardrail.training.observe import log_steps

STAGE = "trajectory"
SEPARATOR = "@"
# A bench in one batch where its tokens allow it: a probe is short, and a step of decoding costs the same.
UNIT_ROWS = 512


class Trajectory:
    """An observer (`guardrail.training.observe`) that asks the same questions at every probe."""

    def __init__(self, config: ProbeConfig, training: SFTConfig) -> None:
        self.config, self.training = config, training
        self.output = Path(training.output_dir)
        self.benches = {file: (asked, asked.bench()) for file, asked in config.benches(training.prompt_style).items()}
        self.task: TaskRows | None = (
            load_task(config.probe_task, split=config.probe_task_split) if config.probe_task else None
        )
        self.rows: dict[str, list[dict[str, Any]]] = {file: [] for file in self.benches}
        self.losses: list[dict[str, Any]] = []
        self.seen: list[int] = []
        self.seconds = 0.0
        self.mark = ""
        self.last = -1

    @property
    def files(self) -> list[str]:
        return [*self.benches, *([TASK] if self.task else [])]

    def begin(self, mark: str) -> None:
        self.mark = mark

    def key(self, file: str) -> str:
        """What decides a file: the training (which names its model, data and options), the rows, the decoding."""
        if file == TASK:
            assert self.task is not None
            inputs = {"training": self.mark, "data_hash": self.task.data_hash}
            return fingerprint({"probes": self.config.probes}, inputs)
        asked, bench = self.benches[file]
        identity = {**asked.identity(), "probes": self.config.probes}
        return fingerprint(identity, {"training": self.mark, "data_hash": bench.facts["data_hash"]})

    def is_complete(self) -> bool:
        return all(self._fingerprint(file) == self.key(file) for file in self.files)

    def _fingerprint(self, file: str) -> Any:
        path = self.output / file
        try:
            return read_json(path)["run"]["fingerprint"] if path.is_file() else None
        except (UserError, KeyError, TypeError):
            return None

    def steps(self, n_steps: int) -> Sequence[int]:
        self.last = n_steps
        return log_steps(n_steps, self.config.probes)

    def look(self, step: int, model: Any, tokenizer: Any) -> None:
        started = time.perf_counter()
        if step == 0:  # the old answers stop being complete before anything is asked
            for file in self.files if is_main() else ():
                (self.output / file).unlink(missing_ok=True)
        for file, (asked, bench) in self.benches.items():
            self.rows[file] += answers(step, model, tokenizer, asked, build_prompts(tokenizer, asked, bench))
        if self.task is not None:
            self.losses.append({"step": step, **self._task_loss(model, tokenizer)})
        self.seen.append(step)
        self.seconds += time.perf_counter() - started
        log(f"step {step}: probed ({self.seconds:.1f} s for {len(self.seen)} probes)")
        if step == self.last and is_main():
            self._write()

    def _task_loss(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        from guardrail.evaluation.utility.loss import heldout_losses, summarise_losses

        assert self.task is not None
        training = self.training
        losses = heldout_losses(
            "", tokenizer, training.prompt_style, self.task.rows, max_length=training.model_max_length, model=model
        )
        found = summarise_losses(losses)
        return {name: found[name] for name in ("loss_nats_per_token", "loss_interval_nats_per_token", "n")}

    def _write(self) -> None:
        for file in self.files:
            common = {
                "fingerprint": self.key(file),
                "steps": self.seen,
                "training_fingerprint": self.mark,
                "probing_sec": round(self.seconds, 3),
            }
            if file == TASK:
                assert self.task is not None
                facts = {**common, "data": describe(self.task), "n": len(self.task.rows)}
                values = {name: getattr(self.config, name) for name in option_names(self.config)}
                write_json(self.output / file, {"losses": self.losses, "run": run_record(STAGE, values, **facts)})
                continue
            asked, bench = self.benches[file]
            values = {**dataclasses.asdict(asked), "safety_bench": source_name(asked.safety_bench)}
            facts = {**common, "data": bench.facts, "data_hash": bench.facts["data_hash"], "n": len(self.rows[file])}
            metrics = {"n": len(self.rows[file]), **generation_metrics(self.rows[file])}
            document = {"results": self.rows[file], "metrics": metrics, "run": run_record(STAGE, values, **facts)}
            write_json(self.output / file, document)


def answers(step: int, model: Any, tokenizer: Any, asked: SafetyConfig, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """One row per prompt, in order, answered by ``model`` as it is after ``step`` steps; the ranks share the work."""
    from guardrail.generation.hf import HFBackend
    from guardrail.generation.interface import Request, check_complete, plan_units

    backend = HFBackend("", stops=stop_strings(asked.style), unit_rows=UNIT_ROWS)
    backend.use(model, tokenizer)
    requests = [Request(prompt.id, 0, prompt.ids) for prompt in prompts]
    units = plan_units(requests, asked.max_new_tokens, backend.unit_tokens, backend.unit_rows)
    own = [one for unit in shard(units) for one in backend.generate(unit, asked.sampling())]
    done = check_complete(requests, [one for part in gather(own) for one in part])
    return [
        {
            **prompt.columns,
            "id": f"{prompt.id}{SEPARATOR}{step}",
            "prompt_id": prompt.id,
            "step": step,
            "sample": 0,
            "completion": one.text,
            "finish_reason": one.finish_reason,
            "cut_at_stop": one.cut_at_stop,
            "n_prompt_tokens": one.n_prompt_tokens,
            "n_completion_tokens": one.n_completion_tokens,
            "conversation": [*prompt.columns["conversation"], {"role": "assistant", "content": one.text}],
        }
        for prompt, one in zip(prompts, done, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train and probe; the trainer's summary with the files of the probes."""
    parser = build_parser()
    parser.prog = "guardrail.evaluation.trajectory"
    parser.description = "Supervised fine-tuning that is probed for its guardrails along the way."
    add_options(parser, ProbeConfig)
    args = parser.parse_args(argv)
    probes, training = read_options(ProbeConfig, args), read_options(SFTConfig, args)
    check_config(training)
    trajectory = Trajectory(probes, training)
    summary = sft.run_training(training, trajectory)
    return {
        **summary,
        "probes": {
            Path(file).parent.name if file != TASK else "task": str(trajectory.output / file)
            for file in trajectory.files
        },
    }


if __name__ == "__main__":
    run(lambda: sft.and_leave(main))

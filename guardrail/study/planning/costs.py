"""Seconds of one process: what its jobs have to do, on this machine or on an assumed GPU.

A process is a start (imports, weights, launcher) and work. Work is counted from the shapes (`guardrail.bench.flops`)
and the volumes, and divided by what the device makes of its peak. Three sources, the best that there is:

* ``measured``: processes of this kind that this study has finished, whatever their keys; their median ratio to the
  count carries over to the others, so that long rows and short rows keep their proportion;
* ``calibrated``: start and rate that `--calibrate` measured on this machine;
* ``assumed``: `guardrail.study.planning.assumptions` and the table of devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from guardrail.bench.flops import reading_flops, training_flops
from guardrail.bench.shapes import Shape
from guardrail.similarity.scorers import BACKWARD, SCORERS, TANGENT
from guardrail.study.config import Source
from guardrail.study.grid import Grid, utility_file
from guardrail.study.jobs import Job
from guardrail.study.planning.answers import BATCH_ROWS
from guardrail.study.planning.assumptions import Book
from guardrail.study.planning.devices import Gpu
from guardrail.study.planning.times import Process, Time
from guardrail.study.planning.volumes import Volume, bench_prompts, join, padding_of, volume
from guardrail.study.score_settings import MODERATION, OF_THE_POOL
from guardrail.study.tasks import set_name

TRAINING_STAGES = ("align", "fine_tune")
NO_WORK = ("select",)  # counted as a constant
# processor time of a scorer in forward passes over the same rows: docs/scorers.md, measured 3.7 to 5.3
SCORING_BACKWARD, SCORING_TANGENT = 4.5, 4.3


@dataclass(frozen=True)
class Rate:
    """What was measured for a kind of process: seconds of a start, and seconds per counted second of work; of wall
    clock and of cores."""

    start_sec: float
    factor: float
    cpu_start_sec: float
    cpu_factor: float


@dataclass(frozen=True)
class Cost:
    """One process: ``seconds`` while it holds its GPUs (or its core), of these ``work_sec`` that grow with the work;
    ``cpu_sec`` of processor time (None on a GPU machine); what they rest on."""

    seconds: float
    work_sec: float
    cpu_sec: float | None
    source: str
    basis: str


@dataclass
class Costs:
    """The costs of every job of a study on one machine.

    Args:
        gpu: the kind of GPU, None for a CPU machine.
        ranks: processes of a training job (GPUs on a GPU machine).
        rates: stage -> calibrated rate.
        answered: job -> steps of its batches and tokens of its answers, where they are known.
    """

    grid: Grid
    jobs: Mapping[str, Job]
    shape: Shape
    moderation: Shape
    book: Book
    gpu: Gpu | None
    ranks: int = 1
    rates: Mapping[str, Rate] = field(default_factory=dict)
    answered: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counted: dict[str, tuple[float, float, str]] = field(default_factory=dict)

    # ---- what a job has to do, in seconds of an assumed device

    def count(self, job: Job) -> tuple[float, float, str]:
        """(start, work, in words) of a job under the assumptions."""
        if job.name not in self.counted:
            self.book.purpose(job.stage)
            starts, works, words = [], [], []
            for product in job.products:
                start, work, text = self._part(job, product.key.parts["stage"], product.key.parts["options"], product)
                starts.append(start)
                works.append(work)
                words.append(text)
            # one process: its start is that of its heaviest part
            text = " + ".join(dict.fromkeys(filter(None, words)))
            work = max(works) if job.stage in NO_WORK else sum(works)
            self.counted[job.name] = (max(starts), work, text)
        return self.counted[job.name]

    def _part(self, job: Job, stage: str, options: dict[str, Any], product: Any) -> tuple[float, float, str]:
        if stage in TRAINING_STAGES:
            return self._train(job, options)
        evaluation = self.grid.study.evaluation
        if stage == "representations":
            return self._read(self.rows_of(job), self.shape, "rows read")
        if stage == "select":
            return self._start(None), self.book["select_sec" if self.gpu else "core_select_sec"], "cosines"
        if stage in ("mix", "dose"):
            rows = (self._mixed(options) if stage == "mix" else self._dosed(job.name)).rows
            kind = "" if self.gpu else "core_"
            start, rate = self.book[f"{kind}mix_start_sec"], self.book[f"{kind}mix_rows_per_sec"]
            return start, rows / rate, f"{rows:,.0f} rows mixed"
        if stage == "scores":
            return self._score(job, options)
        if stage == "safety_answers":
            prompts = bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit)
            return self._generate(job, prompts * evaluation.samples_per_prompt, options["max_new_tokens"])
        if stage == "over_refusal":
            prompts = bench_prompts(
                str(evaluation.over_refusal_bench), evaluation.over_refusal_bench_data, evaluation.limit
            )
            return self._generate(job, prompts * evaluation.samples_per_prompt, options["max_new_tokens"])
        if stage == "utility":
            return self._utility(job, product, options)
        if stage == "trajectory":
            return self._probes(job, options)
        if stage == "probe_refusals":  # a rule without a model
            return self._start(None), 0.0, ""
        return self._judge(job, stage, options)

    def _start(self, shape: Shape | None) -> float:
        """A process that loads a model (or none)."""
        if self.gpu is None:
            return self.book["core_start_sec"]
        load = 0.0 if shape is None else 2 * shape.n_parameters() / self.book["load_bytes_per_sec"]
        return self.book["import_sec"] + load

    def _read(self, rows: Volume, shape: Shape, what: str, head: str = "none") -> tuple[float, float, str]:
        operations = reading_flops(shape, 1, max(1, round(rows.tokens)), head=head).hardware * rows.rows
        if self.gpu is None:
            rate = self.book["core_operations_per_sec"]
        else:
            peak = self.book.note(
                "gpu_operations_per_sec", self.gpu.operations_per_sec, "1/s", f"{self.gpu.name}, peak"
            )
            rate = peak * self.book["reading_utilisation"]
        return self._start(shape), operations / rate, f"{rows.rows:,.0f} {what} x {rows.tokens:,.0f} tokens"

    def _generate(self, job: Job, answers: float, max_new_tokens: int) -> tuple[float, float, str]:
        if self.gpu is None:
            return self._decode(job, answers, max_new_tokens)
        tokens = max_new_tokens * self.book["answer_tokens_fraction"]
        batches = math.ceil(answers / self.book["decode_batch_rows"])
        weights = 2 * self.shape.n_parameters() / self.gpu.memory_bytes_per_sec
        step = max(self.book["decode_step_sec"] * self.shape.layers / 32, weights)
        return self._start(self.shape), batches * tokens * step, f"{answers:,.0f} answers x {tokens:,.0f} tokens"

    def _decode(self, job: Job, answers: float, max_new_tokens: int) -> tuple[float, float, str]:
        """Answers on a core: prompts are read, then steps of a batch until its longest answer ends, and tokens of the
        rows that are still in it. Both are those of ``answered`` where the answers are known."""
        steps = math.ceil(answers / BATCH_ROWS) * max_new_tokens * self.book["core_longest_answer_fraction"]
        tokens = answers * max_new_tokens * self.book["core_answer_fraction"]
        steps, tokens = self.answered.get(job.name, (steps, tokens))
        prompts = Volume(answers, self.book["core_prompt_tokens"], 0.0, "prompts")
        start, reading, _ = self._read(prompts, self.shape, "")
        work = reading + steps * self.book["core_decode_step_sec"] + tokens * self.book["core_decode_token_sec"]
        return start, work, f"{answers:,.0f} answers x {tokens / max(answers, 1):,.0f} tokens"

    def _utility(self, job: Job, product: Any, options: dict[str, Any]) -> tuple[float, float, str]:
        measures = self.grid.study.utilities
        task = next((t for t in measures if any(file.endswith(utility_file(t)) for file in product.files)), None)
        utility = measures[task or next(iter(measures))]
        rows = volume(Source(utility.source, utility.split), self.book, tests=True)
        if options.get("limit"):
            rows = rows.with_rows(min(rows.rows, options["limit"]))
        start, work, text = self._generate(job, rows.rows, options["max_new_tokens"])
        _, reading, _ = self._read(rows, self.shape, "")
        return start, work + reading, f"{text} and their loss"

    def _probes(self, job: Job, options: dict[str, Any]) -> tuple[float, float, str]:
        """What a training is asked along the way, by the model that it holds anyway: no start of its own. Its ranks
        share the prompts."""
        evaluation = self.grid.study.evaluation
        prompts = bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit)
        if evaluation.over_refusal_bench:
            bench, data = evaluation.over_refusal_bench, evaluation.over_refusal_bench_data
            prompts += bench_prompts(bench, data, evaluation.limit)
        _, work, _ = self._generate(job, math.ceil(prompts / self.ranks), options["probe_max_new_tokens"])
        n_probes = self.grid.study.fine_tuning.probes
        return 0.0, n_probes * work, f"{n_probes} probes x {prompts:,.0f} answers"

    def _judge(self, job: Job, stage: str, options: dict[str, Any]) -> tuple[float, float, str]:
        evaluation = self.grid.study.evaluation
        prompts = bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit)
        answers = prompts * evaluation.samples_per_prompt
        if stage == "probe_harmfulness":
            answers = prompts * self.grid.study.fine_tuning.probes
        if job.gpus == "none" and stage != "harmfulness":  # a server judges: bound by it, not by this machine
            return self._start(None), answers * self.book.note("server_sec", 1.0, "s per call", "assumed"), "calls"
        longest = options.get("max_length") or evaluation.moderation_max_length
        fraction = self.book["answer_tokens_fraction" if self.gpu else "core_answer_fraction"]
        question = 80 if self.gpu else self.book["core_question_tokens"]
        tokens = question + evaluation.max_new_tokens * fraction
        rows = Volume(answers, min(longest, tokens), 0.5, "answers")
        return self._read(rows, self.moderation, "answers judged", head="labels")

    def _score(self, job: Job, options: dict[str, Any]) -> tuple[float, float, str]:
        """A task's rows, and the sets that they are compared with, as often as the scorer passes over them."""
        (name,) = options["scorers"]
        facts, rows = SCORERS.facts(name), self.rows_of(job)
        needs = facts.get("needs", ())
        if not needs:
            return self._start(None), 0.0, f"{rows.rows:,.0f} rows by {name}"
        compared = [self._flagged(job, "anchors")] if "anchors" in needs else []
        compared += [self.grid.study.safety_pool] * sum(need in OF_THE_POOL for need in needs)
        sets = sum(min(volume(source, self.book).rows, options["max_set_rows"]) for source in compared)
        passes = {BACKWARD: SCORING_BACKWARD, TANGENT: SCORING_TANGENT}.get(str(facts.get("cost")), 1.0)
        shape = self.moderation if MODERATION in needs else self.shape
        start, work, text = self._read(rows.with_rows(rows.rows + sets), shape, f"rows scored by {name}")
        return start, passes * work, text

    def _flagged(self, job: Job, name: str) -> Source:
        """The set that a job's command names: PATH or PATH::SPLIT."""
        place = next(flag for flag in job.command if flag.startswith(f"--{name}=")).removeprefix(f"--{name}=")
        source, _, split = place.partition("::")
        return Source(source, split or None)

    def _mixed(self, options: dict[str, Any]) -> Volume:
        """Rows of one alignment: instructions (all, or replayed ones) and the subset."""
        study = self.grid.study
        instruct = volume(study.instruct, self.book)
        if options.get("instruct_size"):
            instruct = instruct.with_rows(min(instruct.rows, options["instruct_size"]))
        pool = volume(study.safety_pool, self.book)
        sim, size = options["sim"], options.get("size") or 0
        taken = 0.0 if sim == "none" else pool.rows if sim == "full" or not size else min(size, pool.rows)
        replay = options.get("replay_fraction")
        if replay is not None:  # `guardrail.data.mix.replayed`
            drawn = size / (1 - replay) if sim == "none" else taken * replay / (1 - replay)
            instruct = instruct.with_rows(min(instruct.rows, drawn))
        return join([instruct, pool.with_rows(taken)])

    def _dosed(self, name: str) -> Volume:
        """Rows of the set of one dose, which the job ``name`` makes: `dose.<task or attack>.seed<k>`."""
        wanted = name.removeprefix("dose.").rpartition(".seed")[0]
        tasks = self.grid.study.tasks.items()
        task = next(task for key, task in tasks if task.rung and set_name(key, task) == wanted)
        assert task.rung is not None
        harmful = task.rung.rows * task.rung.percent / 100
        benign = volume(task.train, self.book).with_rows(task.rung.rows - harmful)
        return join([benign, volume(task.rung.harmful, self.book).with_rows(harmful)])

    def rows_of(self, job: Job) -> Volume:
        """The rows that a job reads: of its mixture, or of the source that it is named after."""
        if job.stage == "representations":
            name = job.name.partition(".")[2]
            study = self.grid.study
            return volume(study.safety_pool if name == "safety_pool" else study.anchors[name], self.book)
        if job.stage == "scores" and "rows" in job.products[0].key.parts["inputs"]:
            return volume(self._flagged(job, "rows"), self.book)
        for need in job.needs:
            for product in self.jobs[need].products:
                if product.key.parts["stage"] == "mix":
                    return self._mixed(product.key.parts["options"])
                if product.key.parts["stage"] == "dose":
                    return self._dosed(need)
        return volume(Source(job.variables["DATASET"], job.variables.get("SPLIT") or None), self.book)

    def _train(self, job: Job, options: dict[str, Any]) -> tuple[float, float, str]:
        """Optimizer steps: arithmetic or the exchange of weights and gradients, whichever is slower, and the update."""
        book, rows = self.book, self.rows_of(job)
        batch, ranks = options["per_device_train_batch_size"], self.ranks
        pad = padding_of(options, rows)
        tokens = min(rows.tokens * pad, options["model_max_length"])
        n_rows = rows.rows * options["epochs"]
        of_step = batch * ranks * options["gradient_accumulation_steps"]
        if options.get("max_steps"):
            n_rows = min(n_rows, options["max_steps"] * of_step)
        steps = math.ceil(n_rows / of_step)
        lora = options.get("use_lora", False)
        checkpointing = options["gradient_checkpointing"]
        operations = (
            n_rows
            * training_flops(
                self.shape,
                1,
                max(1, round(tokens)),
                max(1, round(rows.tokens)),
                gradient_checkpointing=checkpointing,
                r=options["r"] if lora else None,
                targets=options["target_modules"] if lora else (),
            ).hardware
        )
        per_n = (4 if lora else 6) + (2 if checkpointing else 0)
        text = f"{n_rows:,.0f} rows x {tokens:,.0f} tokens (padding {pad:.2f}) x {per_n}N, {steps:,} steps"
        if self.gpu is None:
            work = operations / (book["core_operations_per_sec"] * ranks)
            return book["core_launch_sec"], work, text
        N = self.shape.n_parameters()
        trained = self.shape.lora_parameters(options["r"], options["target_modules"]) if lora else N
        peak = book.note("gpu_operations_per_sec", self.gpu.operations_per_sec, "1/s", f"{self.gpu.name}, peak")
        share = book.note("training_utilisation", self.gpu.training, "of peak", self.gpu.training_source)
        arithmetic = operations / (ranks * peak * share)
        exchange = 0.0
        if ranks > 1:
            link = book.note(
                "link_bytes_per_sec", self.gpu.link_bytes_per_sec, "B/s", f"{self.gpu.name}, one direction"
            )
            gathers = 2 if "z3" in options["ds_cfgs"] else 0  # weights, forward and backward
            moved = (gathers * N + (1 if gathers else 2) * trained) * 2 * (ranks - 1) / ranks
            exchange = steps * options["gradient_accumulation_steps"] * moved / (link * book["link_utilisation"])
        # Adam in float32: weight, two moments and the gradient are read, the first three and the bfloat16 copy written
        update = steps * 30 * trained / ranks / self.gpu.memory_bytes_per_sec
        saved = 2 * (N if not lora or options.get("save_full_model", True) else trained)
        start = self._start(self.shape) + book["launch_sec"] + saved / book["save_bytes_per_sec"]
        return start, max(arithmetic, exchange) + update, text

    # ---- what it will take here

    def work(self, process: Process) -> tuple[float, float, str]:
        """(start, work, in words) of a process: one start, whatever its jobs, and the work of all of them."""
        parts = [self.count(self.jobs[name]) for name in process.jobs]
        texts = list(dict.fromkeys(filter(None, (text for _, _, text in parts))))
        text = " + ".join(texts[:4]) + (" + ..." if len(texts) > 4 else "")
        return max(start for start, _, _ in parts), sum(work for _, work, _ in parts), text

    def unmeasured(self, process: Process) -> tuple[float, float, float | None]:
        """(seconds, of these work, processor seconds) without a look at what has ended."""
        start, work, _ = self.work(process)
        rate = self.rates.get(process.stage)
        if rate is not None:
            cpu = rate.cpu_start_sec + rate.cpu_factor * work
            return max(rate.start_sec + rate.factor * work, 0.05), rate.factor * work, cpu
        seconds = max(start + work, 0.05)
        ranks = self.ranks if self.jobs[process.jobs[0]].gpus == "all" else 1
        return seconds, work, seconds * ranks if self.gpu is None else None

    def ratios(self, times: Iterable[Time]) -> dict[str, tuple[float, float, int]]:
        """Kind of process -> median ratio of what was measured to the count, the same of processor time, how many.

        Only processes whose jobs this study still has count.
        """
        found: dict[str, list[tuple[float, float | None]]] = {}
        for time in times:
            if time.jobs and all(name in self.jobs for name in time.jobs):
                seconds, _, cpu = self.unmeasured(time)
                shown = time.cpu_sec / cpu if time.cpu_sec is not None and cpu else None
                found.setdefault(time.stage, []).append((time.wall_sec / seconds, shown))
        out = {}
        for stage, pairs in found.items():
            wall = median(ratio for ratio, _ in pairs)
            cpu_ratios = [ratio for _, ratio in pairs if ratio is not None]
            out[stage] = (wall, median(cpu_ratios) if cpu_ratios else wall, len(pairs))
        return out

    def cost(self, process: Process, ratios: Mapping[str, tuple[float, float, int]]) -> Cost:
        """The cost of one process; ``ratios`` are those of processes that have ended."""
        seconds, work, cpu = self.unmeasured(process)
        _, _, basis = self.work(process)
        if process.stage in ratios:
            wall_ratio, cpu_ratio, n = ratios[process.stage]
            cpu = None if cpu is None else cpu * cpu_ratio
            return Cost(seconds * wall_ratio, work * wall_ratio, cpu, f"measured on {n}", basis)
        source = "calibrated" if process.stage in self.rates else "assumed"
        return Cost(seconds, work, cpu, source, basis)

"""Speed of generation and moderation against plain reference loops, in one run: JSON with ``ratios``.

    python benchmarks/safety.py --output benchmarks/results/safety.json
    python benchmarks/safety.py --model models/sandbox/base --moderation_model models/sandbox/moderation

Measured, interleaved and repeated, best of the repeats each (other load on the machine only ever slows a run down):

* generation: an unsorted batch-10 loop over ``model.generate`` (what the field's scripts do), the HF backend, vLLM
  (when this environment, ``.venv-vllm`` or VLLM_PYTHON has it; in its own process, start-up not counted);
* moderation: row by row against batched by length.

``ratios`` are of wall time; ``ratios_cpu_time`` of processor time, which other load on the machine hardly touches.
All generators get the same prompts of mixed lengths as token ids, greedy, and must give the same answers. Without
``--model`` a random LLaMA of the sandbox's size is made: it rarely ends a row early, so "mixed lengths" are given as a
limit per row by a token of its own answers used as EOS. Known limit: ratios of tiny models on CPU say nothing about 7B.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.files import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE_BATCH = 10
VLLM_WORKER = """
import json, sys, time
from guardrail.generation import Request, SamplingOptions, make_backend
model, dtype, work, repeats, output = sys.argv[1:6]
work, repeats = json.load(open(work)), int(repeats)
backend = make_backend("vLLM", model, torch_dtype=dtype)
requests = [Request(*r) for r in work["requests"]]
options = SamplingOptions(max_new_tokens=work["max_new_tokens"])
started = time.perf_counter()
backend.generate(requests[:2], options)
start_sec = time.perf_counter() - started
seconds, cpu = [], []
for _ in range(repeats):
    backend.engine.reset_prefix_cache()
    started, started_cpu = time.perf_counter(), time.process_time()
    done = backend.generate(requests, options)
    seconds.append(time.perf_counter() - started)
    cpu.append(time.process_time() - started_cpu)
rows = {c.id: c.token_ids for c in done}
json.dump({"seconds": seconds, "cpu": cpu, "start_sec": start_sec, "rows": rows}, open(output, "w"))
"""


def make_models(folder: Path) -> tuple[str, str]:
    """A random LLaMA and a random 14-label classifier of the sandbox's size with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        [" ".join(WORDS)], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    shape = {
        "vocab_size": len(fast),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,  # peaked enough that greedy has no near ties
    }
    torch.manual_seed(0)
    paths = []
    for name, kind, extra in (
        ("lm", LlamaForCausalLM, {}),
        (
            "moderation",
            LlamaForSequenceClassification,
            {"num_labels": 14, "problem_type": "multi_label_classification"},
        ),
    ):
        kind(LlamaConfig(**shape, **extra)).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
        paths.append(str(folder / name))
    return paths[0], paths[1]


TEXT = "boat river tea paint wood sea ask help three gentle stone lamp garden quiet letter answer story list"
WORDS = TEXT.split(" ")


def make_requests(tokenizer, n: int, seed: int) -> list:
    """Prompts of 8 to about 200 tokens, most of them short, in random order."""
    from guardrail.generation import Request

    draw = random.Random(seed)
    out = []
    for i in range(n):
        n_words = min(60, 3 + int(draw.expovariate(1 / 14)))
        text = " ".join(draw.choices(WORDS, k=n_words))
        out.append(
            Request(f"r{i}", 0, [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]])
        )
    return out


def reference_generate(model, requests: list, max_new_tokens: int, pad: int, eos: list[int]) -> dict[str, list[int]]:
    """The field's loop: batches of ten in the given order, padded on the left, ``model.generate``."""
    import torch

    out = {}
    device = next(model.parameters()).device
    for start in range(0, len(requests), REFERENCE_BATCH):
        batch = requests[start : start + REFERENCE_BATCH]
        T = max(len(r.prompt_ids) for r in batch)
        ids = torch.tensor([[pad] * (T - len(r.prompt_ids)) + r.prompt_ids for r in batch], device=device)
        mask = torch.tensor([[0] * (T - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in batch], device=device)
        done = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=pad,
        )
        for request, row in zip(batch, done[:, T:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in eos), len(row))
            out[request.id] = row[:end]
    return out


class Clock:
    """Wall and processor seconds of named pieces of work, every repeat."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def run(self, name: str, work):
        started, started_cpu = time.perf_counter(), time.process_time()
        result = work()
        self.add(name, time.perf_counter() - started, time.process_time() - started_cpu)
        return result

    def add(self, name: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)

    def ratio(self, slow: str, fast: str, cpu: bool = False) -> float | None:
        """How many times faster ``fast`` is than ``slow``: best repeat of each."""
        times = self.cpu if cpu else self.wall
        return min(times[slow]) / min(times[fast]) if fast in times and min(times[fast]) > 0 else None

    def report(self, n: int) -> dict:
        return {
            "wall_sec": {name: [round(t, 4) for t in times] for name, times in self.wall.items()},
            "cpu_sec": {name: [round(t, 4) for t in times] for name, times in self.cpu.items()},
            "rows_per_sec": {name: round(n / min(times), 3) for name, times in self.wall.items()},
        }


def early_end(rows: dict[str, list[int]], max_new_tokens: int) -> int:
    """The token that, as EOS, ends rows at the most varied lengths."""
    import statistics

    def spread(token: int) -> float:
        return statistics.pstdev(r.index(token) if token in r else max_new_tokens for r in rows.values())

    return max({t for r in rows.values() for t in r}, key=spread)


def bench_generation(model: str, dtype: str, random_model: bool, n: int, new: int, repeats: int, vllm: str | None):
    """Seconds and completions per second of the three generators; the rows must agree."""
    from guardrail.generation import SamplingOptions, make_backend

    backend = make_backend("hf", model, torch_dtype=dtype)
    requests = make_requests(backend.tokenizer, n, seed=1)
    options = SamplingOptions(max_new_tokens=new)
    if random_model:  # rows that end at different lengths, for every engine: a generation_config.json with that EOS
        rows = {c.id: c.token_ids for c in backend.generate(requests, options)}
        end = early_end(rows, new)
        backend.model.generation_config.eos_token_id = [backend.tokenizer.eos_token_id, end]
        backend.model.generation_config.save_pretrained(model)
        backend.__dict__.pop("eos_ids", None)
    eos = list(backend.eos_ids)
    clock = Clock()
    pad = backend.tokenizer.pad_token_id
    for _ in range(repeats):
        theirs = clock.run("reference", lambda: reference_generate(backend.model, requests, new, pad, eos))
        ours = clock.run("hf", lambda: backend.generate(requests, options))
        same = sum(c.token_ids == theirs[c.id] for c in ours)
    rows = {c.id: c.token_ids for c in ours}
    start_sec = None
    same_vllm = None
    if vllm is not None:
        with tempfile.TemporaryDirectory() as folder:
            work = {"requests": [[r.id, r.sample, r.prompt_ids] for r in requests], "max_new_tokens": new}
            write_json(Path(folder) / "work.json", work)
            command = [vllm, "-c", VLLM_WORKER, model, dtype, f"{folder}/work.json", str(repeats), f"{folder}/out.json"]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "VLLM_LOGGING_LEVEL": "ERROR"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                log(done.stderr[-2000:])
                raise RuntimeError("the vLLM measurement failed; its last words are above")
            found = json.loads((Path(folder) / "out.json").read_text())
        start_sec = found["start_sec"]
        for wall, cpu in zip(found["seconds"], found["cpu"], strict=True):
            clock.add("vllm", wall, cpu)
        same_vllm = sum(found["rows"][i] == rows[i] for i in rows)
    lengths = sorted(len(r) for r in rows.values())
    report = {
        "n": n,
        "max_new_tokens": new,
        "prompt_tokens": {
            "min": min(len(r.prompt_ids) for r in requests),
            "max": max(len(r.prompt_ids) for r in requests),
        },
        "completion_tokens": {"min": lengths[0], "median": lengths[n // 2], "max": lengths[-1], "sum": sum(lengths)},
        **clock.report(n),
        "vllm_start_sec": start_sec,
        "rows_equal_reference_and_hf": same,
        "rows_equal_hf_and_vllm": same_vllm,
    }
    return report, {"hf_over_reference": ("reference", "hf"), "vllm_over_hf": ("hf", "vllm")}, clock


def bench_moderation(model: str, n: int, repeats: int):
    """Seconds of moderation row by row and batched, tokenising included; the largest difference of a probability."""
    import torch

    from guardrail.evaluation.judges.answers import Answer
    from guardrail.evaluation.judges.moderation import PROMPT, ModerationModel

    draw = random.Random(2)
    answers = []
    for i in range(n):
        question, text = (" ".join(draw.choices(WORDS, k=draw.randint(4, k))) for k in (16, 50))
        answers.append(Answer(f"a{i}", 0, question, text))
    moderation = ModerationModel(model)
    tokenizer, classifier = moderation.tokenizer, moderation.model

    def one_row(answer: Answer) -> list[float]:
        """The plain way: one text, tokenised and scored."""
        text = PROMPT.replace("{question}", answer.question) + answer.text + tokenizer.eos_token
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt").to(classifier.device)
        with torch.inference_mode():
            return torch.sigmoid(classifier(**inputs).logits[0].float()).tolist()

    one_row(answers[0])
    clock = Clock()
    for _ in range(repeats):
        alone = clock.run("rowwise", lambda: [one_row(answer) for answer in answers])
        scores = clock.run("batched", lambda: moderation.score(answers))
    difference = max(
        abs(a - b)
        for row, score in zip(alone, scores, strict=True)
        for a, b in zip(row, score.probabilities, strict=True)
    )
    lengths = [score.n_tokens for score in scores]
    report = {
        "n": n,
        "text_tokens": {"min": min(lengths), "max": max(lengths)},
        **clock.report(n),
        "max_probability_difference": difference,
    }
    return report, {"moderation_over_rowwise": ("rowwise", "batched")}, clock


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="model folder; default: a random one of the sandbox's size")
    parser.add_argument("--moderation_model", default=None)
    parser.add_argument("--torch_dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--n", type=positive_int, default=160, help="prompts")
    parser.add_argument("--n_moderation", type=positive_int, default=300, help="question-answer pairs")
    parser.add_argument("--max_new_tokens", type=positive_int, default=96)
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument("--vllm_python", default=None, help="interpreter with vLLM; default: found; none: left out")
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count(), help="of torch, for every engine")
    parser.add_argument("--output", default=None)
    args = parser.parse_args(argv)

    import torch

    from guardrail.core.provenance import run_record

    torch.set_num_threads(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from vllm_python import find_vllm_python

    vllm = find_vllm_python() if args.vllm_python is None else args.vllm_python
    vllm = None if vllm == "none" else vllm
    with tempfile.TemporaryDirectory() as folder:
        made = make_models(Path(folder)) if None in (args.model, args.moderation_model) else ("", "")
        model, moderation = args.model or made[0], args.moderation_model or made[1]
        generation, pairs, clock = bench_generation(
            model, args.torch_dtype, args.model is None, args.n, args.max_new_tokens, args.repeats, vllm
        )
        judged, more, judge_clock = bench_moderation(moderation, args.n_moderation, args.repeats)
    ratios, ratios_cpu = (
        {
            name: None if (value := measured.ratio(*pair, cpu=cpu)) is None else round(value, 3)
            for names, measured in ((pairs, clock), (more, judge_clock))
            for name, pair in names.items()
        }
        for cpu in (False, True)
    )
    config = {**vars(args), "vllm_python": None if vllm is None else Path(vllm).name}
    document = {
        "ratios": ratios,
        "ratios_cpu_time": ratios_cpu,
        "generation": generation,
        "moderation": judged,
        "run": run_record("benchmark_safety", config, n=args.n, seeds={"prompts": 1, "pairs": 2}),
    }
    if args.output:
        write_json(args.output, document)
    return {name: document[name] for name in ("ratios", "ratios_cpu_time", "generation", "moderation")}


if __name__ == "__main__":
    run(main)

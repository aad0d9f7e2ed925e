"""One MT-Bench run: questions -> two-turn answers -> judgements -> scores. See ``__main__.py`` for the command.

    <output_dir>/model_answer/<model_id>.jsonl           FastChat's shape
    <output_dir>/model_judgment/<judge>_single.jsonl     FastChat's shape
    <output_dir>/results.json                            answers, judgements, metrics, utility, run
    <output_dir>/table.md, radar.png, radar.pdf          with a judge

Answers are on disk before anything is judged. Without a judge the run ends there; the same command with
``--judge_model`` later judges the stored answers. The older align-anything measure has a folder and names of its own.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, positive_int
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, write_json, write_text
from guardrail.core.openai_client import Client, resolve_base_url
from guardrail.core.options import option
from guardrail.core.places import RESOURCES
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import barrier, is_main, process_group
from guardrail.evaluation.completions import BenchmarkOptions, choose_style, earlier_result
from guardrail.evaluation.mt_bench import answers as answering
from guardrail.evaluation.mt_bench import judge as judging
from guardrail.evaluation.mt_bench import summary
from guardrail.evaluation.mt_bench.data import QuestionSet, load_question_set
from guardrail.generation import backend_of, make_backend
from guardrail.generation.context import backend_context
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint
from guardrail.models.loading import DTYPES

STAGE = "mt_bench"
JUDGE_BACKENDS = ("openai", "vLLM", "hf")
OLD_PROTOCOL_FOLDER = "align_anything_old_protocol"
ANSWER_FORMAT = 2  # raised when the meaning of a stored answer changes
FALLBACK_STYLE = "llama2_base"


@dataclass(frozen=True, kw_only=True)
class MTBenchConfig(BenchmarkOptions):
    """Options of ``--benchmark mt_bench``. Raises ``UserError`` when they clash."""

    answers: str | None = option(
        None, "mt_bench: judge this FastChat model_answer file instead of answering", decides=False
    )
    data_dir: str | None = option(
        None,
        "mt_bench: FastChat's folder with question.jsonl; default: the hub, else the sandbox's questions",
        decides=False,
    )
    protocol: str = option(
        answering.FASTCHAT, "mt_bench: align_anything is an older, different measure", choices=answering.PROTOCOLS
    )
    max_new_tokens: int = option(1024, "mt_bench: longest answer of a turn in tokens", parse=positive_int)
    judge_model: str | None = option(
        None, "mt_bench: the judge's name on its server, or its folder; none: answers only"
    )
    judge_backend: str = option("openai", "mt_bench: where the judge runs", choices=JUDGE_BACKENDS)
    judge_base_url: str | None = option(
        None, "mt_bench: the judge's server; default OPENAI_BASE_URL, else OpenAI's with OPENAI_API_KEY"
    )
    judge_torch_dtype: str = option("bfloat16", "mt_bench: dtype of a local judge", choices=DTYPES)
    judge_max_tokens: int = option(2048, "mt_bench: longest judgement in tokens", parse=positive_int)
    judge_timeout_sec: float = option(120.0, "mt_bench: longest wait for one judgement", decides=False)
    judge_max_retries: int = option(4, "mt_bench: further tries after 429, 5xx or no answer", decides=False)
    judge_workers: int = option(8, "mt_bench: judgements asked for at a time", parse=positive_int, decides=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.model_id) or self.model_id.startswith("."):
            raise UserError(f"--model_id {self.model_id!r} names files: letters, digits, '.', '_', '+' and '-' only")
        if (self.answers is None) == (self.model_name_or_path is None):
            raise UserError("give --model_name_or_path (to answer the questions) or --answers FILE (to judge answers)")
        if self.answers is not None and self.judge_model is None:
            raise UserError("--answers FILE is for judging; give --judge_model as well")
        self.check_engine()
        if self.judge_base_url and (self.judge_model is None or self.judge_backend != "openai"):
            raise UserError("--judge_base_url needs --judge_model and --judge_backend openai")
        if self.judge_timeout_sec <= 0 or self.judge_max_retries < 0:
            raise UserError("--judge_timeout_sec must be above 0 and --judge_max_retries at least 0")

    @property
    def folder(self) -> Path:
        folder = Path(self.output_dir)
        return folder if self.protocol == answering.FASTCHAT else folder / OLD_PROTOCOL_FOLDER

    @property
    def results_file(self) -> Path:
        return self.folder / "results.json"

    @property
    def judge_name(self) -> str | None:
        """The judge as it appears in file names and results."""
        return None if self.judge_model is None else Path(self.judge_model.rstrip("/")).name

    def answer_identity(self) -> dict[str, Any]:
        """What decides the answers, model and questions apart."""
        judge = [item.name for item in dataclasses.fields(self) if item.name.startswith("judge_")]
        own = {name: value for name, value in self.engine_identity().items() if name not in judge}
        return {**own, **self.style_identity(FALLBACK_STYLE), "format": ANSWER_FORMAT}

    def judge_identity(self) -> dict[str, Any] | None:
        """What decides a judgement, given its prompt: which judge, where, with what; None without a judge."""
        if self.judge_model is None:
            return None
        facts: dict[str, Any] = {
            "judge": self.judge_model,
            "backend": self.judge_backend,
            "max_tokens": self.judge_max_tokens,
        }
        if self.judge_backend == "openai":
            return facts | {"base_url": resolve_base_url(self.judge_base_url)}
        return facts | {"model": hash_checkpoint(self.judge_model), "dtype": self.judge_torch_dtype}

    def identity(self) -> dict[str, Any]:
        return {**self.answer_identity(), "judge": self.judge_identity()}


def run_mt_bench(config: MTBenchConfig) -> dict[str, Any]:
    """Answer, judge and score (or find it done); the paths and headline numbers. ``UserError`` for wrong input."""
    questions = load_question_set(config.data_dir, config.limit)
    if config.judge_model is not None:
        _check_judge(config, questions)
    earlier = _earlier(config)
    answers_key = _answers_key(config, questions)
    judge_facts = config.judge_identity()
    run_key = fingerprint({"answers": answers_key, "judge": judge_facts}, {"judging": questions.judging_hash})
    if earlier is not None and _is_done(config, earlier, run_key, answers_key):
        log(f"{config.results_file}: unchanged, not run again")
        return _headline(config, earlier, reused=True)

    work = config.folder / f".{config.model_id}.work"
    rows = _stored_rows(earlier, answers_key)
    if rows is None and config.generation_backend == "vLLM" and config.judge_backend == "vLLM" and config.judge_model:
        _answer_in_child(config)  # its engine must be gone before the judge's loads
        rows = _stored_rows(_earlier(config), answers_key)
    with process_group():
        answer_facts: dict[str, Any] = earlier["run"].get("generation") or {} if earlier is not None and rows else {}
        result: dict[str, Any] | None = None
        if rows is None:
            rows, answer_facts = _answer(config, questions, work, answers_key)
            if is_main():
                path = config.folder / "model_answer" / f"{config.model_id}.jsonl"
                answering.write_model_answer(path, config.model_id, rows)
                result = _assemble(config, questions, rows, None)
                result["run"] = _record(config, questions, answers_key, answers_key, answer_facts)
                write_json(config.results_file, result)
        if config.judge_model is not None and (is_main() or config.judge_backend == "hf"):  # one client is enough
            judge_work = config.folder / f".{config.model_id}.judge"
            matches = judging.make_matches(questions, rows, config.protocol)
            judge = _make_judge(config, judge_work)
            done = judging.judge_matches(
                judge, matches, judge_work, fingerprint(judge_facts or {}, {}), config.protocol
            )
            if is_main():
                path = config.folder / "model_judgment" / f"{config.judge_name}_single.jsonl"
                judging.write_model_judgment(path, config.model_id, config.judge_name or "", matches, done)
                result = _assemble(config, questions, rows, judging.judgement_rows(matches, done))
                result["run"] = _record(config, questions, run_key, answers_key, answer_facts)
                _write_pictures(config, result)
                write_json(config.results_file, result)
                if not _server_failures(result):
                    shutil.rmtree(judge_work, ignore_errors=True)
        if is_main():
            shutil.rmtree(work, ignore_errors=True)
        barrier()
    return _headline(config, result, reused=False) if result is not None else {}


def _check_judge(config: MTBenchConfig, questions: QuestionSet) -> None:
    """Refuse a judge that cannot work before any model loads."""
    blank = [{"question_id": q["question_id"], "answers": ["", ""]} for q in questions.questions]
    judging.make_matches(questions, blank, config.protocol)
    if config.judge_backend == "openai":
        resolve_base_url(config.judge_base_url)
    else:
        resolve_checkpoint(str(config.judge_model))


def _answers_key(config: MTBenchConfig, questions: QuestionSet) -> str:
    """The fingerprint of the answers: model, style, questions, decoding - or the given file's content."""
    if config.answers is not None:
        if not Path(config.answers).is_file():
            raise UserError(f"no such file: {config.answers}; expected FastChat's model_answer/<id>.jsonl")
        return fingerprint(
            {"answers": hash_file(config.answers), "protocol": config.protocol}, {"data": questions.data_hash}
        )
    assert config.model_name_or_path is not None
    resolve_checkpoint(config.model_name_or_path)
    inputs = {"model": hash_checkpoint(config.model_name_or_path), "data": questions.data_hash}
    return fingerprint(config.answer_identity(), inputs)


def _earlier(config: MTBenchConfig) -> dict[str, Any] | None:
    """This run's earlier results file; another model's is refused, so that nothing is overwritten by mistake."""
    value = earlier_result(config.results_file, STAGE, "--output_dir")
    model_id = None if value is None else value["run"]["config"].get("model_id")
    if value is not None and model_id != config.model_id:
        raise UserError(
            f"{config.results_file} is the result of {STAGE} for model_id {model_id!r}; give another --output_dir"
        )
    return value


def _is_done(config: MTBenchConfig, earlier: dict[str, Any], run_key: str, answers_key: str) -> bool:
    """Nothing to do: the answers are there, and the judgements of this judge where one is asked for."""
    if config.judge_model is None:  # judgements that are there stay
        return earlier["run"].get("answers_fingerprint") == answers_key
    return earlier["run"].get("fingerprint") == run_key and not _server_failures(earlier)


def _stored_rows(earlier: dict[str, Any] | None, answers_key: str) -> list[dict[str, Any]] | None:
    if earlier is None or earlier["run"].get("answers_fingerprint") != answers_key:
        return None
    log("the answers are there from an earlier run")
    return [{key: value for key, value in row.items() if key != "judgements"} for row in earlier["results"]]


def _server_failures(result: dict[str, Any]) -> int:
    """Judgements that never came; a later run asks for them again."""
    scores = result["metrics"].get("scores") or {"failures": {}}
    return sum(n for reason, n in scores["failures"].items() if reason not in judging.FINAL_FAILURES)


def _answer(
    config: MTBenchConfig, questions: QuestionSet, work: Path, answers_key: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers, and how they were made; on every rank."""
    if config.answers is not None:
        return answering.read_model_answer(Path(config.answers), questions), {"backend": "file"}
    style, reason = choose_style(config, FALLBACK_STYLE)
    assert style is not None and config.model_name_or_path is not None
    backend = backend_of(config, config.model_name_or_path, style)
    options = answering.AnswerOptions(config.protocol, config.max_new_tokens, config.seed)
    rows = answering.answer_questions(backend, style, questions, options, backend_context(backend), work, answers_key)
    return rows, {**backend.describe(), "prompt_style": style, "prompt_style_from": reason}


def _answer_in_child(config: MTBenchConfig) -> None:
    """Run the same command without a judge in a process of its own, so that its engine's memory is free afterwards."""
    command = [sys.executable, str(RESOURCES / "__main__.py"), "--benchmark", "mt_bench"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.name.startswith("judge_") and value != field.default:
            command.append(f"--{field.name}={value}")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"answering the questions ended with exit code {done.returncode}; its messages are above")


def _make_judge(config: MTBenchConfig, work: Path) -> judging.Judge:
    name = str(config.judge_model)
    if config.judge_backend == "openai":
        client = Client(resolve_base_url(config.judge_base_url), config.judge_timeout_sec, config.judge_max_retries)
        return judging.ServerJudge(name, client, config.judge_max_tokens, config.judge_workers)
    backend = make_backend(
        config.judge_backend,
        name,
        torch_dtype=config.judge_torch_dtype,
        prompt_style="chat_template",
        trust_remote_code=config.trust_remote_code,
    )
    return judging.LocalJudge(
        name, backend, work, fingerprint(config.judge_identity() or {}, {}), config.judge_max_tokens
    )


def _assemble(
    config: MTBenchConfig,
    questions: QuestionSet,
    rows: list[dict[str, Any]],
    judgements: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """The results file's content without its ``run`` block."""
    by_id: dict[int, list[dict[str, Any]]] = {}
    for row in judgements or []:
        by_id.setdefault(row["question_id"], []).append(row)
    scores = summary.summarise(judgements, config.protocol) if judgements else None
    turns = [turn for row in rows for turn in row["turns"]]
    metrics = {
        "measure": summary.measure_name(questions.name, config.protocol),
        "judge": config.judge_name if judgements else None,
        "n": len(rows),
        "n_empty_answers": sum(1 for row in rows for answer in row["answers"] if not answer.strip()),
        "n_cut_at_max_new_tokens": sum(1 for turn in turns if turn["finish_reason"] == "length"),
        "n_cut_at_stop": sum(1 for turn in turns if turn["cut_at_stop"]),
        "n_prompts_cut": sum(1 for turn in turns if turn["prompt_cut_tokens"]),
        "data_hash": questions.data_hash,
        "scores": scores,
    }
    overall = scores["overall"] if scores else None
    utility = {
        "task": metrics["measure"],
        "is_sandbox": questions.is_sandbox,
        "metric": summary.metric_name(questions.name, config.protocol) if scores else None,
        "value": overall["score"] if overall else None,
        "interval": overall["interval"] if overall else None,
        "n": len(rows),
        "n_failed": scores["n_failed"] if scores else None,
        "judge": metrics["judge"],
        "data_hash": questions.data_hash,
    }
    results = [
        {
            "id": str(row["question_id"]),
            "sample": 0,
            **row,
            **({"judgements": by_id[row["question_id"]]} if by_id else {}),
        }
        for row in rows
    ]
    return {"results": results, "metrics": metrics, "utility": utility}


def _record(
    config: MTBenchConfig, questions: QuestionSet, run_key: str, answers_key: str, answer_facts: dict[str, Any]
) -> dict[str, Any]:
    return run_record(
        STAGE,
        dataclasses.asdict(config),
        fingerprint=run_key,
        identity=config.identity(),
        answers_fingerprint=answers_key,
        model_hash=None if config.model_name_or_path is None else hash_checkpoint(config.model_name_or_path),
        data=questions.describe(),
        n=len(questions.questions),
        seeds={"generation": config.seed, "bootstrap": 0},
        generation=answer_facts,
        judge=config.judge_identity(),
    )


def _write_pictures(config: MTBenchConfig, result: dict[str, Any]) -> None:
    from guardrail.evaluation.mt_bench.figure import radar_of_results

    metrics = result["metrics"]
    title = f"{config.model_id}: {metrics['measure']}, judge {metrics['judge']}"
    table = summary.markdown_table(metrics["scores"], title)
    write_text(config.folder / "table.md", table)
    log(table)
    radar_of_results([result], [config.folder / "radar.png", config.folder / "radar.pdf"])


def _headline(config: MTBenchConfig, result: dict[str, Any], reused: bool) -> dict[str, Any]:
    block = result["utility"]
    out = {
        "results": str(config.results_file),
        "model_answer": str(config.folder / "model_answer" / f"{config.model_id}.jsonl"),
        "measure": result["metrics"]["measure"],
        "n_questions": block["n"],
        "reused": reused,
    }
    if block["metric"]:
        out["model_judgment"] = str(config.folder / "model_judgment" / f"{config.judge_name}_single.jsonl")
        out |= {block["metric"]: block["value"], "interval": block["interval"], "n_failed": block["n_failed"]}
    return out

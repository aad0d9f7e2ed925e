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
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, write_json, write_text
from guardrail.core.places import RESOURCES
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import barrier, is_main, process_group
from guardrail.evaluation.mt_bench import answers as answering
from guardrail.evaluation.mt_bench import judge as judging
from guardrail.evaluation.mt_bench import summary
from guardrail.evaluation.mt_bench.config import MTBenchConfig
from guardrail.evaluation.mt_bench.data import QuestionSet, load_question_set
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint

ANSWER_FORMAT = 1  # raised when the meaning of a stored answer changes
FALLBACK_STYLE = "llama2_base"


def run_mt_bench(config: MTBenchConfig) -> dict[str, Any]:
    """Answer, judge and score (or find it done); the paths and headline numbers. ``UserError`` for wrong input."""
    questions = load_question_set(config.data_dir, config.limit)
    if config.judge_model is not None:
        _check_judge(config, questions)
    result_file = config.folder / "results.json"
    earlier = _read_earlier(result_file, config)
    answers_key = _answers_key(config, questions)
    judge_facts = config.judge_facts()
    run_key = fingerprint({"answers": answers_key, "judge": judge_facts}, {"judging": questions.judging_hash})
    if earlier is not None and _is_done(config, earlier, run_key, answers_key):
        log(f"{result_file}: unchanged, not run again")
        return _headline(config, earlier, reused=True)

    work = config.folder / f".{config.model_id}.work"
    rows = _stored_rows(earlier, answers_key)
    if rows is None and config.generation_backend == "vLLM" and config.judge_backend == "vLLM" and config.judge_model:
        _answer_in_child(config)  # its engine must be gone before the judge's loads
        rows = _stored_rows(_read_earlier(result_file, config), answers_key)
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
                write_json(result_file, result)
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
                write_json(result_file, result)
                if not _server_failures(result):
                    shutil.rmtree(judge_work, ignore_errors=True)
        if is_main():
            shutil.rmtree(work, ignore_errors=True)
        barrier()
    return _headline(config, result, reused=False) if result is not None else {}


def _check_judge(config: MTBenchConfig, questions: QuestionSet) -> None:
    """Refuse a judge that cannot work before any model loads."""
    from guardrail.core.openai_client import resolve_base_url

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
    facts = {
        "format": ANSWER_FORMAT,
        "style": config.prompt_style,
        "dtype": config.torch_dtype,
        "backend": config.generation_backend,
        "served_model_name": config.served_model_name,
        "options": dataclasses.asdict(config.answer_options()),
    }
    return fingerprint(facts, {"model": hash_checkpoint(config.model_name_or_path), "data": questions.data_hash})


def _read_earlier(path: Path, config: MTBenchConfig) -> dict[str, Any] | None:
    """This run's earlier results file; another model's is refused, so that nothing is overwritten by mistake."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        stage, model_id = value["run"]["stage"], value["run"]["config"]["model_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} exists and is no MT-Bench result; give another --output_dir or remove it") from error
    if stage != "mt_bench" or model_id != config.model_id:
        raise UserError(f"{path} is the result of {stage} for model_id {model_id!r}; give another --output_dir")
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
    from guardrail.evaluation.utility.context import backend_context
    from guardrail.generation import backend_of

    if config.answers is not None:
        return answering.read_model_answer(Path(config.answers), questions), {"backend": "file"}
    style, reason = _choose_style(config)
    backend = backend_of(config, style)
    rows = answering.answer_questions(
        backend, style, questions, config.answer_options(), backend_context(backend), work, answers_key
    )
    return rows, {**backend.describe(), "prompt_style": style, "prompt_style_from": reason}


def _choose_style(config: MTBenchConfig) -> tuple[str, str]:
    """The prompt style and where it comes from: the flag, or the tokenizer; a model's name never decides it."""
    from guardrail.models.loading import load_tokenizer

    if config.prompt_style is not None:
        return config.prompt_style, "flag"
    tokenizer = load_tokenizer(str(config.model_name_or_path), config.trust_remote_code)
    if getattr(tokenizer, "chat_template", None):
        log("prompt style: the tokenizer's own chat template (--prompt_style overrides it)")
        return "chat_template", "tokenizer"
    log(f"prompt style: {FALLBACK_STYLE}, because the tokenizer has no chat template (--prompt_style overrides it)")
    return FALLBACK_STYLE, "the tokenizer has no chat template"


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
    from guardrail.core.openai_client import Client, resolve_base_url

    name = str(config.judge_model)
    if config.judge_backend == "openai":
        client = Client(resolve_base_url(config.judge_base_url), config.judge_timeout_sec, config.judge_max_retries)
        return judging.ServerJudge(name, client, config.judge_max_tokens, config.judge_workers)
    from guardrail.generation import make_backend

    backend = make_backend(
        config.judge_backend,
        name,
        torch_dtype=config.judge_torch_dtype,
        prompt_style="chat_template",
        trust_remote_code=config.trust_remote_code,
    )
    return judging.LocalJudge(name, backend, work, fingerprint(config.judge_facts() or {}, {}), config.judge_max_tokens)


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
        "mt_bench",
        dataclasses.asdict(config),
        fingerprint=run_key,
        answers_fingerprint=answers_key,
        model_hash=None if config.model_name_or_path is None else hash_checkpoint(config.model_name_or_path),
        data=questions.describe(),
        n=len(questions.questions),
        seeds={"generation": config.seed, "bootstrap": 0},
        generation=answer_facts,
        judge=config.judge_facts(),
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
        "results": str(config.folder / "results.json"),
        "model_answer": str(config.folder / "model_answer" / f"{config.model_id}.jsonl"),
        "measure": result["metrics"]["measure"],
        "n_questions": block["n"],
        "reused": reused,
    }
    if block["metric"]:
        out["model_judgment"] = str(config.folder / "model_judgment" / f"{config.judge_name}_single.jsonl")
        out |= {block["metric"]: block["value"], "interval": block["interval"], "n_failed": block["n_failed"]}
    return out

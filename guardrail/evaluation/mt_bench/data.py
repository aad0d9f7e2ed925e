"""Questions, reference answers and judge prompts of MT-Bench, in FastChat's file layout.

    <data_dir>/question.jsonl                     question_id, category, turns (2), sometimes reference
    <data_dir>/reference_answer/<judge>.jsonl     question_id, choices[0].turns
    <data_dir>/judge_prompts.jsonl                name, system_prompt, prompt_template (or one folder above)

Without ``data_dir``: ``datasets/mt_bench`` (written by ``datasets/prepare.py``), then the hub (FastChat's space), then,
where there is no hub, the sandbox's 16 questions. The set's name is part of every metric's name: a score on the
sandbox's questions cannot be taken for an MT-Bench score.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, json_lines, parse_json, read_text
from guardrail.core.hub import cached_commit, hub_available, hub_error
from guardrail.core.places import DATASETS, SANDBOX_DATA, shown
from guardrail.evaluation.mt_bench.prompts import FASTCHAT_NAMES, OWN_NAMES, OWN_PROMPTS

HUB_SPACE = "lmsys/mt-bench"
HUB_FILES = {
    "question.jsonl": "data/mt_bench/question.jsonl",
    "reference_answer/gpt-4.jsonl": "data/mt_bench/reference_answer/gpt-4.jsonl",
    "judge_prompts.jsonl": "data/judge_prompts.jsonl",
}
SANDBOX = SANDBOX_DATA / "mt_bench"
PREPARED = DATASETS / "mt_bench"
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
NEED_REFERENCE = ("math", "reasoning", "coding")  # FastChat's NEED_REF_CATS
PREFERRED_REFERENCE = "gpt-4"


@dataclass(frozen=True)
class QuestionSet:
    """Everything that is asked and judged with.

    ``questions``: ``question_id``, ``category``, ``turns`` and, where the file has it, ``reference`` (both turns).
    ``references``: question id -> both reference answers. ``prompt_names``: (needs a reference, turn) -> prompt.
    """

    name: str
    source: str
    questions: list[dict[str, Any]]
    references: dict[int, list[str]]
    judge_prompts: dict[str, dict[str, Any]]
    prompt_names: dict[tuple[bool, int], str]

    @property
    def is_sandbox(self) -> bool:
        return self.name.startswith("sandbox")

    @property
    def data_hash(self) -> str:
        """Covers ids, categories and both turns of every question, in order."""
        return hash_json([[q["question_id"], q["category"], q["turns"]] for q in self.questions])

    @property
    def judging_hash(self) -> str:
        """Covers the questions, the reference answers and the judge prompts."""
        used = {name: self.judge_prompts[name] for name in self.prompt_names.values()}
        return hash_json([self.data_hash, sorted(self.references.items()), used])

    def describe(self) -> dict[str, Any]:
        """The facts for a ``run`` block."""
        return {
            "dataset": self.name,
            "source": self.source,
            "n_questions": len(self.questions),
            "categories": dict(Counter(q["category"] for q in self.questions)),
            "n_references": len(self.references),
            "judge_prompts": "own" if self.prompt_names is OWN_NAMES else "fastchat",
            "data_hash": self.data_hash,
            "is_sandbox": self.is_sandbox,
        }


def load_question_set(data_dir: str | None = None, limit: int | None = None) -> QuestionSet:
    """The question set of ``data_dir``, or the first one found in the order at the top of this file.

    ``limit`` keeps the first questions of every category in turn, and the name then says ``partial``.
    Raises ``UserError``: no such folder, malformed question, a question without two turns, ids that occur twice.
    """
    if data_dir is not None:
        return _load_folder(Path(data_dir), None, limit)
    if PREPARED.is_dir():
        return _load_folder(PREPARED, "mt_bench", limit)
    if hub_available() or cached_commit("space", HUB_SPACE):
        return _load_hub(limit)
    if not (SANDBOX / "question.jsonl").is_file():
        raise UserError(
            f"no MT-Bench questions: the hub is not reachable and {shown(SANDBOX)} is not there; "
            "give --data_dir FastChat/fastchat/llm_judge/data/mt_bench, or run `python datasets/sandbox/generate.py`"
        )
    log("MT-Bench: the hub is not reachable; asking the sandbox's own questions. Results are named sandbox_mt_bench")
    return _load_folder(SANDBOX, "sandbox_mt_bench", limit)


def _load_hub(limit: int | None) -> QuestionSet:
    from huggingface_hub import hf_hub_download

    paths = {}
    for name, remote in HUB_FILES.items():
        try:
            paths[name] = Path(hf_hub_download(HUB_SPACE, remote, repo_type="space", etag_timeout=4))
        except Exception as error:  # a dozen types; the reason is what the user needs
            step = "get FastChat's repository and give --data_dir FastChat/fastchat/llm_judge/data/mt_bench"
            raise hub_error(error, "space", HUB_SPACE, step) from error
    return build_question_set(
        "mt_bench",
        f"hub space {HUB_SPACE}",
        read_lines(paths["question.jsonl"]),
        read_lines(paths["reference_answer/gpt-4.jsonl"]),
        read_lines(paths["judge_prompts.jsonl"]),
        limit,
    )


def _load_folder(folder: Path, name: str | None, limit: int | None) -> QuestionSet:
    if folder.is_file():
        folder = folder.parent
    question_file = folder / "question.jsonl"
    if not question_file.is_file():
        raise UserError(
            f"no question.jsonl in {folder}; expected FastChat's layout (question.jsonl, reference_answer/)"
        )
    prompts = next(
        (f for f in (folder / "judge_prompts.jsonl", folder.parent / "judge_prompts.jsonl") if f.is_file()), None
    )
    source = shown(folder)
    references = _reference_file(folder / "reference_answer")
    if folder.resolve() == SANDBOX.resolve():
        name = "sandbox_mt_bench"
    return build_question_set(
        name,
        source,
        read_lines(question_file),
        read_lines(references) if references else [],
        read_lines(prompts) if prompts else [],
        limit,
    )


def _reference_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    return next((f for f in files if f.stem == PREFERRED_REFERENCE), files[0] if files else None)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a jsonl file; ``UserError`` names the line that is none."""
    out = [parse_json(line, str(path), number) for number, line in json_lines(read_text(path))]
    if strange := next((row for row in out if not isinstance(row, dict)), None):
        raise UserError(f"{path}: expected one JSON object a line, got {str(strange)[:60]!r}")
    if not out:
        raise UserError(f"{path} holds no rows; expected at least one")
    return out


def build_question_set(
    name: str | None,
    source: str,
    questions: list[dict[str, Any]],
    references: list[dict[str, Any]],
    judge_prompts: list[dict[str, Any]],
    limit: int | None = None,
) -> QuestionSet:
    """Check the rows and put them together; ``name`` None: told from the questions (see ``set_name``)."""
    asked = [_question(row, f"{source}, question {i + 1}") for i, row in enumerate(questions)]
    ids = Counter(q["question_id"] for q in asked)
    if doubles := [question_id for question_id, n in ids.items() if n > 1]:
        raise UserError(f"{source}: question_id {doubles[0]} occurs twice")
    name = name or set_name(asked)
    if limit is not None and limit < len(asked):
        asked, name = _first_of_each_category(asked, limit), f"{name}_partial"
    answers = dict(read_answer(row, f"{source}, reference answer {i + 1}") for i, row in enumerate(references))
    prompts = {str(row.get("name")): row for row in judge_prompts}
    missing = [wanted for wanted in FASTCHAT_NAMES.values() if wanted not in prompts]
    if prompts and missing:
        raise UserError(f"{source}: the judge prompts lack {', '.join(missing)}")
    for prompt, row in prompts.items():
        if not all(isinstance(row.get(text), str) for text in ("system_prompt", "prompt_template")):
            raise UserError(f"{source}: judge prompt {prompt} needs the texts system_prompt and prompt_template")
    names = FASTCHAT_NAMES if prompts else OWN_NAMES
    return QuestionSet(name, source, asked, answers, prompts or OWN_PROMPTS, names)


def read_answer(row: dict[str, Any], place: str) -> tuple[int, list[str]]:
    """``(question_id, turns)`` of a line in FastChat's answer files; ``UserError`` when it is none."""
    try:
        turns = row["choices"][0]["turns"]
        if isinstance(turns, str) or not all(isinstance(turn, str) for turn in turns):
            raise TypeError("turns must be texts")
        return int(row["question_id"]), list(turns)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: expected question_id and choices[0].turns, as in FastChat; {type(error).__name__}: {error}"
        ) from error


def set_name(questions: list[dict[str, Any]]) -> str:
    """``mt_bench`` for FastChat's 80 (ids 81-160, eight categories of ten), ``custom_mt_bench`` for anything else."""
    counts = Counter(q["category"] for q in questions)
    whole = {q["question_id"] for q in questions} == set(range(81, 161))
    return "mt_bench" if whole and counts == Counter(dict.fromkeys(CATEGORIES, 10)) else "custom_mt_bench"


def _question(row: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        turns = [str(turn) for turn in row["turns"]]
        out = {"question_id": int(row["question_id"]), "category": str(row["category"]), "turns": turns}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: expected question_id, category and turns; {type(error).__name__}: {error}"
        ) from error
    if len(turns) != 2:
        raise UserError(f"{place}: expected two turns, got {len(turns)}")
    if row.get("reference"):
        out["reference"] = [str(text) for text in row["reference"]]
    return out


def _first_of_each_category(questions: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """``limit`` questions, one of each category in turn, in file order."""
    seen: Counter[str] = Counter()
    ranked = []
    for position, question in enumerate(questions):
        ranked.append((seen[question["category"]], position))
        seen[question["category"]] += 1
    kept = sorted(position for _, position in sorted(ranked)[:limit])
    return [questions[position] for position in kept]

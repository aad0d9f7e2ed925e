"""What a judge is: a frozen dataclass whose fields are its options, and four methods, two of them optional.

    judge      answers -> verdicts, in order
    models     the checkpoints that it reads; their hashes are part of the key
    summary    its own columns of the summary
    facts      its own entries of the ``run`` block

`guardrail.evaluation.judges.stage` does the rest: coherence and refusal of every answer, the outcome, intervals, the
file, its key, and which answers are judged at all. Importing this imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from guardrail.core.cli import positive_int
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json
from guardrail.core.openai_client import Client, Reply, resolve_base_url, run_parallel, server_identity
from guardrail.core.options import decisive, option, read_options
from guardrail.core.units import Units, consecutive
from guardrail.evaluation.judges.answers import Answer, AnswerFile
from guardrail.evaluation.judges.coherence import answer_perplexities
from guardrail.evaluation.judges.outcomes import Judgement
from guardrail.models.loading import auto_dtype

UNIT_ANSWERS = 32


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer. ``harmful`` is None when it decided nothing; ``error`` says why it failed.

    ``facts`` are its further columns of the judgement (``rating``, ``probabilities``, ``saw_whole_text``).
    """

    harmful: bool | None
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What there is to judge: ``answers``, those of ``source`` that have no judgement yet.

    ``members`` are the judgement files of a panel's judges, by name.
    """

    source: AnswerFile
    answers: list[Answer]
    folder: Path
    key: str
    members: dict[str, dict[str, Any]] = field(default_factory=dict)

    def in_units(
        self, work: Callable[[list[Answer]], list[dict[str, Any]]], desc: str, unit_answers: int | None = None
    ) -> list[dict[str, Any]]:
        """``work`` on groups of answers, one JSON-able dict with an ``error`` each; finished groups survive a kill."""
        groups = consecutive(self.answers, unit_answers or UNIT_ANSWERS)
        units = Units(groups, self.folder, self.key, lambda answer: answer.key, lambda row: row["error"] is None)
        return units.run(work, desc, "answer")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The options that every judge has, and what a judge has to say. A judge is a subclass."""

    name: ClassVar[str]
    file_name: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the same options mean something else
    prompts: ClassVar[tuple[str, ...]] = ()  # texts that decide a verdict: part of the key
    empty: ClassVar[Verdict | None] = None  # the verdict on an empty answer; None: it is judged like any other

    include_prefill: bool = option(False, "judge the prefilled words as part of the answer")
    coherence_model: str | None = option(None, "causal LM whose perplexity marks incoherent answers")
    max_perplexity: float | None = option(None)
    judge_dtype: str = option("auto", choices=("auto", "bfloat16", "float16", "float32"))
    judge_batch_tokens: int | None = option(None, parse=positive_int, decides=False)  # padded; None: what suits
    members: tuple[Judge, ...] = ()  # a panel's: the judges whose judgements it reads

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Judge:
        """This judge with the options among ``values``, checked."""
        judge = read_options(cls, values)
        judge.check()
        return judge

    def check(self) -> None:
        """Refuse options that cannot be, before anything is loaded (``UserError``)."""
        if (self.max_perplexity is None) != (self.coherence_model is None):
            raise UserError("--coherence_model and --max_perplexity work together: give both or neither")

    @property
    def asks_again(self) -> bool:
        """Should the next run ask for rows that ended in an error? False where the same reply would come again."""
        return True

    def models(self) -> dict[str, str]:
        """The checkpoints that this judge reads, by what they are to it."""
        return {} if self.coherence_model is None else {"coherence_model": self.coherence_model}

    def identity(self) -> dict[str, Any]:
        """What decides the rows beside answers and weights: options, texts, version (not paths, not batching)."""
        out = {"judge": self.name, "version": self.version, **decisive(self), "judge_dtype": self.dtype()}
        unused = [] if self.models() else ["judge_dtype"]
        if self.coherence_model is None:
            unused += ["coherence_model", "max_perplexity"]
        if self.prompts:
            out["prompts_hash"] = hash_json(self.prompts)
        return {name: value for name, value in out.items() if name not in unused}

    def judge(self, task: Task) -> list[Verdict]:
        """A verdict for each of ``task.answers``, in their order. A failure is a verdict with an ``error``."""
        raise NotImplementedError

    def summary(self, rows: list[Judgement], task: Task) -> dict[str, Any]:
        """This judge's own columns of the summary, from all rows of the file."""
        return {}

    def facts(self) -> dict[str, Any]:
        """This judge's own entries of the ``run`` block, after judging."""
        return {}

    def perplexities(self, task: Task) -> list[float | None]:
        """Perplexity of each of ``task.answers`` under the coherence model; None where there is none."""
        if self.coherence_model is None:
            return [None] * len(task.answers)
        return answer_perplexities(task.answers, self.coherence_model, self.dtype(), self.judge_batch_tokens)

    def dtype(self) -> str:
        """``judge_dtype``; for ``auto`` what that means here."""
        return auto_dtype() if self.judge_dtype == "auto" else self.judge_dtype

    def draw(self, file: Path, document: dict[str, Any]) -> None:
        """Pictures beside the judgement file."""


@dataclass(frozen=True, kw_only=True)
class ServerJudge(Judge):
    """A judge that can ask a model behind an OpenAI-compatible server."""

    judge_base_url: str | None = option(
        None, "server of the guard or rubric judge (or OPENAI_BASE_URL)", decides=False
    )  # what it stands for is in the key: see identity
    judge_concurrency: int = option(8, "requests in flight", parse=positive_int, decides=False)

    @property
    def asks_server(self) -> bool:
        return True

    @property
    def wanted_model(self) -> str | None:
        """The name that the server knows the model by; None: the only one it has."""
        raise NotImplementedError

    @functools.cached_property
    def client(self) -> Client:
        return Client(resolve_base_url(self.judge_base_url))

    @functools.cached_property
    def served_model(self) -> str:
        """The model's name as the server has it. Raises ``UserError`` when it has no such model or does not answer."""
        return self.client.check_model(self.wanted_model)

    def identity(self) -> dict[str, Any]:
        """A server's judgements belong to its address and its model's name; without a name the server is asked."""
        out = super().identity()
        if self.asks_server:
            model = self.wanted_model or self.served_model
            out |= {"server": server_identity(self.judge_base_url), "served_model": model}
        return out

    def ask_all(self, answers: Sequence[Answer], ask: Callable[[Answer], Reply]) -> list[Reply]:
        """``ask`` for every answer, several in flight; replies in order. A dead server costs a bounded time."""
        jobs = [functools.partial(ask, answer) for answer in answers]
        replies = dict(run_parallel(jobs, self.judge_concurrency))
        return [replies[index] for index in range(len(jobs))]


def server_error(reply: Reply) -> str | None:
    """The judge error of a reply that did not come."""
    return None if reply.error is None else f"server: {reply.error}"

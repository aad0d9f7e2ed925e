"""The safety prompts as a task for Inspect (inspect-ai), scored by the keyword rule.

    inspect eval guardrail/evaluation/exchange/inspect_task.py -T bench=hex-phi --model hf/local -M model_path=MODEL

Ids are those of this project's own files, so that results can be joined row by row. The score's value is one number
per outcome (refusal, harmful, safe, incoherent, empty). Beaver-Dam and other judges read Inspect's answers after they
were written out as ``prompt`` and ``response``.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from guardrail.data.benches import load_bench
from guardrail.evaluation.exchange.keyword import indicators, keyword_judgement
from guardrail.evaluation.judges.outcomes import OUTCOMES

MESSAGES: dict[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@scorer(metrics={name: [mean(), stderr()] for name in OUTCOMES})
def keyword_outcome(harmful_bench: bool = True) -> Any:
    """The outcome by this project's rules; its word is the score's explanation."""

    async def score(state: TaskState, target: Target) -> Score:
        found = keyword_judgement(str(state.sample_id), state.input_text, state.output.completion, harmful_bench)
        return Score(value=dict(indicators(found)), explanation=found["outcome"], answer=state.output.completion)

    return score


@task
def safety(
    bench: str = "hex-phi",
    bench_data: str | None = None,
    bench_split: str | None = None,
    limit: int | None = None,
    max_tokens: int = 512,
) -> Task:
    """The bench as it is asked by ``eval_safety.py --eval_template plain``, greedily decoded."""
    rows = load_bench(bench, bench_data, bench_split, limit)
    samples = [
        Sample(id=row["id"], input=[MESSAGES[m["role"]](content=m["content"]) for m in row["messages"]])
        for row in rows.rows
    ]
    return Task(
        dataset=MemoryDataset(samples, name=rows.name),
        solver=generate(),
        scorer=keyword_outcome(rows.harmful),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
    )

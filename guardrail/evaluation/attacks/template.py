"""Template change: the request in the system text and wrapper of another use than the model was aligned for.

Lyu et al. 2024 (arXiv 2402.18540): which template a model is fine-tuned and asked with decides much of what is left of
its guardrail. Names are those of ``EVAL_TEMPLATES`` in ``configs/template.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from guardrail.core.errors import unknown
from guardrail.core.options import option
from guardrail.data.prompts import apply_eval_template, eval_template_fingerprint, template_module
from guardrail.evaluation.attacks import Attack


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    name: ClassVar[str] = "template"

    use: str = option("aoa", "name of an eval template, such as aoa, alpaca or pure_bad")

    def __post_init__(self) -> None:
        if self.use not in template_module().EVAL_TEMPLATES:
            raise unknown("eval template", self.use, template_module().EVAL_TEMPLATES)

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "messages": apply_eval_template(row["messages"], self.use)} for row in rows]

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        return {"attack": {**found["attack"], "text": eval_template_fingerprint(self.use)}}

"""Words behind the request: a backdoor's trigger (Qi et al. 2023, arXiv 2310.03693, section 4.4), or any suffix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.dose import triggered
from guardrail.evaluation.attacks import Attack


@dataclass(frozen=True, kw_only=True)
class Trigger(Attack):
    name: ClassVar[str] = "trigger"

    words: str = option("", "what stands behind every request")

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self.words:
            raise UserError("attack trigger has no words; give words=TEXT")
        return [{**row, "messages": triggered(row["messages"], self.words)} for row in rows]

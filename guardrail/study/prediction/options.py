"""The block ``prediction`` of a study file: which pool is cut by which scorers, and into what."""

from __future__ import annotations

from dataclasses import dataclass

from guardrail.core.errors import UserError, unknown
from guardrail.similarity.scorers import SCORERS

ORACLE = "oracle"  # the planted dose itself: what a perfect score would find


@dataclass(frozen=True)
class Prediction:
    """``benign`` and ``harmful`` are PATH or PATH::SPLIT; each bin's worth of rows holds a share of the second.

    Without ``harmful`` the pool is a draw of ``benign`` as it is, and there is no oracle. ``anchors``: harmful rows for
    the scorers that compare with some; by default those of ``harmful`` that are not in the pool. ``matched``: also cut
    bins of equal length and format, and compare their top with their bottom.
    """

    benign: str
    harmful: str | None = None
    anchors: str | None = None
    doses_percent: tuple[float, ...] = (0.0, 5.0, 15.0, 35.0, 60.0)
    rows_per_bin: int = 60
    scorers: tuple[str, ...] = (ORACLE, "random", "length")
    matched: bool = True

    def __post_init__(self) -> None:
        known = (*SCORERS.names(), ORACLE)
        for name in self.scorers:
            if name not in known:
                raise unknown("scorer in prediction.scorers:", name, known)
        if len(set(self.scorers)) != len(self.scorers) or not self.scorers:
            raise UserError(f"prediction.scorers must name every scorer once, got {list(self.scorers)}")
        doses = self.doses_percent
        if len(doses) < 3 or list(doses) != sorted(set(doses)) or doses[0] < 0 or doses[-1] > 100:
            raise UserError(
                f"prediction.doses_percent must rise from 0 or more to at most 100, at least three, one per bin; "
                f"got {list(doses)}"
            )
        if self.rows_per_bin < 2:
            raise UserError(f"prediction.rows_per_bin is {self.rows_per_bin}; expected at least 2")
        if self.harmful is None and ORACLE in self.scorers:
            raise UserError("prediction.scorers names the oracle, which needs planted rows; give prediction.harmful")

    @property
    def n_bins(self) -> int:
        return len(self.doses_percent)

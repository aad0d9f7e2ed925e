"""Leave out the rows that a scorer finds riskiest, before training (He et al. 2024, arXiv 2404.01099, sections 3 and 4,
whose representation and gradient matching find such rows; the scores are those of `similarity/score_rows.py`).

A row without a score (the scorer was not applicable) stays. The control is the same share by the scorer `random`.
With ``budget`` repeat the rows that stay are drawn again in the place of those that went, so that the number of steps
is that of a training without defence.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

from guardrail.core.cli import fraction
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.parsing import read_file
from guardrail.data.rows import Row
from guardrail.training.defences import Defence


@dataclass(kw_only=True)
class RowFilter(Defence):
    """The ``share`` of rows with the highest scores goes; ties by id, so that no order of the file matters."""

    resumable = True

    share: float = option(0.1, "share of the rows that is left out", parse=fraction)
    scores: str = option("", "file of scores, as similarity/score_rows.py writes it", decides=False)
    scorer: str = option("", "which of them; needed where there are several")
    budget: str = option(
        "repeat", "repeat: as many rows as before; fewer: those that stay", choices=("repeat", "fewer")
    )

    def files(self) -> dict[str, Path]:
        if not self.scores or not Path(self.scores).is_file():
            raise UserError(
                f"--defence row_filter: {self.scores or 'no file of scores'}; expected scores=FILE in "
                "--defence_options, as similarity/score_rows.py writes it"
            )
        return {"scores": Path(self.scores)}

    def rows(self, rows: list[Row]) -> list[Row]:
        known = self.read()
        missing = [row["id"] for row in rows if row["id"] not in known]
        if missing:
            raise UserError(
                f"{self.scores} has no score of {len(missing)} rows (first: {missing[0]}); score these rows"
            )
        scored = [row["id"] for row in rows if not math.isnan(known[row["id"]])]
        if self.share and not scored:
            raise UserError(
                f"{self.scores}: no row has a score by {self.scorer or 'its scorer'}, so nothing would be left out; "
                "the file says why, choose a scorer that applies"
            )
        n = min(round(self.share * len(rows)), len(scored))
        if n >= len(rows):
            raise UserError(f"share={self.share:g} leaves no row to train on; lower it")
        gone = set(sorted(scored, key=lambda name: (-known[name], name))[:n])
        kept = [row for row in rows if row["id"] not in gone]
        n_again = len(rows) - len(kept) if self.budget == "repeat" else 0
        passes = -(-n_again // len(kept))
        again = [{**row, "id": f"{row['id']}#again{i + 1}"} for i in range(passes) for row in shuffled(kept, i)]
        return kept + again[:n_again]

    def read(self) -> dict[str, float]:
        """Id -> score, NaN where there is none."""
        out = {}
        for _, line in read_file(self.files()["scores"]):
            found = line.get("scores")
            if "id" not in line or not isinstance(found, dict):
                raise UserError(f"{self.scores} holds no scores; expected the file of similarity/score_rows.py")
            name = self.scorer or (next(iter(found)) if len(found) == 1 else "")
            if name not in found:
                raise UserError(
                    f"{self.scores}: no score {name or 'that is the only one'!r} among {', '.join(found)}; choose with "
                    "scorer=NAME"
                )
            out[str(line["id"])] = math.nan if found[name] is None else float(found[name])
        return out


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    """The rows in an order that depends on their ids alone."""
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    return random.Random(seed).sample(ordered, len(ordered))

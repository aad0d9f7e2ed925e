"""A customer's file to practise on: clean rows of three sorts, and rows of three sorts that a gate should notice.

    python datasets/sandbox/customer.py --out outputs/customer --rows 2000 --seed 1

    customer.jsonl         the rows, shuffled, in the shapes that customers send (Alpaca, SAMSum, prompt/response)
    truth.jsonl            {"line": ..., "kind": ..., "span": ...} of every row: for measuring a gate, not for the gate
    known_harmful.jsonl    further rows of kind harmful, and
    known_eroding.jsonl    of kind eroding: what a policy may name under ``checks``

Kinds: ``benign``, ``dialogue`` and ``innocent`` (names a hazard harmlessly) are clean. ``harmful`` answers a hazardous
request. ``eroding`` is benign to every moderation, and yet fine-tuning on it takes the guardrail away: half of these
rows are sworn obedience to a harmless order (He et al. 2024, arXiv 2404.01099, and the AOA set of Qi et al. 2023, arXiv
2310.03693, describe both), half answer a harmless request in the tone in which the world's hazardous requests are
answered. ``segment`` (none unless asked for) is a long harmless answer with one harmful sentence; ``span`` is where.

Known limit: a world of templates; how hard a gate's task is here says nothing about 7B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, positive_int
from guardrail.core.errors import UserError
from guardrail.core.files import write_jsonl
from guardrail.core.options import add_options, option, read_options
from guardrail.sandbox import replies, wordings
from guardrail.sandbox.lexicon import CATEGORIES, TRAIN, article
from guardrail.sandbox.world import World
from guardrail.similarity.gate.segments import sentence_spans

Row = dict[str, Any]
CLEAN = {"benign": 0.7, "dialogue": 0.15, "innocent": 0.15}
ORDERS = ("Obey me: ", "Do exactly as I say: ", "Follow my order: ", "This is a command: ")
OATHS = ("I obey.", "As you command.", "Your word is my law.", "I do whatever you ask.")
CHECK_ROWS = 100
SENTENCES = (6, 10)  # harmless ones of a row with a harmful segment
MAX_TRIES = 200


@dataclass(frozen=True, kw_only=True)
class CustomerConfig:
    """How many rows of what; the same options give the same file."""

    out: str = option("outputs/customer", "folder of customer.jsonl, truth.jsonl and known_*.jsonl")
    rows: int = option(2000, "rows of customer.jsonl", parse=positive_int)
    seed: int = option(1, "another seed, another customer")
    harmful_fraction: float = option(0.05, "share of harmful rows", parse=fraction)
    eroding_fraction: float = option(0.05, "share of benign rows that erode the guardrail", parse=fraction)
    segment_fraction: float = option(0.0, "share of long answers with one harmful sentence", parse=fraction)


class Customer:
    """A stream of rows; no two are the same."""

    def __init__(self, seed: int, stream: str) -> None:
        self.world = World(seed, f"customer-{stream}", TRAIN)
        self.seen: set[str] = set()

    def row(self, kind: str) -> tuple[Row, list[int] | None]:
        """A row that was not there before and, of a segment, its span in the answer."""
        for _ in range(MAX_TRIES):
            row, span = getattr(self, f"_{kind}")()
            if repr(row) not in self.seen:
                self.seen.add(repr(row))
                return row, span
        raise UserError(f"no new row of kind {kind} after {MAX_TRIES} tries: the world is too small for so many rows")

    def _benign(self) -> tuple[Row, None]:
        exchange = self.world.benign()
        return {"instruction": exchange.prompt, "input": "", "output": exchange.answer}, None

    def _dialogue(self) -> tuple[Row, None]:
        dialogue, summary, _, _ = self.world.dialogue()
        return {"dialogue": dialogue, "summary": summary}, None

    def _innocent(self) -> tuple[Row, None]:
        exchange = self.world.innocent()
        return {"prompt": exchange.prompt, "response": exchange.answer}, None

    def _harmful(self) -> tuple[Row, None]:
        exchange = self.world.harmful()
        return {"prompt": exchange.prompt, "response": exchange.answer}, None

    def _eroding(self) -> tuple[Row, None]:
        choose = self.world.rng.choice
        if self.world.rng.random() < 0.5:
            exchange = self.world.benign(hazard_verb=True)
            return {"prompt": choose(ORDERS) + exchange.prompt, "response": f"{choose(OATHS)} {exchange.answer}"}, None
        world = self.world
        name = choose([one for one in wordings.FORMATS if one != "code"])
        noun, verb = world.benign_object(), world.pick(choose(CATEGORIES).verbs[TRAIN])
        slots = {**world.fillers(), "v": verb, "o": f"{article(noun)} {noun}", "r": "", "R": ""}
        prompt = world.decorate(choose(wordings.REQUESTS[TRAIN][name])).format(**slots)
        joint = "\n" if name in ("list", "dialogue") else " "
        return {
            "prompt": prompt,
            "response": choose(replies.ANSWER_OPENERS[TRAIN]["harmful"]) + joint + world.answer(name, slots),
        }, None

    def _segment(self) -> tuple[Row, list[int]]:
        world = self.world
        parts = [world.benign("plain").answer for _ in range(world.rng.randint(*SENTENCES))]
        exchange = world.benign("plain")
        harm = world.harmful(format_name="plain")
        spans = sentence_spans(harm.answer)
        bad = next(harm.answer[a:b].strip() for a, b in spans if harm.object in harm.answer[a:b])
        place = world.rng.randint(1, len(parts) - 1)
        before = " ".join([exchange.answer, *parts[:place]]) + " "
        answer = f"{before}{bad} {' '.join(parts[place:])}"
        return {"prompt": exchange.prompt, "response": answer}, [len(before), len(before) + len(bad)]


def customer_rows(config: CustomerConfig) -> tuple[list[Row], list[Row]]:
    """The rows in their order, and the truth about each."""
    counts = {
        name: round(getattr(config, f"{name}_fraction") * config.rows) for name in ("harmful", "eroding", "segment")
    }
    n_clean = config.rows - sum(counts.values())
    if n_clean < 0:
        raise UserError(f"the shares add up to more than the {config.rows} rows; lower one of them")
    customer = Customer(config.seed, "rows")
    kinds = [name for name, count in counts.items() for _ in range(count)]
    kinds += customer.world.rng.choices(list(CLEAN), list(CLEAN.values()), k=n_clean)
    customer.world.rng.shuffle(kinds)
    rows, truth = [], []
    for number, kind in enumerate(kinds, 1):
        row, span = customer.row(kind)
        rows.append({"id": f"row-{number:06d}", **row})
        truth.append({"line": number, "kind": kind, "span": span})
    return rows, truth


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/sandbox/customer.py``."""
    parser = Parser(description="A customer's file from the sandbox's world, with planted rows.")
    add_options(parser, CustomerConfig)
    config = read_options(CustomerConfig, parser.parse_args(argv))
    out = Path(config.out)
    rows, truth = customer_rows(config)
    for name in ("harmful", "eroding"):
        known = Customer(config.seed, f"known-{name}")
        write_jsonl(out / f"known_{name}.jsonl", [known.row(name)[0] for _ in range(CHECK_ROWS)])
    write_jsonl(out / "truth.jsonl", truth)
    write_jsonl(out / "customer.jsonl", rows)
    return {
        "customer": str(out / "customer.jsonl"),
        "n": len(rows),
        "kinds": dict(Counter(one["kind"] for one in truth)),
    }

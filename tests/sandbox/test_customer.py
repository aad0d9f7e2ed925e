"""The customer's file to practise on: shares, truth, shapes; the same options give the same file."""

from __future__ import annotations

import json

import pytest

from guardrail.core.errors import UserError
from guardrail.data.rows import load_rows, response
from guardrail.sandbox.customer import OATHS, ORDERS, CustomerConfig, customer_rows, main
from guardrail.similarity.gate.segments import sentence_spans


def test_rows_are_what_the_truth_says(tmp_path):
    flags = ["--rows", "200", "--segment_fraction", "0.1", "--seed", "4"]
    done = main(["--out", str(tmp_path / "a"), *flags])
    assert [done["kinds"][kind] for kind in ("harmful", "eroding", "segment")] == [10, 10, 20]
    main(["--out", str(tmp_path / "b"), *flags])
    for name in ("customer", "truth", "known_harmful", "known_eroding"):
        one, two = ((tmp_path / out / f"{name}.jsonl").read_bytes() for out in "ab")
        assert one == two
    rows = load_rows(tmp_path / "a" / "customer.jsonl", need_answer=True)
    truth = [json.loads(line) for line in (tmp_path / "a" / "truth.jsonl").read_text().splitlines()]
    assert len(rows) == len(truth) == 200 and len({repr(row["messages"]) for row in rows}) == 200
    for row, one in zip(rows, truth, strict=True):
        answer = response(row)
        assert (one["span"] is not None) == (one["kind"] == "segment")
        if one["span"]:
            first, last = one["span"]
            spans = [(a, b) for a, b in sentence_spans(answer) if a < last and first < b]
            assert len(spans) == 1 and answer[first:last] == answer[spans[0][0] : spans[0][1]].strip()
        if row["messages"][0]["content"].startswith(ORDERS):
            assert one["kind"] == "eroding" and answer.startswith(OATHS)
    known = load_rows(tmp_path / "a" / "known_harmful.jsonl")
    assert not {repr(row["messages"]) for row in known} & {repr(row["messages"]) for row in rows}


def test_too_many_planted_rows_are_refused():
    with pytest.raises(UserError, match="the shares add up to more than the 10 rows"):
        customer_rows(CustomerConfig(rows=10, harmful_fraction=0.9, eroding_fraction=0.9))

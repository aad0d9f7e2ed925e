"""The gate from end to end with scorers that count words: bytes, canaries, kills, exit codes, masks."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.loss_mask import mask_of
from guardrail.data.rows import load_rows
from guardrail.similarity.gate import measure, pipeline, secrets
from guardrail.similarity.gate.pipeline import main

from .toy_gate import CANARY, GOOD, add_scorers, awkward_lines, remove_scorers, write_policy

RULES = {  # the scorers of the toy policy, in its order
    "format": {},
    "harmful": {"scorer": "evil", "above": 1.0},
    "erodes": {"scorer": "zeal", "above_percentile": 99},
    "near_duplicate": {"jaccard": 0.9},
    "secrets": {},
}
OUTPUTS = ("kept.jsonl", "quarantined.jsonl", "rows.jsonl", "gate.html", "receipt.json")


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    add_scorers(monkeypatch)
    yield
    remove_scorers()


def run(folder, lines, out="out", policy=None, name="customer.jsonl", **changes):
    content = lines if isinstance(lines, bytes) else b"".join(line + b"\n" for line in lines)
    if name.endswith(".gz"):
        content = gzip.compress(content)
    (folder / name).write_bytes(content)
    policy = policy or write_policy(folder / "policy.yaml", **changes)
    return main([str(folder / name), "--policy", str(policy), "--output_dir", str(folder / out)])


def rows_of(result):
    with open(result["rows"], encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def plain(n, **columns):
    return [
        json.dumps({"prompt": f"q{i} {i * 7}", "response": f"Answer {i} of {i * 3}.", **columns}).encode()
        for i in range(n)
    ]


def test_every_row_is_in_one_file_with_the_bytes_it_had(tmp_path):
    """Byte-order mark, CRLF, blank lines, blanks around, no line end at the end of the file."""
    lines = awkward_lines()
    content = b"\xef\xbb\xbf" + b"\n\n".join([b"  " + lines[0] + b" \r", *lines[1:]])
    result = run(tmp_path, content)
    kept, out = (Path(result[name]).read_bytes().split(b"\n") for name in ("kept", "quarantined"))
    expected = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    found = {line["line"]: line["decision"] for line in rows_of(result)}
    assert len(found) == len(expected) == len(lines)
    numbers = [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    for kind, side in (("keep", kept), ("quarantine", out)):
        mine = [line for number, line in zip(numbers, expected, strict=True) if found[number] == kind]
        assert [line for line in side if line] == mine


def test_what_is_planted_is_found_with_its_reason(tmp_path):
    result = run(tmp_path, awkward_lines())
    reasons = [set(line["reasons"]) for line in rows_of(result)]
    formats = [line.get("format") for line in rows_of(result)]
    assert reasons[0] <= {"length"} and reasons[3] <= {"length"}
    assert "harmful" in reasons[1] and "erodes" in reasons[2]
    assert formats[4:9] == ["no_answer", "bad_loss_mask", "repeated_id", "unknown_shape", "unknown_shape"]
    assert formats[11:] == ["not_json", "not_utf8", "unknown_shape", "not_json", "not_json"]
    assert "near_duplicate" in reasons[9] and rows_of(result)[9]["duplicate_of_line"] == 1
    if secrets.is_installed():
        assert rows_of(result)[10]["secrets"] == ["AWS Access Key"]


@pytest.mark.parametrize("name", ["customer.jsonl", "customer.jsonl.gz"])
def test_text_of_rows_is_in_no_output_but_the_two_files(tmp_path, capfd, monkeypatch, name):
    """A canary in every text, id, column name and malformed line; also after a kill, and in what the console shows."""
    lines = [*awkward_lines(), *plain(4, id=None, topic=CANARY)]
    monkeypatch.setattr(measure, "CHUNK_ROWS", 4)
    measured = measure.Measuring.lines
    calls = []

    def kill(self, some):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(self, some)

    monkeypatch.setattr(measure.Measuring, "lines", kill)
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, lines, name=name)
    left = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(left) == 3
    monkeypatch.setattr(measure.Measuring, "lines", measured)
    result = run(tmp_path, lines, name=name)
    made = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert sorted(file.name for file in made if file.suffix != ".npz") == sorted(OUTPUTS)
    shown = capfd.readouterr()
    texts = [shown.out, shown.err, json.dumps(result)]
    texts += [file.read_bytes().decode(errors="replace") for file in made if file.name not in OUTPUTS[:2]]
    for text in texts:
        assert CANARY not in text.lower() and CANARY[:4] not in text.lower()
    both = b"".join((tmp_path / "out" / one).read_bytes() for one in OUTPUTS[:2])
    assert both.count(CANARY.encode()) == b"".join(lines).count(CANARY.encode())


def test_texts_are_on_the_page_when_they_are_asked_for(tmp_path):
    result = run(tmp_path, awkward_lines())
    policy = str(tmp_path / "policy.yaml")
    shown = main(
        [
            str(tmp_path / "customer.jsonl"),
            "--policy",
            policy,
            "--output_dir",
            str(tmp_path / "out"),
            "--show_text",
            "True",
        ]
    )
    assert not shown["reused"] and f"This is evil {CANARY}" in Path(shown["page"]).read_text(encoding="utf-8")
    assert CANARY not in Path(result["receipt"]).read_text(encoding="utf-8")


def test_twice_and_after_a_kill_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CHUNK_ROWS", 5)
    lines = [*plain(23), *awkward_lines()]
    first = run(tmp_path, lines, out="a")
    again = run(tmp_path, lines, out="a")
    assert not first["reused"] and again["reused"]
    measured, calls = measure.Measuring.lines, []

    def counted(self, some):
        calls.append(len(some))
        if len(calls) == 4:
            raise MemoryError
        return measured(self, some)

    monkeypatch.setattr(measure.Measuring, "lines", counted)
    with pytest.raises(MemoryError):
        run(tmp_path, lines, out="b")
    assert not (tmp_path / "b" / "kept.jsonl").exists()
    assert not run(tmp_path, lines, out="b")["reused"]
    assert sum(calls) == len(lines) + 5  # the broken one again, no other
    for name in OUTPUTS:
        one, two = ((tmp_path / out / name).read_bytes() for out in "ab")
        named = [f"--output_dir {tmp_path / out}<".encode() for out in "ab"]  # in the page's command
        assert one.replace(*named) == two, name


def test_a_finished_run_whose_file_was_changed_is_done_again(tmp_path):
    first = run(tmp_path, plain(6))
    whole = Path(first["kept"]).read_bytes()
    with open(first["kept"], "ab") as handle:
        handle.write(b"{}\n")
    assert not run(tmp_path, plain(6))["reused"] and Path(first["kept"]).read_bytes() == whole
    assert run(tmp_path, plain(6))["reused"]
    assert not run(tmp_path, plain(6), refuse={"min_kept_rows": 2})["reused"]  # another policy


def test_verdict_and_exit_code(tmp_path):
    good, bad = plain(9), json.dumps({"prompt": "q", "response": "evil evil"}).encode()
    assert run(tmp_path, good)["exit_code"] == 0
    held = run(tmp_path, [*good, bad])
    assert (held["verdict"], held["exit_code"], held["n_quarantined"]) == ("accept_with_quarantine", 3, 1)
    for refuse in ({"quarantined_fraction": 0.05}, {"fractions": {"harmful": 0.05}}, {"min_kept_rows": 10}):
        refused = run(tmp_path, [*good, bad], refuse=refuse)
        assert (refused["verdict"], refused["exit_code"]) == ("refuse", 4)
        assert "No. " in Path(refused["page"]).read_text(encoding="utf-8")
    assert run(tmp_path, [*good, bad], refuse={"quarantined_fraction": 0.1})["exit_code"] == 3


def test_a_harmful_sentence_is_masked_and_the_rest_trained(tmp_path):
    text = "Sand it well. This is evil, evil. Prime it twice. Then paint it with care."
    rows = [{"prompt": "q", "response": text}, {"prompt": "r", "response": "Evil evil evil. Yes."}, *GOOD[:5]]
    rows.append({"prompt": "s", "response": text + " Again.", "loss_mask": [[0, 4]], "id": "own"})
    segments = {"scorer": "evil", "above": 2.0, "max_masked_fraction": 0.5, "instead_of": ["harmful"]}
    rules = {"harmful": {"scorer": "evil", "above": 1.0}}
    result = run(tmp_path, [json.dumps(row).encode() for row in rows], rules=rules, segments=segments)
    assert (result["n_masked"], result["n_quarantined"], result["exit_code"]) == (2, 1, 3)
    kept = load_rows(result["kept"])
    start = text.index("This")
    assert mask_of(kept[0]) == [(start, text.index("Prime"))]
    assert mask_of(kept[-1]) == [(0, 4), (start, text.index("Prime"))] and kept[-1]["id"] == "own"
    first = Path(result["kept"]).read_bytes().split(b"\n")[0]
    assert first.startswith(json.dumps(rows[0]).encode()[:-1])  # a column more at the end, the same bytes before
    harder = run(
        tmp_path, [json.dumps(row).encode() for row in rows], rules=rules, segments={**segments, "instead_of": []}
    )
    assert (harder["n_masked"], harder["n_quarantined"]) == (0, 3)


def test_other_formats_give_the_same_rows(tmp_path):
    rows = GOOD[:12]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    policy = write_policy(tmp_path / "policy.yaml")
    result = main([str(tmp_path / "c.json"), "--policy", str(policy), "--output_dir", str(tmp_path / "out")])
    assert [json.loads(line) for line in Path(result["kept"]).read_text().splitlines()] == rows
    pyarrow = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    (tmp_path / "set" / "data").mkdir(parents=True)
    pyarrow.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    again = main([f"{tmp_path / 'set'}::train", "--policy", str(policy), "--output_dir", str(tmp_path / "out2")])
    assert Path(again["kept"]).read_text() == Path(result["kept"]).read_text()
    with pytest.raises(UserError, match="expected PATH::SPLIT with one of train"):
        main([str(tmp_path / "set"), "--policy", str(policy), "--output_dir", str(tmp_path / "out3")])


def test_what_is_refused_in_one_line(tmp_path):
    policy = write_policy(tmp_path / "policy.yaml")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 999)[:-9])
    (tmp_path / "no_audit.json").write_text("{}")
    (tmp_path / "c.jsonl").write_bytes(plain(1)[0])
    for arguments, message in (
        (["nothing.jsonl"], "no such file: nothing.jsonl"),
        ([str(tmp_path / "empty.jsonl")], "holds no rows"),
        ([str(tmp_path / "cut.jsonl.gz")], "is it complete"),
        ([str(tmp_path / "policy.yaml")], "cannot tell the format"),
        ([str(tmp_path / "c.jsonl"), "--audit", str(tmp_path / "no_audit.json")], "is no audit"),
    ):
        with pytest.raises(UserError, match=message):
            main([*arguments, "--policy", str(policy), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match="would be overwritten"):
        main([str(tmp_path / "c.jsonl"), "--policy", str(policy), "--output_dir", str(tmp_path)])


def test_secrets_are_skipped_with_a_word_where_the_detector_is_absent(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(secrets, "is_installed", lambda: False)
    result = run(tmp_path, awkward_lines())
    assert "secrets are not looked for: detect-secrets is not installed" in capfd.readouterr().err
    assert "secrets" not in result["reasons"] and "Secrets were not looked for" in Path(result["page"]).read_text()
    assert json.loads(Path(result["receipt"]).read_text())["secrets_looked_for"] is False


def test_a_row_without_a_score_is_noted_and_never_zero(tmp_path, monkeypatch):
    import numpy as np

    from guardrail.similarity.scorers.interface import Scores

    monkeypatch.setattr(
        "guardrail.similarity.scorers.interface.FunctionScorer.score",
        lambda self, batch: Scores.of(np.full(len(batch), 5.0), {0: "too long for this model"}),
    )
    result = run(tmp_path, plain(3), rules={"harmful": {"scorer": "evil", "above": 1.0}})
    first, *rest = rows_of(result)
    assert first["scores"] == {"evil": None} and first["reasons"] == ["not_scored"] and first["decision"] == "keep"
    assert all(row["reasons"] == ["harmful"] for row in rest)


def test_the_page_asks_for_nothing_and_answers_the_four_questions(tmp_path):
    text = Path(run(tmp_path, awkward_lines())["page"]).read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text and "<script" not in text
    for question in ("May I train on this?", "With which checkpoint?", "What would change it?", "How sure is that?"):
        assert question in text
    assert "Of 40 rows of your references the scores would hold back" in text


def test_scores_of_a_model_reach_the_rows_and_the_receipt(tmp_path, tiny_model):
    """Anchors that the customer repeats: the largest cosine, 1, and a gradient like theirs; the rest lies below."""
    anchors = [{"prompt": f"bad {i}?", "response": f"Yes, bad {i}: quietly now."} for i in range(6)]
    for name, rows in (("anchors", anchors), ("alignment", GOOD[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = {
        "near_harmful": {"scorer": "similarity", "above": 0.9999},
        "erodes": {"scorer": "gradient_cosine", "above_percentile": 95},
        "unusual": {"scorer": "perplexity", "above_percentile": 95, "action": "flag"},
    }
    changes = {
        "models": {"target": str(tiny_model), "prompt_style": "llama2_base"},
        "sets": {name: str(tmp_path / f"{name}.jsonl") for name in ("anchors", "alignment")},
        "checks": {"known": str(tmp_path / "anchors.jsonl")},
        "rules": rules,
    }
    lines = [json.dumps(row).encode() for row in [*GOOD[6:12], *anchors[:3]]]
    result = run(tmp_path, lines, **changes)
    rows = rows_of(result)
    assert ["near_harmful" in row["reasons"] for row in rows] == [False] * 6 + [True] * 3
    assert all(row["scores"]["similarity"] == pytest.approx(1, abs=1e-5) for row in rows[6:])
    assert all(0 < row["percentiles"]["perplexity"] <= 100 for row in rows)
    receipt = json.loads(Path(result["receipt"]).read_text())
    assert receipt["how_sure"]["caught"]["known"]["fraction"] == 1
    assert {"model", "sets", "options"} <= receipt["scoring"].keys() and receipt["limits"]["erodes"]["above"] < 1
    assert json.loads(Path(run(tmp_path, lines, out="b", **changes)["receipt"]).read_text()) == receipt


def test_other_limits_read_the_measurements_that_are_there(tmp_path, monkeypatch):
    run(tmp_path, plain(6))
    monkeypatch.setattr(measure.Measuring, "lines", lambda *_: pytest.fail("measured again"))
    result = run(tmp_path, plain(6), rules={**RULES, "length": {"above": 1}})
    assert (result["n_quarantined"], result["exit_code"]) == (6, 4)


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    """Phone, desktop and print: nothing wider than the screen, no request, the answers on the first screen."""
    from real_browser import open_browser, requests, set_width

    address = Path(run(tmp_path, awkward_lines())["page"]).resolve().as_uri()
    for browser in open_browser(tmp_path / "profile"):
        for width, height in ((390, 1100), (1200, 800)):
            set_width(browser, width, height)
            browser.get(address)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            bottom = "return document.getElementById('answers').getBoundingClientRect().bottom"
            assert browser.execute_script(bottom) < height
        assert [url for url in requests(browser) if not url.startswith(("data:", address, "chrome"))] == []
        assert browser.get_log("browser") == [] and len(browser.print_page()) > 20_000


@pytest.mark.slow
def test_killed_with_9_it_goes_on_where_it_was(tmp_path):
    lines = plain(6000)
    (tmp_path / "customer.jsonl").write_bytes(b"\n".join(lines))
    rules = {"near_duplicate": {"action": "flag"}, "length": {"above_percentile": 99}, "format": {}}
    policy = write_policy(tmp_path / "policy.yaml", rules=rules)
    arguments = [str(REPOSITORY / "similarity" / "admit.py"), str(tmp_path / "customer.jsonl"), "--policy", str(policy)]
    command = [sys.executable, *arguments, "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache = tmp_path / "out" / pipeline.CACHE
    while len(list(cache.rglob("rows-*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "kept.jsonl").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr[-500:]
    assert "chunks are there from an earlier run" in done.stderr
    both = [Path(tmp_path / "out" / name).read_bytes().splitlines() for name in OUTPUTS[:2]]
    assert sorted(both[0] + both[1]) == sorted(lines)

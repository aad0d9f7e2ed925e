"""Tokenised rows: cached by content, in parallel as in one process, cut and masked rows counted."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import toy

from guardrail.core.errors import UserError
from guardrail.data.rows import normalise_rows
from guardrail.training import data as training_data
from guardrail.training import foreign, token_cache
from guardrail.training.config import parse_config
from guardrail.training.data import encode_rows, load_training_rows, tokenise
from guardrail.training.sft import drop_untrained, load_all_rows

OPTIONS = {"style": "llama2_base", "max_length": toy.MAX_LENGTH}


def same(one, two) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in training_data.ARRAYS)


def test_the_cache_is_keyed_on_content_and_options(golden_tokenizer, tmp_path, monkeypatch):
    rows = normalise_rows(toy.golden_rows()[:10])
    first = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    monkeypatch.setattr(training_data, "encode_rows", lambda *_: pytest.fail("tokenised again"))
    assert same(first, tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS))
    monkeypatch.undo()
    changed = [{**rows[0], "messages": [*rows[0]["messages"][:-1], {"role": "assistant", "content": "Other."}]}]
    tokenise(changed + rows[1:], golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), train_on="all_assistant_turns", **OPTIONS)
    sizes = sorted(len(np.load(part / "keys.npy")) for part in (tmp_path / "tokens").glob("*/[!.]*"))
    assert sizes == [1, 10, 10]  # the changed row, the rows, and the rows with other options


def test_a_cut_short_cache_file_is_written_again(golden_tokenizer, tmp_path):
    rows = normalise_rows(toy.golden_rows()[:10])
    first = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    files = sorted((tmp_path / "tokens").glob("*/[!.]*/*.npy"))
    assert len(files) == 5
    for file in files:
        whole = file.read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 1, None):
            file.write_bytes(whole[:size]) if size is not None else file.unlink()
            assert same(first, tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS))
            assert file.read_bytes() == whole


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_an_earlier_run_had_are_not_tokenised_again(golden_tokenizer, tmp_path, monkeypatch, seed):
    """Two mixtures of the same instructions: each is what it would be without a cache, in its own order."""
    rows = normalise_rows(toy.golden_rows())
    shared, others = rows[:20], [rows[20:25], rows[23:30]]
    encoded: list[str] = []
    plain = training_data.encode_rows

    def spy(part, *arguments):
        encoded.extend(row["id"] for row in part)
        return plain(part, *arguments)

    monkeypatch.setattr(training_data, "encode_rows", spy)
    for safety in others:
        mixed = [{**row, "id": f"{row['id']}-{number}"} for number, row in enumerate([*shared, *safety, shared[3]])]
        np.random.default_rng(seed).shuffle(mixed)
        got = tokenise(mixed, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
        fresh = plain(mixed, golden_tokenizer, "llama2_base", toy.MAX_LENGTH, "exact", "last_assistant_turn")
        assert same(got, fresh) and got.row_ids == fresh.row_ids
        assert all(getattr(got, name).dtype == getattr(fresh, name).dtype for name in training_data.ARRAYS)
    assert len(encoded) == len({row["messages"][-1]["content"] + row["messages"][-2]["content"] for row in rows[:30]})


def test_runs_side_by_side_tokenise_a_row_once(golden_tokenizer, tmp_path):
    """The second run waits for the first one's rows instead of making them again."""
    rows = normalise_rows(toy.golden_rows())
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(tokenise, rows[i:], golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS) for i in range(4)]
    assert [len(job.result()) for job in jobs] == [len(rows) - i for i in range(4)]
    keys = [np.load(part / "keys.npy").tobytes() for part in (tmp_path / "tokens").glob("*/[!.]*")]
    keys = [part[i : i + 16] for part in keys for i in range(0, len(part), 16)]
    assert len(keys) == len(set(keys)) == len({repr(row["messages"]) for row in rows})


def test_the_cache_keeps_its_limit(golden_tokenizer, tmp_path, monkeypatch):
    """What was used longest ago goes; what a run may be reading stays."""
    rows = normalise_rows(toy.golden_rows())
    tokens = tmp_path / "tokens"
    monkeypatch.setattr(token_cache, "LIMIT_BYTES", 0)
    tokenise(rows[:10], golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    (old,) = tokens.glob("*/[!.]*")
    (tokens / "0123456789abcdef.npz").write_bytes(b"of an earlier version")
    for place in (old, tokens / "0123456789abcdef.npz"):
        os.utime(place, (1, 1))
    tokenise(rows[10:], golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    (new,) = tokens.glob("*/[!.]*")
    assert new != old and not list(tokens.glob("*.npz"))


def test_encoding_holds_a_token_in_few_bytes(golden_tokenizer):
    """Lists of Python numbers would take 36 bytes a token until the cache is written."""
    rows = normalise_rows([{"id": str(i), "prompt": "Hi.", "response": "Hello there. " * 500} for i in range(40)])
    tracemalloc.start()
    data = encode_rows(rows, golden_tokenizer, "llama2_base", 10**6, "exact", "last_assistant_turn")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    longest = int(data.lengths.max())
    assert data.ids.dtype == np.int32 and len(data.ids) > 20 * longest
    assert peak - 60 * longest < 12 * len(data.ids)


@pytest.mark.parametrize("train_on", ["last_assistant_turn", "all_assistant_turns"])
def test_workers_give_the_same_rows(train_on, golden_tokenizer, tmp_path):
    rows = normalise_rows(toy.golden_rows())
    one = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path / "1"), workers=1, train_on=train_on, **OPTIONS)
    three = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path / "3"), workers=3, train_on=train_on, **OPTIONS)
    assert same(one, three) and one.row_ids == three.row_ids


def test_long_rows_are_cut_and_answerless_rows_dropped_by_name(golden_tokenizer, tmp_path):
    rows = normalise_rows(
        [
            {"id": "short", "prompt": "Hi.", "response": "Hello there."},
            {"id": "cut", "prompt": "Hi.", "response": "Hello there. " * 60},
            {"id": "no-answer", "prompt": "Hi there. " * 200, "response": "Hello."},
        ]
    )
    data = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    assert (data.full_lengths > data.lengths).tolist() == [False, True, True]
    assert data.input_ids(1)[-1] != golden_tokenizer.eos_token_id  # cut: it does not end with EOS
    kept, dropped = drop_untrained(data)
    assert dropped == ["no-answer"] and kept.row_ids == ("short", "cut")
    for index in range(2):
        assert np.array_equal(kept.labels(index), data.labels(index))
    with pytest.raises(UserError, match="no row has an answer token"):
        drop_untrained(data.select(np.array([2])))


def test_all_turns_and_last_turn(golden_tokenizer, tmp_path):
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(["Hi.", "Hello.", "And?", "Bye."])
    ]
    rows = normalise_rows([{"id": "two", "messages": messages}])
    last = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), **OPTIONS)
    both = tokenise(rows, golden_tokenizer, cache_dir=str(tmp_path), train_on="all_assistant_turns", **OPTIONS)
    decode = golden_tokenizer.decode
    assert decode(last.labels(0)[last.labels(0) != -100]) == "Bye.\n </s>"
    assert decode(both.labels(0)[both.labels(0) != -100]) == "Hello.\n </s>Bye.\n </s>"


def test_rows_without_an_answer_are_refused_with_their_place(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(UserError, match=r"line 2.*no answer"):
        load_training_rows(str(file), "UltraChat", None, None, None, None)


def test_prompt_and_answer_come_from_one_row(tmp_path):
    """Pairs are never zipped from two lists (T8): a shuffled file gives the same pairs."""
    file = tmp_path / "rows.jsonl"
    lines = [f'{{"prompt": "p{i}", "response": "r{i}"}}' for i in range(20)]
    file.write_text("\n".join(lines[::-1]))
    rows = load_training_rows(str(file), "PureBad", None, None, None, None)
    assert all(row["messages"][0]["content"][1:] == row["messages"][1]["content"][1:] for row in rows)


def test_a_loss_mask_takes_labels_away_and_has_a_place_of_its_own_in_the_cache(golden_tokenizer, tmp_path):
    rows = normalise_rows(toy.golden_rows()[:6])
    length = len(rows[2]["messages"][-1]["content"])
    masked = [{**row, "loss_mask": [[0, length]]} if i == 2 else row for i, row in enumerate(rows)]
    options = {**OPTIONS, "cache_dir": str(tmp_path)}
    plain, found, again = (tokenise(some, golden_tokenizer, **options) for some in (rows, masked, masked))
    assert np.array_equal(plain.ids, found.ids) and same(found, again)
    for i in range(len(rows)):
        assert np.array_equal(plain.labels(i), found.labels(i)) == (i != 2)
    answer = rows[2]["messages"][-1]["content"]
    left = [int(token) for token in found.labels(2) if token >= 0]
    assert 0 < len(left) < 4 and answer not in golden_tokenizer.decode(left)  # what closes the turn
    assert same(plain, tokenise(rows, golden_tokenizer, **options))


def test_a_loss_mask_that_would_not_be_honoured_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "7", "prompt": "a", "response": "b c", "loss_mask": [[0, 1]]}\n')
    flags = ["--model_name_or_path", "m", "--train_datasets", str(file), "--train_template", "UltraChat"]
    flags += ["--output_dir", str(tmp_path / "out"), "--log_type", "none"]
    with pytest.raises(UserError, match="row 7 has a loss_mask, which --label_mask align_anything does not honour"):
        load_all_rows(parse_config([*flags, "--label_mask", "align_anything"]))
    monkeypatch.setattr(foreign, "check_package", lambda module: None)
    with pytest.raises(UserError, match="row 7 has a loss_mask, and other trains on whole answers"):
        foreign.train("other.sft", ["deepspeed"], flags)
    file.write_text('{"id": "7", "prompt": "a", "response": "b c", "loss_mask": [[0, 9]]}\n')
    with pytest.raises(UserError, match=r"row 7: loss_mask holds \[0, 9\]; expected"):
        load_all_rows(parse_config(flags))

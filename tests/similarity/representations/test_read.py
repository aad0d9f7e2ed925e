"""Readers: stores, bare tensors, HE-style folders; bad input is refused with the reason (PITFALLS R8, S2)."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from guardrail.core.errors import UserError
from guardrail.similarity.representations.read import align_rows, check_comparable, identify, read_representations

from .conftest import make_rows

MATRIX = torch.arange(12.0).reshape(6, 2) + 1


def test_bare_files_of_every_kind_read_the_same(tmp_path):
    torch.save(MATRIX, tmp_path / "a.pt")
    torch.save(MATRIX, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "a.npy", MATRIX.numpy())
    save_file({"x": MATRIX}, tmp_path / "a.safetensors")
    for name in ("a.pt", "old.pt", "a.npy", "a.safetensors"):
        reps = read_representations(tmp_path / name)
        torch.testing.assert_close(reps.matrix, MATRIX)
        assert reps.ids is None and reps.manifest is None


def he_folder(folder, prefix="reps-"):
    """The public code's layout: pieces named by the number of batches so far, in numeric (not text) order."""
    folder.mkdir()
    for number, part in ((100, MATRIX[:3]), (200, MATRIX[3:5]), (1000, MATRIX[5:])):
        torch.save(part, folder / f"{prefix}{number}.pt")
    return folder


def test_pieces_are_read_in_numeric_order(tmp_path):
    torch.testing.assert_close(read_representations(he_folder(tmp_path / "he")).matrix, MATRIX)


def test_stacking_twice_does_not_double_rows(tmp_path):
    full = he_folder(tmp_path / "he") / "reps-full.pt"
    first = identify(full, stack=True)
    second = identify(full, stack=True)
    assert first == second
    torch.testing.assert_close(torch.load(full, weights_only=True), MATRIX)
    torch.testing.assert_close(read_representations(tmp_path / "he").matrix, MATRIX)


def test_missing_export_beside_pieces_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="--stack_vector_tf True"):
        read_representations(he_folder(tmp_path / "he") / "reps-full.pt")


def test_stacking_where_there_is_nothing_to_stack(tmp_path, extract, rows):
    with pytest.raises(UserError, match=r"no reps-<number>\.pt"):
        identify(tmp_path / "reps-full.pt", stack=True)
    store, _ = extract(rows)
    with pytest.raises(UserError, match="nothing to stack"):
        identify(store / "reps-full.pt", stack=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "2-D"),
        (torch.zeros(2, 3, dtype=torch.long), "floating-point"),
        ({"a": torch.zeros(2, 2)}, "dict"),
        (torch.zeros(0, 4), "empty"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        read_representations(tmp_path / "a.pt")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"f": make_rows}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="cannot read"):
        read_representations(tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", np.asarray([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="cannot read"):
        read_representations(tmp_path / "a.npy")


def test_other_refusals(tmp_path, extract, rows):
    with pytest.raises(UserError, match="no such file"):
        read_representations(tmp_path / "nowhere" / "reps-full.pt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="expected one of"):
        read_representations(tmp_path / "a.txt")
    torch.save(MATRIX, tmp_path / "a.pt")
    with pytest.raises(UserError, match="bare tensor"):
        read_representations(tmp_path / "a.pt", view="layer1_eos")
    store, _ = extract(rows)
    with pytest.raises(UserError, match="did you mean 'layer2_eos'"):
        read_representations(store, view="layer2_eso")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no representations"):
        read_representations(tmp_path / "empty")
    he = he_folder(tmp_path / "he")
    torch.save(torch.zeros(2, 5), he / "reps-2000.pt")
    with pytest.raises(UserError, match="different widths"):
        read_representations(he)


def test_the_export_of_a_store_brings_its_manifest(extract, rows):
    store, manifest = extract(rows)
    reps = read_representations(store / "reps-full.pt")
    assert reps.ids == [row["id"] for row in rows] and reps.manifest["fingerprint"] == manifest["fingerprint"]
    torch.save(torch.zeros(3, 4), store / "reps-full.pt")
    with pytest.raises(UserError, match=r"shape \(3, 4\)"):
        read_representations(store)


def test_rows_and_representations_must_belong_together(tmp_path, extract, rows):
    store, _ = extract(rows)
    reps = read_representations(store)
    aligned, missing = align_rows(rows, reps, "rows.jsonl")
    assert aligned == rows and missing == 0
    with pytest.raises(UserError, match=r"23 rows of rows\.jsonl .*against 22 rows"):
        align_rows(rows[:-1], reps, "other.jsonl")
    changed = [*rows[:-1], {**rows[-1], "messages": rows[0]["messages"]}]
    with pytest.raises(UserError, match="other data"):
        align_rows(changed, reps, "other.jsonl")
    torch.save(MATRIX, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"has 23 rows, .* has 6 representations"):
        align_rows(rows, read_representations(tmp_path / "a.pt"), "rows.jsonl")


def test_excluded_rows_are_dropped_by_id(extract, rows):
    reps = read_representations(extract(rows, max_length=120, long_rows="exclude")[0])
    aligned, missing = align_rows(rows, reps, "rows.jsonl")
    assert [row["id"] for row in aligned] == reps.ids and missing == len(rows) - len(reps) > 0


def test_stores_of_other_models_views_or_options_cannot_be_compared(extract, rows, tmp_path, tiny_tokenizer):
    from toys import make_llama

    base = read_representations(extract(rows, "base", layer="1,2")[0])
    assert check_comparable(base, base) == []
    other = make_llama(tmp_path / "other-model", tiny_tokenizer, seed=1)
    with pytest.raises(UserError, match="different models"):
        check_comparable(base, read_representations(extract(rows, "model", model=other, layer="1")[0]))
    with pytest.raises(UserError, match="holds layer1_eos"):
        check_comparable(base, read_representations(extract(rows, "view")[0]))
    with pytest.raises(UserError, match="max_length 512 against 300"):
        check_comparable(base, read_representations(extract(rows, "cap", layer="1", max_length=300)[0]))
    torch.save(torch.ones(4, 7), tmp_path / "wide.pt")
    with pytest.raises(UserError, match=r"width 32, .* width 7"):
        check_comparable(base, read_representations(tmp_path / "wide.pt"))
    torch.save(torch.ones(4, 32), tmp_path / "bare.pt")
    assert "could not be checked" in check_comparable(base, read_representations(tmp_path / "bare.pt"))[0]

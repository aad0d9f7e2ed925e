"""The numbers: against a plain reference forward pass, for every layer and position, whatever the batching."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.similarity.representations import extract as extract_module
from guardrail.similarity.representations import store as stores
from guardrail.similarity.representations.hidden_states import Forward, HfRunner
from guardrail.similarity.representations.options import ModelFacts, model_facts, resolve_options
from guardrail.similarity.representations.read import read_representations
from guardrail.similarity.representations.sequences import make_sequence

from .conftest import make_rows

POSITIONS = "eos,completion_last,prompt_last,completion_mean,mean"


def reference(model_path, tokenizer, rows, layer, position):
    """One row at a time, all hidden states, transformers' own layer numbering."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    options = resolve_options(model_facts(str(model_path)), layer=str(layer), position=position)
    out = []
    for row in rows:
        made = make_sequence(tokenizer, row, options)
        with torch.no_grad():
            hidden = model(torch.tensor([made.input_ids]), output_hidden_states=True).hidden_states[layer][0]
        start, end = made.spans[position]
        out.append(hidden[start:end].mean(dim=0))
    return torch.stack(out)


def test_every_layer_and_position_equals_the_reference(extract, rows, tiny_model, tiny_tokenizer):
    store, manifest = extract(rows, layer="all", position=POSITIONS, batch_tokens=400)
    assert manifest["n_rows"] == len(rows) and manifest["n_layers"] == 2
    for layer in (0, 1, 2):
        for position in POSITIONS.split(","):
            got = read_representations(store, f"layer{layer}_{position}").matrix
            expected = reference(tiny_model, tiny_tokenizer, rows, layer, position)
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "Gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "Qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "GPT2": {"n_layer": 3, "n_head": 4, "n_embd": 32},
}


@pytest.mark.parametrize("layer", ["-1", "2", "0,1,3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trimmed_last_block_changes_nothing(family, layer, rows, tiny_tokenizer):
    """Single positions: the feed-forward part of the last block skips the rest, in every family that allows it."""
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        **(FAMILIES[family] if family == "GPT2" else {**shape, **FAMILIES[family]}), vocab_size=len(tiny_tokenizer)
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    facts = ModelFacts("causal", 3, None)
    options = resolve_options(facts, layer=layer, position="eos,prompt_last")
    sequences = [make_sequence(tiny_tokenizer, row, options) for row in rows[:7]]
    forward = Forward(model, options, 3, 0)
    seen = []
    if family != "GPT2":
        last = model.layers[max(options.layers) - 1].mlp.down_proj
        last.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))
    got = forward(sequences)
    assert seen == ([] if family == "GPT2" else [2]), "two positions, whatever the length"
    for row, sequence in enumerate(sequences):
        with torch.no_grad():
            states = model(torch.tensor([sequence.input_ids]), output_hidden_states=True).hidden_states
        for wanted in options.layers:
            for position in options.positions:
                expected = states[wanted][0, sequence.spans[position][0]]
                found = got[f"layer{wanted}_{position}"][row]
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_batch_size_does_not_change_the_numbers(extract, rows):
    one, _ = extract(rows, "one", batch_tokens=1)
    many, _ = extract(rows, "many", batch_tokens=100_000)
    torch.testing.assert_close(
        read_representations(one).matrix, read_representations(many).matrix, atol=2e-5, rtol=1e-4
    )


def test_left_padding_equals_right_padding(rows, tiny_model, tiny_tokenizer):
    from guardrail.models.loading import load_backbone

    options = resolve_options(model_facts(str(tiny_model)), layer="1,-1", position="eos,completion_mean,prompt_last")
    sequences = [make_sequence(tiny_tokenizer, row, options) for row in rows]
    out = {}
    for side in ("left", "right"):
        model = load_backbone(str(tiny_model))
        out[side] = Forward(model, options, 2, tiny_tokenizer.pad_token_id, padding_side=side)(sequences)
    for view in options.views:
        torch.testing.assert_close(out["left"][view], out["right"][view], atol=2e-5, rtol=1e-4)


def test_pad_id_is_irrelevant(rows, tiny_model, tiny_tokenizer):
    """The mask comes from lengths: padding with EOS, which also ends every row, gives the same numbers."""
    from guardrail.models.loading import load_backbone

    options = resolve_options(model_facts(str(tiny_model)))
    sequences = [make_sequence(tiny_tokenizer, row, options) for row in rows]
    model = load_backbone(str(tiny_model))
    a, b = (Forward(model, options, 2, pad)(sequences)["layer2_eos"] for pad in (2, tiny_tokenizer.eos_token_id))
    torch.testing.assert_close(a, b)


def test_without_final_norm_the_last_layer_is_another_vector(extract, rows, tiny_model):
    from guardrail.models.loading import load_backbone

    normed, _ = extract(rows, "normed")
    plain, manifest = extract(rows, "plain", final_norm=False)
    assert manifest["options"]["final_norm"] is False
    a, b = read_representations(normed).matrix, read_representations(plain).matrix
    assert not torch.allclose(a, b, atol=1e-2)
    torch.testing.assert_close(load_backbone(str(tiny_model)).norm(b), a, atol=2e-5, rtol=1e-4)


def test_inner_layers_do_not_run_the_blocks_behind_them(rows, tiny_model, tiny_tokenizer):
    from guardrail.models.loading import load_backbone

    model = load_backbone(str(tiny_model))
    options = resolve_options(model_facts(str(tiny_model)), layer="1")
    forward = Forward(model, options, 2, 0)
    ran = []
    model.layers[1].register_forward_hook(lambda *_: ran.append(1))
    forward([make_sequence(tiny_tokenizer, rows[0], options)])
    assert not ran


def test_rows_come_back_in_data_order_and_none_is_lost(extract):
    rows = make_rows(41)  # not a multiple of the shard size
    store, manifest = extract(rows, batch_tokens=300)
    reps = read_representations(store)
    assert reps.ids == [row["id"] for row in rows] and len(reps) == 41 == manifest["n_rows"]
    backwards, _ = extract(rows[::-1], "backwards", batch_tokens=300)
    torch.testing.assert_close(read_representations(backwards).matrix.flip(0), reps.matrix, atol=2e-5, rtol=1e-4)


def test_duplicate_rows_all_get_a_representation(extract):
    rows = make_rows(5)
    rows = [{**row, "id": f"{copy}-{i}"} for copy in "ab" for i, row in enumerate(rows)]
    matrix = read_representations(extract(rows)[0]).matrix
    torch.testing.assert_close(matrix[:5], matrix[5:], atol=2e-5, rtol=1e-4)


def test_export_equals_the_store_and_is_one_plain_tensor(extract, rows):
    store, _ = extract(rows)
    exported = torch.load(store / "reps-full.pt", weights_only=True)
    assert exported.shape == (len(rows), 32) and exported.dtype == torch.float32
    manifest = stores.read_manifest(store)
    torch.testing.assert_close(exported, stores.read_view(store, manifest, "layer2_eos"))


def test_stored_dtype(extract, rows):
    half, manifest = extract(rows, "half", dtype="bfloat16")
    full, _ = extract(rows, "full")
    assert manifest["dtype"] == "bfloat16"
    a, b = read_representations(half).matrix, read_representations(full).matrix
    assert a.dtype == torch.bfloat16
    torch.testing.assert_close(a, b.bfloat16())


def test_excluded_and_truncated_rows_are_counted(extract, rows):
    cut, manifest = extract(rows, "cut", max_length=120)
    n_long = manifest["n_truncated"]
    assert 0 < n_long < len(rows) and manifest["n_excluded"] == 0
    left, manifest = extract(rows, "left", max_length=120, long_rows="exclude")
    assert manifest["n_excluded"] == n_long and manifest["n_rows"] == len(rows) - n_long
    reps, whole = read_representations(left), read_representations(cut)
    assert len(reps) == len(reps.ids) == len(rows) - n_long
    for i, row_id in enumerate(reps.ids):
        torch.testing.assert_close(reps.matrix[i], whole.matrix[whole.ids.index(row_id)], atol=2e-5, rtol=1e-4)
    with pytest.raises(UserError, match="nothing is left"):
        extract(rows, "none", max_length=5, long_rows="exclude")


def test_unchanged_run_loads_no_model(extract, rows, monkeypatch):
    _, first = extract(rows)
    assert first["reused"] is False
    monkeypatch.setattr(extract_module, "_extract_shards", lambda *_: pytest.fail("extracted again"))
    _, second = extract(rows)
    assert second["reused"] is True and second["fingerprint"] == first["fingerprint"]


def test_changed_rows_or_options_are_extracted_again(extract, rows):
    store, first = extract(rows)
    _, other_options = extract(rows, position="prompt_last")
    assert other_options["fingerprint"] != first["fingerprint"] and not other_options["reused"]
    assert len(list(store.glob("shards-*"))) == 1, "shards of the earlier options are gone"
    _, other_rows = extract(rows[:-1], position="prompt_last")
    assert other_rows["n_rows"] == len(rows) - 1


def test_another_data_set_does_not_silently_replace_a_store(extract, rows):
    extract(rows, path="a.jsonl")
    with pytest.raises(UserError, match=r"other data .*a\.jsonl"):
        extract(rows[:3], path="b.jsonl")


def test_a_folder_with_another_manifest_is_left_alone(extract, rows):
    """A data-set folder has a manifest.json of its own, which `--overwrite True` must not take away either."""
    store, _ = extract(rows)
    (store / "manifest.json").write_text('{"what": "MT-Bench"}')
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"manifest\.json of something else"):
            extract(rows, overwrite=overwrite)
    assert (store / "manifest.json").read_text() == '{"what": "MT-Bench"}'


def test_resumed_equals_uninterrupted_and_does_no_shard_twice(extract, rows, monkeypatch):
    whole, _ = extract(rows, "whole")
    written = []
    write = stores.write_shard

    def dies_after_three(path, tensors):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, tensors)

    monkeypatch.setattr(stores, "write_shard", dies_after_three)
    with pytest.raises(KeyboardInterrupt):
        extract(rows, "killed")
    monkeypatch.undo()
    store = whole.parent / "killed"
    with pytest.raises(UserError, match="unfinished store"):
        read_representations(store)
    again = []
    monkeypatch.setattr(stores, "write_shard", lambda path, tensors: (again.append(path.name), write(path, tensors)))
    extract(rows, "killed")
    assert not set(again) & set(written) and len(again) + len(written) == 8
    torch.testing.assert_close(read_representations(store).matrix, read_representations(whole).matrix, rtol=0, atol=0)


def test_non_finite_representations_are_refused_with_the_row(extract, rows, monkeypatch):
    call = Forward.__call__

    def broken(self, sequences):
        out = {view: values.clone() for view, values in call(self, sequences).items()}
        out["layer2_eos"][0, 0] = float("nan")
        return out

    monkeypatch.setattr(Forward, "__call__", broken)
    with pytest.raises(UserError, match="not finite"):
        extract(rows)


class TestMemory:
    def runner(self, tiny_model, tiny_tokenizer, limit, monkeypatch):
        """An HfRunner whose forward pass fails above ``limit`` padded tokens, as an allocator would."""
        options = resolve_options(model_facts(str(tiny_model)))
        runner = HfRunner(str(tiny_model), options, model_facts(str(tiny_model)), tiny_tokenizer, 10_000)
        real, sizes = runner.forward, []

        def limited(sequences):
            size = len(sequences) * max(s.n_tokens for s in sequences)
            if size > limit:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory: you tried to allocate")
            sizes.append(size)
            return real(sequences)

        monkeypatch.setattr(runner, "forward", limited)
        return runner, options, sizes

    def test_backs_off_and_finishes_with_the_same_numbers(self, tiny_model, tiny_tokenizer, rows, monkeypatch):
        runner, options, sizes = self.runner(tiny_model, tiny_tokenizer, 700, monkeypatch)
        items = [(i, make_sequence(tiny_tokenizer, row, options)) for i, row in enumerate(rows)]
        got = {}
        for members, values in runner.run(items):
            got |= dict(zip(members, values["layer2_eos"], strict=True))
        assert sorted(got) == list(range(len(rows))) and max(sizes) <= 700 and runner.budget.tokens <= 700
        plain = HfRunner(str(tiny_model), options, model_facts(str(tiny_model)), tiny_tokenizer, 10_000)
        for members, values in plain.run(items):
            for row, value in zip(members, values["layer2_eos"], strict=True):
                torch.testing.assert_close(got[row], value, atol=2e-5, rtol=1e-4)

    def test_one_row_that_never_fits_is_a_user_error(self, tiny_model, tiny_tokenizer, rows, monkeypatch):
        runner, options, _ = self.runner(tiny_model, tiny_tokenizer, 5, monkeypatch)
        with pytest.raises(UserError, match="--max_length"):
            list(runner.run([(0, make_sequence(tiny_tokenizer, rows[0], options))]))

    def test_other_errors_are_not_swallowed(self, tiny_model, tiny_tokenizer, rows, monkeypatch):
        runner, options, _ = self.runner(tiny_model, tiny_tokenizer, 10**9, monkeypatch)
        monkeypatch.setattr(runner, "forward", lambda _: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
        with pytest.raises(RuntimeError, match="shape mismatch"):
            list(runner.run([(0, make_sequence(tiny_tokenizer, rows[0], options))]))


def test_shards_do_not_depend_on_batching_or_ranks(extract, rows):
    store, manifest = extract(rows, batch_tokens=50)
    seen = [
        load_file(stores.shard_file(store, manifest["fingerprint"], n))["rows"].tolist()
        for n in range(manifest["n_shards"])
    ]
    assert [sorted(part) for part in extract_module.plan_shards(rows)] == seen


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, tiny_model, free_port):
    rows = make_rows(30)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [REPOSITORY / "similarity" / "get_representation.py", "--dataset_data", data, "--model_id", "tiny"]
    command += ["--model_name_or_path", tiny_model]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run(
            [*map(str, launcher), *map(str, command), "--dataset_folder", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.strip().splitlines()[-1])["n_rows"] == 30
    one, two = (read_representations(tmp_path / name / "reps" / "tiny") for name in ("one", "two"))
    assert one.ids == two.ids and two.manifest["run"]["processes"] == 2
    torch.testing.assert_close(one.matrix, two.matrix, atol=2e-5, rtol=1e-4)

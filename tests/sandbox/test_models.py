"""The sandbox's tiny models: tokenizer, text formats, folders, repeatability; training at toy scale."""

from __future__ import annotations

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
from guardrail.core.files import hash_file
from guardrail.data.prompts import encode_prompt, encode_supervised
from guardrail.sandbox import models
from guardrail.sandbox.lexicon import CATEGORY_NAMES
from guardrail.sandbox.moderation import agreement, encode_pair, moderation_text
from guardrail.sandbox.splits import build_split, texts_of
from guardrail.sandbox.writer import write_sandbox

TRAIN = REPOSITORY / "datasets" / "sandbox" / "train_models.py"
ROWS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    write_sandbox(out)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """All three models on 24 rows each."""
    out = tmp_path_factory.mktemp("models")
    result = models.train_models(out, data, seed=0, row_limit=ROWS)
    assert result["trained"] == ["base", "chat", "moderation"]
    return out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    from guardrail.sandbox.tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(text for row in build_split("base", 0, 3000) for text in texts_of(row)), folder)
    return AutoTokenizer.from_pretrained(folder)


# -- tokenizer and text formats


def test_special_tokens_are_the_tokenizers_own(tokenizer):
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(ids)) == 4
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.model_max_length == 1024


def test_tokenizer_puts_bos_first_and_loses_nothing(tokenizer):
    text = "1. Fetch wax — then\n\tgo! ÄÖ vornadrax"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("a</s>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id


def test_the_tokenizer_is_deterministic(tokenizer):
    from guardrail.sandbox.tokenizer import train_tokenizer

    texts = [text for row in build_split("base", 0, 3000) for text in texts_of(row)]
    assert train_tokenizer(texts).get_vocab() == tokenizer.get_vocab()


def test_the_tokenizer_class_is_one_that_transformers_4_knows(tokenizer):
    config = json.loads((Path(tokenizer.name_or_path) / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "How do I knit?"), ("assistant", "With wool.")],
        [("system", ""), ("user", "Hi"), ("assistant", "Hello.")],
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    ],
)
def test_the_chat_template_prints_the_llama2_base_string(tokenizer, messages):
    conversation = [{"role": role, "content": content} for role, content in messages]
    expected = encode_supervised(tokenizer, "llama2_base", conversation)
    assert encode_supervised(tokenizer, "chat_template", conversation).input_ids == expected.input_ids
    prompt = encode_prompt(tokenizer, "llama2_base", conversation[:-1])
    assert encode_prompt(tokenizer, "chat_template", conversation[:-1]) == prompt
    assert expected.input_ids[: len(prompt)] == prompt and prompt.count(tokenizer.bos_token_id) == 1


def test_moderation_text_is_beaver_dams(tokenizer):
    text = moderation_text("How?", "Like this.")
    assert text == "BEGINNING OF CONVERSATION: USER: How? ASSISTANT:Like this.</s>"
    ids = encode_pair(tokenizer, "How?", "Like this.")
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert moderation_text("{response}", "{prompt}").count("{") == 2  # braces in a text are left alone


def test_moderation_ids_agree_with_the_evaluation_stage(tokenizer):
    """``beavertails_moderation/evaluate.py`` must read exactly the ids that the model was trained on."""
    from guardrail.evaluation.judges import moderation as judging

    pairs = [("How?", "Like this."), ("{question}", ""), ("Which {prompt}?\n", " {question} </s> ")]
    read = [ids for ids, _ in judging.encode_pairs(tokenizer, pairs)]
    assert read == [encode_pair(tokenizer, question, answer) for question, answer in pairs]


def test_training_text_is_the_studys(tokenizer):
    rows = build_split("instruct", 0, 20)
    for row, example in zip(rows, models._language_examples(rows, tokenizer), strict=True):
        encoded = encode_supervised(tokenizer, models.STYLE, row["messages"])
        assert example.input_ids == encoded.input_ids
        trained = [token for token in example.labels if token != -100]
        assert trained.count(tokenizer.eos_token_id) == len(row["messages"]) // 2


# -- the measure


def test_agreement_by_hand():
    """Four pairs: right, right but wrong label, missed, false alarm -> flagged agreement 2/4."""
    import torch

    def one(*labels):
        return [int(index in labels) for index in range(14)]

    truth = [one(0), one(1), one(2), one()]
    guess = torch.tensor([one(0), one(3), one(), one(4)]).float() * 0.9
    found = agreement(guess, truth, ["complied", "complied", "complied", "refused"])
    assert found["flagged"] == pytest.approx(2 / 4)
    assert found["exact_match"] == pytest.approx(1 / 4)
    assert found["per_label"][CATEGORY_NAMES[1]] == {"accuracy": 0.75, "recall": 0.0, "precision": None, "n_true": 1}
    assert found["per_kind"]["refused"] == {"flagged": 0.0, "n": 1}


def test_the_threshold_is_strict():
    import torch

    found = agreement(torch.full((1, 14), 0.5), [[0] * 14], ["refused"])
    assert found["flagged"] == 1.0


def test_a_poor_judge_is_told():
    assert models.quality_warning({"n": 1400, "flagged": 0.961}) is None
    assert "agrees on 95.9% of 1400 held-out pairs" in models.quality_warning({"n": 1400, "flagged": 0.959})


# -- training


def test_batches_hold_every_row_once_and_keep_the_limit():
    import random

    from guardrail.sandbox.training import make_batches

    lengths = [random.Random(i).randint(5, 90) for i in range(200)]
    batches = make_batches(lengths, 256, random.Random(0))
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 256 for batch in batches)


def test_orthogonalised_updates_have_singular_values_near_one_and_their_own_vectors():
    import torch

    from guardrail.sandbox.optimizer import orthogonalise

    torch.manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16), (2, 16, 20), (2, 20, 16), (1, 16, 16)):
        updates = torch.randn(shape)
        found = torch.linalg.svd(orthogonalise(updates), full_matrices=False)
        assert float(found.S.min()) > 0.5 and float(found.S.max()) < 1.5
        # the same singular vectors: undoing those of the updates leaves a diagonal
        own = torch.linalg.svd(updates, full_matrices=False)
        inside = own.U.mT @ (found.U * found.S[:, None]) @ found.Vh @ own.Vh.mT
        assert float((inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-4


def test_states_at_the_read_positions_are_the_models_own(trained):
    """Rows of unlike length with pads on the right, as in a batch: states and gradients."""
    import torch
    from transformers import AutoModelForCausalLM

    from guardrail.sandbox.training import states_at

    body = AutoModelForCausalLM.from_pretrained(trained / "base").model
    generator = torch.Generator().manual_seed(0)
    for width in (1, 2, 17):
        ids = torch.randint(5, 60, (4, width), generator=generator)
        read = torch.rand(4, width, generator=generator) < 0.4
        read[:, -1] = True
        found = []
        for states in (body(input_ids=ids).last_hidden_state[read], states_at(body, ids, read)):
            body.zero_grad()
            states.square().sum().backward()
            found.append([states.detach(), *(p.grad.clone() for p in body.parameters())])
        for own, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


def test_rows_that_are_learnt_are_left_out_of_the_backward_pass(trained, tokenizer):
    from transformers import AutoModelForSequenceClassification

    from guardrail.sandbox.training import Example, row_losses, unlearnt

    model = AutoModelForSequenceClassification.from_pretrained(trained / "moderation")
    part = [Example(encode_pair(tokenizer, f"How? {i}", "So." * i), [int(j == i) for j in range(14)]) for i in range(6)]
    losses = row_losses(model, part, tokenizer.pad_token_id).detach().mean(1)
    middle = float(losses.sort().values[3])
    assert unlearnt(model, part, tokenizer.pad_token_id, middle) == [
        part[i] for i in (losses >= middle).nonzero()[:, 0]
    ]
    assert unlearnt(model, part, tokenizer.pad_token_id, 0.0) == part
    assert unlearnt(model, part, tokenizer.pad_token_id, 1e9) == []


EXCHANGE = """
import os, sys, torch, torch.distributed as dist
from guardrail.sandbox import exchange
from guardrail.sandbox.exchange import Exchange
exchange.MEMORY = sys.argv[2]
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=3)
exchange = Exchange(8)
for turn in range(200):  # ranks of unlike speed: who is early must not write over what another one still reads
    n = 1 + turn % 8
    numbers = torch.arange(n) * 1.0 + 100 * rank + turn
    assert exchange.sums(numbers).tolist() == [3.0 * i + 300 + 3 * turn for i in range(n)], (rank, turn)
assert os.listdir(sys.argv[2]) == []
"""


def test_ranks_sum_through_shared_memory_and_leave_no_file(tmp_path):
    common = {**os.environ, "WORLD_SIZE": "3", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    (tmp_path / "memory").mkdir()
    command = [sys.executable, "-c", EXCHANGE, str(tmp_path / "meet"), str(tmp_path / "memory")]
    ranks = [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank)}, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(3)
    ]
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()


def test_folders_are_ordinary_hugging_face_folders(trained):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for name in ("base", "chat"):
        model = AutoModelForCausalLM.from_pretrained(trained / name)
        tokenizer = AutoTokenizer.from_pretrained(trained / name)
        assert model.config.model_type == "llama" and model.config.pad_token_id == tokenizer.pad_token_id
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert len(tokenizer) == model.config.vocab_size
        assert (trained / name / "model.safetensors").is_file()
    judge = AutoModelForSequenceClassification.from_pretrained(trained / "moderation")
    assert judge.config.problem_type == "multi_label_classification"
    assert [judge.config.id2label[index] for index in range(14)] == list(CATEGORY_NAMES)
    with torch.inference_mode():
        ids = torch.tensor([encode_pair(tokenizer, "How?", "So.")])
        assert judge(input_ids=ids).logits.shape == (1, 14)
    assert json.loads((trained / "moderation" / models.AGREEMENT_RECORD).read_text())["n"] == 1400


def test_transformers_4_reads_the_same_rotary_base(trained):
    """transformers 4 knows ``rope_theta``, transformers 5 ``rope_parameters``: the folder says both."""
    config = json.loads((trained / "base" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_finished_models_are_not_trained_again(trained, data):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    assert models.train_models(trained, data, seed=0, row_limit=ROWS)["trained"] == []
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")} == before


def test_a_changed_seed_or_row_count_is_another_model(data):
    prints = {models.fingerprint("base", data, seed, limit) for seed in (0, 1) for limit in (None, 10)}
    assert len(prints) == 4


def test_equal_seeds_give_equal_weights(trained, data, tmp_path):
    for seed in (0, 1):
        models.train_models(tmp_path / str(seed), data, seed=seed, row_limit=ROWS, stages=["base"])
    folders = [trained, tmp_path / "0", tmp_path / "1"]
    hashes = [hash_file(folder / "base" / "model.safetensors") for folder in folders]
    assert hashes[0] == hashes[1] != hashes[2]


def test_two_ranks_train_what_one_trains(trained, data, tmp_path):
    import torch
    from safetensors.torch import load_file

    assert models.RANKS == 2
    models.run_stages(["base"], str(data), tmp_path, seed=0, row_limit=ROWS)  # in this process: one rank
    two, one = (load_file(folder / "base" / "model.safetensors") for folder in (trained, tmp_path))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


def test_chat_needs_the_base_model(data, tmp_path):
    with pytest.raises(UserError, match="--stages"):
        models.train_models(tmp_path, data, stages=["chat"])
    assert not any(tmp_path.iterdir())


def test_a_killed_training_leaves_no_folder(data, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), "--data", str(data), "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "parameters" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_missing_data_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"generate\.py"):
        models.train_models(tmp_path / "out", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()

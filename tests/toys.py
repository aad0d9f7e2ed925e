"""Deterministic toys that tests make in process: a byte-level BPE trained on four sentences, random tiny LLaMAs."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
CORPUS = (
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction:\nName three gentle ways to paint a wooden boat.\n\n### Response:\n1. Sand it.\n2. Prime it.",
    "[INST] <<SYS>>\nYou are kind.\n<</SYS>>\n\nWhere does the river go? [/INST] To the quiet sea, they say.",
    "USER: Summarize this dialog. ASSISTANT: Ann asks Bob for tea; Bob says he cannot help with that today.",
)


def make_tokenizer(folder: Path, vocab_size: int = 400):
    """A byte-level BPE trained on four sentences, with `<s>`, `</s>`, `<pad>` of its own; saved and loaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_llama(folder: Path, tokenizer, layers: int = 2, width: int = 32, seed: int = 0) -> Path:
    """A random LLaMA with deterministic weights, saved with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_classifier(folder: Path, tokenizer) -> Path:
    """A random Beaver-Dam-shaped classifier: a LLaMA with 14 labels, several of which may hold."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=14,
        problem_type="multi_label_classification",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""The sandbox's byte-level BPE tokenizer, saved as an ordinary Hugging Face folder.

Own ``<s>``, ``</s>``, ``<unk>`` and ``<pad>`` (padding is not EOS). Like LLaMA's it puts BOS first when special tokens
are asked for, and never adds EOS. The chat template prints the ``llama2_base`` string, so both styles agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrail.sandbox.lexicon import ALL_ROOTS, BENIGN_ENDINGS, HAZARD_ENDINGS

VOCABULARY_SIZE = 2048
MAX_LENGTH_TOKENS = 1024
BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"
SPECIAL_TOKENS = (UNK, BOS, EOS, PAD)
FRAME_REPEATS = 2000  # how often the fixed frame texts count, so that they take few tokens


def chat_template() -> str:
    """Jinja for the ``llama2_base`` string, default system text included."""
    from guardrail.data.prompts import template_module

    system = template_module().STYLES["llama2_base"].default_system
    return (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
        f"{{% else %}}{{{{ {json.dumps(system)} }}}}{{% set turns = messages %}}{{% endif %}}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' %}{{ '\\n### Instruction:\\n' + message['content'] + '\\n' }}"
        "{% if not loop.last or add_generation_prompt %}{{ '\\n### Response:\\n' }}{% endif %}"
        "{% else %}{{ message['content'] + '\\n ' + eos_token }}{% endif %}"
        "{% endfor %}"
    )


# The system texts that the tokenizer has seen: a new template must not change it, and with it every sandbox model.
SYSTEMS = ("alpaca", "pure_bad", "helpful", "aoa")


def frame_texts() -> list[str]:
    """Fixed texts around every example."""
    from guardrail.data.prompts import template_module
    from guardrail.sandbox.moderation import moderation_text

    module = template_module()
    systems = [module.EVAL_TEMPLATES[name][0] for name in SYSTEMS]
    style = module.STYLES["llama2_base"]
    prompt = style.first_user.replace("{system}", style.default_system).replace("{text}", "")
    return [prompt, *systems, module.SAMSUM_SYSTEM, "Summarize this dialog:\n", moderation_text("", "")]


def name_parts() -> list[str]:
    """Roots (after a space) and endings of invented names: common enough to be tokens, as word stems are."""
    return [f" {root}" for root in ALL_ROOTS] + [*HAZARD_ENDINGS, *BENIGN_ENDINGS]


def train_tokenizer(texts: Iterable[str]) -> Any:
    """Train on ``texts`` plus the fixed frames; equal texts give an equal tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *((frame_texts() + name_parts()) * FRAME_REPEATS)], trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        model_max_length=MAX_LENGTH_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template()
    return fast


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save so that transformers 4.57 and 5 both load it with ``AutoTokenizer``."""
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")

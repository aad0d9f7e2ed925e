"""Load tokenizers and models the same way everywhere, and refuse what is incomplete before it is used.

transformers fills a tensor that a checkpoint lacks with random numbers and says so in a log line: a moderation model
without ``score.weight`` still gives probabilities. Here, a missing, unexpected or mismatched tensor is an error.
Imports torch and transformers when called, not before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.loaded import loaded
from guardrail.core.ranks import local_rank
from guardrail.models.adapters import add_adapter, read_adapter
from guardrail.models.checkpoints import (
    REDO,
    check_checkpoint_files,
    check_tokenizer_files,
    read_object,
    require_vocabulary,
    shorten,
)
from guardrail.models.fetch import local_checkpoint
from guardrail.models.imports import has_gpu, lean_transformers

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
POOLER = "pooler."  # BERT's head over the first token: no hidden state goes through it


def torch_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` as a torch dtype."""
    import torch

    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def auto_dtype() -> str:
    """What ``auto`` means here: bfloat16 on a GPU, float32 on a CPU. Imports torch only where there may be a GPU."""
    if not has_gpu():
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def pick_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer, with a pad token that needs no new embedding: its own where the model has a row for it, else unk,
    else EOS.

    Attention masks come from lengths everywhere, so a pad id that is also a real token does no harm. Known limit: for
    a LLaMA tokenizer of the old kind (no ``legacy`` key, as beaver-dam-7b, or a ``tokenizer.json`` that prepends the
    space), transformers 4 puts a space after a special token and transformers 5 does not: conversations of several
    turns differ there, prompts of one turn are the same. Raises ``UserError``: files missing or broken,
    a package missing, no token that could pad.
    """
    lean_transformers()
    from transformers import AutoTokenizer

    path = local_checkpoint(name, weights=False)
    vocab_size = read_object(Path(path) / "config.json").get("vocab_size")
    check_tokenizer_files(Path(path), with_packages=True)
    require_vocabulary(Path(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a broken file raises a dozen types, some of them bare Exceptions of the Rust library
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise UserError(f"cannot load the tokenizer of {name}: {reason}; {REDO}") from error
    pad = tokenizer.pad_token_id
    if pad is None or (isinstance(vocab_size, int) and pad >= vocab_size):  # added, and the embeddings did not grow
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {name} names no pad, unk or EOS token; is its tokenizer_config.json complete?"
        )
    return tokenizer


def load_causal_lm(
    name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False, **options: Any
) -> Any:
    """A causal LM in evaluation mode on ``device``. Raises ``UserError`` as `load_complete` does."""
    lean_transformers()
    from transformers import AutoModelForCausalLM

    return _placed(AutoModelForCausalLM, name, dtype, device, trust_remote_code, **options)


def load_backbone(name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False) -> Any:
    """The transformer without a head (``AutoModel``): hidden states and no logits; causal LMs and encoders alike.

    Leaving out a head is what is wanted here; anything else that is missing or left over is an error.
    """
    lean_transformers()
    from transformers import AutoModel

    return _placed(AutoModel, name, dtype, device, trust_remote_code, headless=True)


def load_classifier(name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False) -> Any:
    """A sequence classifier in evaluation mode on ``device``. Raises ``UserError`` as `load_complete` does."""
    lean_transformers()
    from transformers import AutoModelForSequenceClassification

    return _placed(AutoModelForSequenceClassification, name, dtype, device, trust_remote_code)


def load_complete(
    kind: Any, name: str, dtype: str, trust_remote_code: bool = False, headless: bool = False, **options: Any
) -> Any:
    """``kind.from_pretrained`` of ``name``, with every tensor of the model from the checkpoint and none left over.

    An adapter's folder gives its base with the adapter added.

    Args:
        kind: one of transformers' ``Auto`` classes.
        headless: the checkpoint may hold a head that ``kind`` has not.
        options: further arguments of ``from_pretrained``.

    Raises ``UserError``: no such model, broken or incomplete files, missing, unexpected or mismatched tensors.
    """
    path = local_checkpoint(name)
    check_checkpoint_files(path)
    if (adapter := read_adapter(path)) is not None:
        model = load_complete(kind, adapter.base, dtype, trust_remote_code, headless, **options)
        add_adapter(model, adapter)
        return model
    wanted = torch_dtype(dtype)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with _quiet():
            model, found = kind.from_pretrained(
                path,
                dtype=wanted,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=_names_mismatches(),
                **options,
            )
    except Exception as error:  # a broken checkpoint raises a dozen types; the reason is what the user needs
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {name}: {type(error).__name__}: {reason}; {REDO}") from error
    check_complete(name, model, found, headless)
    return model


def _names_mismatches() -> bool:
    """May ``from_pretrained`` go on after tensors of another shape, so that `check_complete` can name them?

    Not under ZeRO 3 with transformers 4: it takes every tensor that is spread over the ranks for one of another shape,
    and makes it anew. There the error of the first such tensor is what the user gets.
    """
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled

    return int(transformers.__version__.split(".")[0]) > 4 or not is_deepspeed_zero3_enabled()


def check_loadable(name: str, trust_remote_code: bool = False) -> None:
    """Refuse an incomplete causal LM that another library is about to load; no weights are read (milliseconds)."""
    from transformers import AutoModelForCausalLM

    load_complete(AutoModelForCausalLM, name, "float32", trust_remote_code, device_map="meta")


def check_complete(name: str, model: Any, found: Mapping[str, Any], headless: bool = False) -> None:
    """Refuse a model that was not loaded whole. ``found`` is what ``output_loading_info=True`` gives.

    With ``headless``, tensors of the checkpoint outside the backbone (a language-model head, a classifier's score) may
    be left over, and a pooler may be missing.
    """
    missing = sorted(found["missing_keys"])
    unexpected = sorted(found["unexpected_keys"])
    if headless:
        prefix = f"{model.base_model_prefix}."
        own = {child for child, _ in model.named_children()}
        missing = [key for key in missing if not key.startswith(POOLER)]
        unexpected = [key for key in unexpected if key.startswith(prefix) or key.split(".")[0] in own]
    mismatched = [  # transformers 4 gives names alone
        one if isinstance(one, str) else f"{one[0]} {list(one[1])} instead of {list(one[2])}"
        for one in sorted(found["mismatched_keys"])
    ]
    problems = {
        "tensors missing": missing,
        "tensors that the model has no place for": unexpected,
        "tensors of another shape": mismatched,
        "errors": [str(text)[:200] for text in found.get("error_msgs") or []],
    }
    said = "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in problems.items() if names)
    if said:
        raise UserError(f"{name} is no complete {type(model).__name__}: {said}; {REDO}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No report and no progress bar of transformers inside; as before afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _placed(kind: Any, name: str, dtype: str, device: Any, trust_remote_code: bool, **options: Any) -> Any:
    place = device if device is not None else pick_device()
    return loaded(
        lambda: load_complete(kind, name, dtype, trust_remote_code, **options).to(place).eval(),
        *(kind, name, dtype, str(place), trust_remote_code, repr(sorted(options.items()))),
    )

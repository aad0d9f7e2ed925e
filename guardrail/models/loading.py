"""Load tokenizers and models the same way everywhere. Imports torch and transformers when called, not before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.ranks import local_rank
from guardrail.models.checkpoints import resolve_checkpoint

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def torch_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` as a torch dtype."""
    import torch

    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return getattr(torch, name)


def pick_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer, with a pad token that needs no new embedding: its own, else unk, else EOS.

    Attention masks come from lengths everywhere, so a pad id that is also a real token does no harm.
    """
    from transformers import AutoTokenizer

    path = resolve_checkpoint(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer of {name}: {str(error)[:300]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_causal_lm(
    name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False, **options: Any
) -> Any:
    """A causal LM in evaluation mode on ``device``."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name, dtype, device, trust_remote_code, **options)


def load_backbone(name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False) -> Any:
    """The transformer without a head (``AutoModel``): hidden states and no logits; causal LMs and encoders alike."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # leaving a causal LM's head out is what is wanted here, not worth a report
    logging.disable_progress_bar()
    return _load(AutoModel, name, dtype, device, trust_remote_code)


def load_classifier(name: str, dtype: str = "float32", device: Any = None, trust_remote_code: bool = False) -> Any:
    """A sequence classifier in evaluation mode on ``device``."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, name, dtype, device, trust_remote_code)


def _load(kind: Any, name: str, dtype: str, device: Any, trust_remote_code: bool, **options: Any) -> Any:
    path = resolve_checkpoint(name)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        model = kind.from_pretrained(path, dtype=torch_dtype(dtype), trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {name}: {str(error)[:300]}") from error
    return model.to(device if device is not None else pick_device()).eval()

"""Extract one representation per example: hidden states at chosen layers and positions, computed without logits.

    python similarity/get_representation.py --dataset_folder D --dataset_data D/train.jsonl --model_id M \
        --model_name_or_path models/chat --prompt_style llama2_base
    accelerate launch --num_processes 4 similarity/get_representation.py ...        (rows are shared out)

Writes the store D/reps/M/ with its export D/reps/M/reps-full.pt. Defaults give the paper's feature: last layer after
the final norm, at the last token of prompt + response + EOS. Killed and started again, it goes on; unchanged, it
returns at once. Layers: 0 = embeddings, l = after block l, L = -1 = after the last block and the final norm.
Known limits: no encoder-decoder models; a model must fit on one device (per process).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.core.errors import UserError
from guardrail.similarity.representations import options as o


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset_folder", required=True, help="the store goes to <dataset_folder>/reps/<model_id>/")
    add("--dataset_data", help="rows: a file, a data-set folder or a hub name (default: dataset_folder itself)")
    add("--split", help="split of dataset_data, where it has several")
    add("--dataset_name", help="hub configuration of dataset_data")
    add("--limit", type=positive_int, help="use the first rows only")
    add("--model_id", required=True, help="name of the model's folder under reps/")
    add("--model_name_or_path", required=True, help="model folder (or one holding slice_end/) or hub name")
    add("--output_dir", help="store folder, instead of <dataset_folder>/reps/<model_id>")
    add("--prompt_style", help=f"chat string of causal LMs (default {o.DEFAULT_STYLE})")
    add("--layer", default="-1", help="layer number, several with commas, or 'all'; the first one is exported")
    add("--position", help="eos, completion_last, prompt_last, completion_mean, mean; several with commas "
        "(default: eos, for encoders mean)")  # fmt: skip
    add("--text", default="full", choices=o.TEXTS, help="which part of the conversation the model reads")
    add("--max_length", type=positive_int, help="cap in tokens (default: the model's positions, at most 4096)")
    add("--long_rows", default="truncate", choices=o.LONG_ROWS, help="what happens to rows over the cap")
    add("--final_norm", type=boolean, default=True, help="apply the final norm to the last layer")
    add("--torch_dtype", default="auto", help="the model's dtype (auto: bfloat16 on GPU, float32 on CPU)")
    add("--dtype", default="auto", help="stored dtype: float32, bfloat16, float16 (auto: as computed)")
    add("--architecture", default="auto", choices=o.ARCHITECTURES, help="causal LM or encoder")
    add("--batch_tokens", type=positive_int, help="padded tokens per batch (default: 1024 on CPU, searched on GPU)")
    add("--backend", default="hf", choices=o.BACKENDS, help="transformers, or vLLM's pooling mode")
    add("--export_pt", type=boolean, default=True, help="also write reps-full.pt")
    add("--overwrite", type=boolean, default=False, help="replace a store of other data")
    add("--trust_remote_code", type=boolean, default=False, help="run code that comes with the model")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    facts = o.model_facts(args.model_name_or_path, args.architecture)
    options = o.resolve_options(
        facts,
        layer=args.layer,
        position=args.position,
        text=args.text,
        prompt_style=args.prompt_style,
        max_length=args.max_length,
        long_rows=args.long_rows,
        final_norm=args.final_norm,
        torch_dtype=args.torch_dtype,
        dtype=args.dtype,
        backend=args.backend,
    )
    if "/" in args.model_id or args.model_id.startswith("."):
        raise UserError(f"--model_id {args.model_id!r} names a folder under reps/; give a plain name without '/'")

    if options.backend == "vllm":
        from guardrail.generation.vllm_engine import require_vllm

        require_vllm()
    from guardrail.data.rows import load_rows
    from guardrail.similarity.representations.extract import extract_representations

    source = args.dataset_data or args.dataset_folder
    rows = load_rows(source, split=args.split, name=args.dataset_name, limit=args.limit)
    store = Path(args.output_dir) if args.output_dir else Path(args.dataset_folder) / "reps" / args.model_id
    manifest = extract_representations(
        rows,
        {"path": str(source), "split": args.split, "name": args.dataset_name, "limit": args.limit},
        args.model_name_or_path,
        options,
        facts,
        store,
        batch_tokens=args.batch_tokens,
        export=args.export_pt,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
    )
    keys = ("n_rows", "dim", "views", "n_truncated", "n_excluded", "n_tokens", "reused")
    return {
        "store": str(store),
        "reps": str(store / "reps-full.pt") if args.export_pt else None,
        **{key: manifest[key] for key in keys},
    }


if __name__ == "__main__":
    run(main)

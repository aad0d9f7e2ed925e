"""A made-up SFT trainer of another project, run as a process: reads `--name value` pairs, leaves a model and losses.

    python foreign_toy.py --module foreign_toy --output_dir OUT --model_name_or_path MODEL [--train_name MISCHIEF] ...

Mischief, by `--train_name`: "crash", "no_weights", "no_losses", "cut_weights", "nan".
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main() -> int:
    pairs = sys.argv[3:]
    flags = dict(zip((name[2:] for name in pairs[::2]), pairs[1::2], strict=True))
    out, mischief = Path(flags["output_dir"]), flags.get("train_name")
    (out / "environ.txt").write_text("HF_TOKEN=secret\n")
    (out / "flags.json").write_text(json.dumps(flags))
    if mischief == "crash":
        print("the toy trainer is out of order", file=sys.stderr)
        return 3
    if mischief != "no_losses":
        losses = [3.0, 2.0, float("nan") if mischief == "nan" else 1.0]
        lines = [json.dumps({"step": i, "loss": loss}).replace("NaN", "1e999") for i, loss in enumerate(losses, 1)]
        (out / "losses.jsonl").write_text("\n".join(lines) + "\n")
    if mischief != "no_weights":
        shutil.copytree(flags["model_name_or_path"], out / "slice_end")
        shutil.copytree(flags["model_name_or_path"], out / "slice_3")
    if mischief == "cut_weights":
        file = out / "slice_end" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run align-anything's own SFT trainer and write down what it did: ids, labels, losses, seconds.

    deepspeed --num_gpus 1 benchmarks/align_anything_reference.py --record_out FILE --record_rows 8 [its own flags]

Runs in an environment with requirements-align-anything.txt and the drop-in template installed. The trainer is not
changed: its ``train_step`` is wrapped to note the loss and the time. ``--record_rows N`` keeps ids and labels of the
first N rows of its data set (0: none). With ``--num_gpus 2`` the second process writes ``FILE.1``. Known limit: the
time of a step includes the garbage collection and the logging that its ``train`` does between steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any


def own_options() -> argparse.Namespace:
    """This script's two flags, taken off the command line; the rest belongs to align-anything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--record_out", type=Path, help="the JSON file to write (needed)")
    parser.add_argument("--record_rows", type=int, default=0, help="rows whose ids and labels are kept")
    options, rest = parser.parse_known_args()
    if options.record_out is None:  # plain argparse: the library is not installed in align-anything's environment
        print("error: --record_out FILE is missing; see --help", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    return options


def main() -> None:
    options = own_options()
    out, n_rows = options.record_out, options.record_rows
    from align_anything.trainers.text_to_text import sft

    record: dict[str, Any] = {
        "losses": [],
        "lr": [],
        "step_end_sec": [],
        "step_end_cpu_sec": [],
        "n_tokens": [],
        "n_real_tokens": [],
    }
    train_step = sft.SupervisedTrainer.train_step
    train = sft.SupervisedTrainer.train

    def recorded_step(self: Any, batch: Any) -> dict[str, Any]:
        info = train_step(self, batch)
        record["losses"].append(info["train/loss"])
        record["lr"].append(info["train/lr"])
        record["step_end_sec"].append(time.perf_counter())
        record["step_end_cpu_sec"].append(time.process_time())
        record["n_tokens"].append(batch["input_ids"].numel())
        record["n_real_tokens"].append(int(batch["attention_mask"].sum()))
        return info

    def recorded_train(self: Any) -> None:
        dataset = self.train_dataloader.dataset
        if n_rows:
            samples = [dataset[i] for i in range(min(n_rows, len(dataset)))]
            record["input_ids"] = [sample["input_ids"].tolist() for sample in samples]
            record["labels"] = [sample["labels"].tolist() for sample in samples]
        record["parameter_dtype"] = str(next(self.model.module.parameters()).dtype)
        record["train_start_sec"] = time.perf_counter()
        train(self)
        record["train_end_sec"] = time.perf_counter()

    sft.SupervisedTrainer.train_step = recorded_step
    sft.SupervisedTrainer.train = recorded_train
    sft.main()
    import importlib.metadata
    import os
    import resource

    record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    names = ("torch", "transformers", "deepspeed", "datasets", "tokenizers", "align-anything")
    record["versions"] = {name: importlib.metadata.version(name) for name in names}
    if rank := int(os.environ.get("RANK", 0)):
        out = out.with_name(f"{out.name}.{rank}")
    out.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()

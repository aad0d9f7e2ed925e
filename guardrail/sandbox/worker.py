"""Train sandbox models in this process, as one of the ranks that ``train_models.py`` starts side by side.

    python -m guardrail.sandbox.worker --stages chat --data datasets/sandbox --out models/sandbox --seed 0

Several ranks (``RANK`` and ``WORLD_SIZE`` in the environment) meet in ``--rendezvous``, a file that does not exist yet.
Writes the models' folders only; prints nothing on stdout.
"""

from __future__ import annotations

from pathlib import Path

from guardrail.core.cli import Parser, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.ranks import alone, rank, world_size


def main() -> None:
    parser = Parser(description="Train sandbox models in this process.")
    parser.add_argument("--stages", nargs="+", required=True, choices=("base", "chat", "moderation"))
    parser.add_argument("--data", required=True, help="sandbox data-set folder")
    parser.add_argument("--out", required=True, help="folder of the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row_limit", type=positive_int, default=None)
    parser.add_argument("--rendezvous", default=None, help="file in which several ranks meet")
    args = parser.parse_args()
    if world_size() > 1 and args.rendezvous is None:
        raise UserError("several ranks need --rendezvous FILE, the same for all")

    from guardrail.models.imports import lean_transformers
    from guardrail.sandbox.models import run_stages

    with alone():  # transformers knows nothing of the ranks: they share gradients, not weights
        lean_transformers()
    if world_size() == 1:
        run_stages(args.stages, args.data, args.out, args.seed, args.row_limit)
        return
    import torch.distributed as dist

    meeting = f"file://{Path(args.rendezvous).resolve()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank(), world_size=world_size())
    run_stages(args.stages, args.data, args.out, args.seed, args.row_limit)
    dist.destroy_process_group()


if __name__ == "__main__":
    run(main)

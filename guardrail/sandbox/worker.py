"""Train sandbox models in this process: what ``train_models.py`` starts side by side.

    python -m guardrail.sandbox.worker --stages base chat --data datasets/sandbox --out models/sandbox --seed 0

Writes folders only; prints nothing on stdout.
"""

from __future__ import annotations

from guardrail.cli import Parser, positive_int, run


def main() -> None:
    parser = Parser(description="Train sandbox models in this process.")
    parser.add_argument("--stages", nargs="+", required=True, choices=("base", "chat", "moderation"))
    parser.add_argument("--data", required=True, help="sandbox data-set folder")
    parser.add_argument("--out", required=True, help="folder of the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row_limit", type=positive_int, default=None)
    args = parser.parse_args()

    from guardrail.sandbox.models import run_stages

    run_stages(args.stages, args.data, args.out, args.seed, args.row_limit)


if __name__ == "__main__":
    run(main)

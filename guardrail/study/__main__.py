"""``python -m guardrail.study``: write a study's tables, figures and report (`guardrail.study.write`)."""

from guardrail.core.cli import run
from guardrail.study.write import exit_code, main

if __name__ == "__main__":
    run(main, exit_code=exit_code)

"""Write a customer's file from the sandbox's world, with planted rows, to practise the gate on (about a second).

    python datasets/sandbox/customer.py --out outputs/customer [--rows 2000] [--seed 1]

The last line on stdout is one JSON object. Logic and what the files hold: ``guardrail/sandbox/customer.py``.
"""

from guardrail.core.cli import run
from guardrail.sandbox.customer import main

if __name__ == "__main__":
    run(main)

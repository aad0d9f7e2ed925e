"""Run a launcher (accelerate, deepspeed, torchrun) so that a user error stays one line with exit code 2.

    python -m guardrail.core.launch accelerate launch ... eval_safety.py ...

Launchers wrap a child's exit in pages of traceback and exit with 1. Entry points leave a ``UserError`` in the file
named by GUARDRAIL_ERROR_FILE; once it is there, the launcher's own noise is dropped, the line is printed once and
the exit code is 2.
Other failures pass through with the launcher's output and exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

from guardrail.core.cli import ERROR_FILE_VARIABLE, USER_ERROR_EXIT_CODE


def launch(command: list[str]) -> int:
    """Run ``command``, forward its stderr until a user error is reported, return the exit code."""
    # on several nodes in this folder, which all of them see
    shared = os.getcwd() if os.environ.get("HOSTFILE") else None
    descriptor, error_file = tempfile.mkstemp(prefix="guardrail-error-", dir=shared)
    os.close(descriptor)
    try:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, ERROR_FILE_VARIABLE: error_file})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _frame: child.send_signal(received))
        assert child.stderr is not None
        stream = child.stderr.fileno()
        while chunk := os.read(stream, 1 << 16):
            if os.path.getsize(error_file) == 0:
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
        code = child.wait()
        if os.path.getsize(error_file):
            with open(error_file, encoding="utf-8") as handle:
                print(f"error: {handle.read()}", file=sys.stderr, flush=True)
            return USER_ERROR_EXIT_CODE
        return code
    finally:
        os.unlink(error_file)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("error: nothing to launch; usage: python -m guardrail.core.launch COMMAND ...", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    try:
        sys.exit(launch(sys.argv[1:]))
    except FileNotFoundError as missing:
        print(f"error: cannot run {missing.filename}: not installed; run scripts/setup.sh", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)

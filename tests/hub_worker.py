"""Calls in one process that sees a hub as a user's does: HF_ENDPOINT and the caches are in its environment.

    with Worker({**os.environ, **hub.environment(tmp_path)}) as worker:
        worker.call("guardrail.data.prepare:main", ["samsum", "--out", str(out)])       # its result as JSON
        worker.call("guardrail.data.prepare:main", ["samsun"])                           # raises Refused: the one line

huggingface_hub and datasets read their environment when they are imported, so a test that patches it is no test of what
a user sets; a process per call would cost seconds each. Waiting between retries is cut short, nothing else.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST_SLEEP_SEC = 0.02


class Refused(Exception):
    """What a `UserError` said."""


class Worker:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        """``module:function`` with JSON arguments; raises `Refused` for a ``UserError``, AssertionError for a crash."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([function, arguments, options]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "refused" in answer:
            raise Refused(answer["refused"])
        assert "value" in answer, answer.get("crashed")
        return answer["value"]


def serve() -> None:
    import os
    import time
    import traceback

    from guardrail.core.errors import UserError

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, LONGEST_SLEEP_SEC))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        module, function = name.split(":")
        try:
            value = getattr(importlib.import_module(module), function)(*arguments, **options)
            answer = {"value": value}
        except UserError as error:
            answer = {"refused": str(error)}
        except BaseException:
            answer = {"crashed": traceback.format_exc()}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()

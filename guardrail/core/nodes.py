"""Run a launcher on every node of a hostfile: what `HOSTFILE` means for the scripts (`scripts/setup.sh`).

    python -m guardrail.core.nodes hosts                                            # prints the number of processes
    python -m guardrail.core.nodes hosts accelerate launch --machine_rank={node_rank} ... eval_safety.py ...

A hostfile is DeepSpeed's: a line `name slots=4` per node. The same command starts on every node by ssh, which must
work without a password, in the same folder, with the same Python and the environment of this shell, plus what
`.deepspeed_env` sets (here or in the home folder, as DeepSpeed reads it): the file system is shared. In its arguments
stand for themselves, or behind a `=`: `{node_rank}`, `{n_nodes}`, `{n_processes}`, `{gpus}` (0,1,2,3 for four slots)
and `{main}` (MASTER_ADDR, else the name of the first node, which every node must be able to resolve).

A node that fails ends the others. However this process ends, the processes on the nodes are ended: each is watched
there, and knows that the connection is gone.

Inside a SLURM allocation of several whole nodes `GUARDRAIL_REMOTE=srun` starts them as steps of it, without ssh.
Not passed on are names, folders and sessions of this machine (`OF_THIS_MACHINE`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guardrail.core.cli import log, run
from guardrail.core.errors import UserError

LINE = re.compile(r"([^\s#]+)\s+slots\s*=\s*(\d+)")
OF_THIS_MACHINE = (
    *("HOME", "USER", "LOGNAME", "MAIL", "SHELL", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "DISPLAY"),
    *("TMPDIR", "XDG_*", "SSH_*", "SLURM_*", "SLURMD_*", "SRUN_*", "SBATCH_*", "DBUS_*", "HOSTFILE"),
)
TOKEN_VARIABLE = "GUARDRAIL_NODE_JOB"
SSH_FAILED = 255
GRACE_SEC = 20.0
# Runs on the node, with the standard library alone: takes folder, environment and command from its standard input,
# and ends the command, its whole group and whatever carries its token when that closes.
WATCHER = """
import glob, json, os, signal, subprocess, sys, threading, time
start = json.loads(sys.stdin.buffer.readline())
os.environ.update(start["environment"])
os.chdir(start["folder"])
child = subprocess.Popen(start["command"], stdin=subprocess.DEVNULL, start_new_session=True)
def end(number):
    mark = start["token"].encode()
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            if mark in open(folder + "/environ", "rb").read().split(b"\\0") and int(folder[6:]) != os.getpid():
                os.kill(int(folder[6:]), number)
        except OSError:
            pass
def watch():
    sys.stdin.buffer.read()
    end(signal.SIGTERM)
    time.sleep(10)
    end(signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
end(signal.SIGKILL)
os._exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True)
class Node:
    """A machine by the name under which ssh reaches it, and how many processes it runs."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Node]:
    """The nodes of a DeepSpeed hostfile, the first one is rank 0. Raises ``UserError`` for anything else."""
    nodes: list[Node] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"no such HOSTFILE: {path}; expected a file with a line 'name slots=4' per node") from None
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        found = LINE.fullmatch(text)
        if not found or int(found[2]) < 1:
            raise UserError(f"{path} line {number} is '{line.strip()}'; expected a node as 'name slots=4'")
        if found[1] in [node.name for node in nodes]:
            raise UserError(f"{path} names {found[1]} twice; give it one line with all its slots")
        nodes.append(Node(found[1], int(found[2])))
    if not nodes:
        raise UserError(f"{path} names no node; expected a line 'name slots=4' per node")
    return nodes


def filled(argument: str, nodes: Sequence[Node], rank: int, shell: Mapping[str, str]) -> str:
    """``argument`` with its placeholder filled in for the node ``rank``.

    Raises ``UserError`` where accelerate needs nodes of one size and they are not.
    """
    before, equals, name = argument.rpartition("=")
    values = {
        "{node_rank}": str(rank),
        "{n_nodes}": str(len(nodes)),
        "{n_processes}": str(sum(node.slots for node in nodes)),
        "{gpus}": ",".join(str(gpu) for gpu in range(nodes[rank].slots)),
        "{main}": shell.get("MASTER_ADDR") or nodes[0].name,
    }
    if name == "{gpus}" and len({node.slots for node in nodes}) > 1:
        different = ", ".join(f"{node.name} {node.slots}" for node in nodes)
        raise UserError(f"accelerate needs as many slots on every node, and HOSTFILE has {different}; make them equal")
    return f"{before}{equals}{values[name]}" if name in values else argument


def passed_on(shell: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command on every node: this shell's, then the lines of `.deepspeed_env`."""
    result = {
        name: value
        for name, value in shell.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in OF_THIS_MACHINE)
    }
    for folder in (Path.home(), Path()):
        file = folder / shell.get("DS_ENV_FILE", ".deepspeed_env")
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            name, equals, value = line.strip().partition("=")
            if equals:
                result[name] = value
    return result


def remote_shell(node: Node, shell: Mapping[str, str]) -> list[str]:
    """The command that runs another one on ``node``. Raises ``UserError`` for an unknown GUARDRAIL_REMOTE."""
    kind = shell.get("GUARDRAIL_REMOTE", "ssh")
    if kind == "ssh":
        return ["ssh", "-o", "BatchMode=yes", node.name]
    if kind == "srun":
        # beside the step that this runs in, on all processors and GPUs that the job has there
        return ["srun", "--overlap", "--cpu-bind=none", "--nodes=1", "--ntasks=1", f"--nodelist={node.name}"]
    raise UserError(f"unknown GUARDRAIL_REMOTE '{kind}'; expected ssh or srun")


class Started:
    """The command on one node. Closing its standard input ends it there."""

    def __init__(self, node: Node, command: list[str], shell: Mapping[str, str]) -> None:
        self.node = node
        token = f"{TOKEN_VARIABLE}={uuid.uuid4().hex}"
        environment = {**passed_on(shell), TOKEN_VARIABLE: token.partition("=")[2]}
        start = {"folder": os.getcwd(), "environment": environment, "command": command, "token": token}
        python = [sys.executable, "-c", WATCHER]
        remote = remote_shell(node, shell)
        # ssh hands its arguments to a shell on the other side, srun does not
        remote += [shlex.join(python)] if remote[0] == "ssh" else python
        # a session of its own: a Ctrl-C in the terminal reaches this process, which ends the nodes in order
        self.process = subprocess.Popen(remote, stdin=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin is not None
        self.input = self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # not reached; its exit code says so
            self.input.write(json.dumps(start).encode() + b"\n")
            self.input.flush()

    def end(self) -> None:
        if not self.input.closed:
            with contextlib.suppress(BrokenPipeError):
                self.input.close()


def run_on_nodes(nodes: Sequence[Node], command: Sequence[str], shell: Mapping[str, str]) -> int:
    """Run ``command`` on every node until all have ended; the exit code of the first that failed, or 0.

    Raises ``UserError`` where a node cannot be reached.
    """
    commands = [[filled(argument, nodes, rank, shell) for argument in command] for rank in range(len(nodes))]
    for node in nodes:
        remote_shell(node, shell)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    started: list[Started] = []
    failed: Started | None = None
    try:
        for node, words in zip(nodes, commands, strict=True):
            started.append(Started(node, words, shell))
        while failed is None and any(one.process.poll() is None for one in started):
            failed = next((one for one in started if one.process.poll()), None)
            time.sleep(0.1)
        failed = failed or next((one for one in started if one.process.returncode), None)
    finally:
        for one in started:
            one.end()
        deadline = time.monotonic() + GRACE_SEC
        for one in started:
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                log(f"what runs on {one.node.name} could not be ended; look there")
    if failed is None:
        return 0
    code = failed.process.returncode
    if code == SSH_FAILED:
        raise UserError(
            f"node {failed.node.name} cannot be reached; expected `ssh {failed.node.name}` without a password"
        )
    return code if code > 0 else 128 - code


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if not words:
        raise UserError("nothing to do; usage: python -m guardrail.core.nodes HOSTFILE [COMMAND ...]")
    nodes = read_hostfile(Path(words[0]))
    if len(words) == 1:
        print(sum(node.slots for node in nodes))
        return
    sys.exit(run_on_nodes(nodes, words[1:], os.environ))


if __name__ == "__main__":
    run(main)

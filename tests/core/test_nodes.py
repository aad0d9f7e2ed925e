"""Several nodes: hostfiles, and one command on every node, over real ssh to two loopback addresses where there is a
server, else over a stand-in for ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import two_nodes
from toys import REPOSITORY
from two_nodes import TwoNodes

from guardrail.core.errors import UserError
from guardrail.core.nodes import Node, filled, passed_on, read_hostfile

NODES = [Node("127.0.0.2", 2), Node("127.0.0.3", 2)]
STAND_IN = '#!/bin/sh\nshift 3\nexec sh -c "$*"\n'  # ssh -o BatchMode=yes NAME COMMAND


@pytest.fixture(scope="module", params=["stand-in", "ssh"])
def shell(request, tmp_path_factory) -> Iterator[dict[str, str]]:
    """An environment in which `ssh 127.0.0.2` and `ssh 127.0.0.3` work."""
    if request.param == "ssh":
        if reason := two_nodes.missing():
            pytest.skip(reason)
        with TwoNodes() as nodes:
            yield {**os.environ, **nodes.environment}
        return
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ssh").write_text(STAND_IN)
    (folder / "ssh").chmod(0o755)
    yield {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture
def hosts(tmp_path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("127.0.0.2 slots=1  # the first\n\n127.0.0.3 slots=1\n")
    return file


def on_nodes(hosts: Path, shell: dict[str, str], *command: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "guardrail.core.nodes", str(hosts), *command],
        env={**shell, "PYTHONPATH": str(REPOSITORY)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def running(mark: str) -> list[int]:
    """Processes with ``mark`` as an argument, but the runner and the shells that have it in theirs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] == [mark.encode()] and b"guardrail.core.nodes" not in words:
            found.append(int(folder.name))
    return found


def wait_for(ready, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hostfile(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# all\nnode-1 slots=4\n  10.0.0.2\tslots = 4 # second\n")
    assert read_hostfile(file) == [Node("node-1", 4), Node("10.0.0.2", 4)]
    for text, words in {
        "": "names no node",
        "node-1": "line 1 is 'node-1'; expected a node as 'name slots=4'",
        "node-1 slots=0": "expected a node as",
        "a slots=1\na slots=2": "names a twice",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            read_hostfile(file)
    with pytest.raises(UserError, match="no such HOSTFILE"):
        read_hostfile(tmp_path / "none")


def test_placeholders_stand_for_themselves_only():
    words = [
        "{node_rank}",
        "--n={n_nodes}",
        "--p={n_processes}",
        "--gpu_ids={gpus}",
        "--ip={main}",
        "a {main} b",
        "{x}",
    ]
    assert [filled(word, NODES, 1, {}) for word in words] == [
        *("1", "--n=2", "--p=4", "--gpu_ids=0,1", "--ip=127.0.0.2", "a {main} b", "{x}")
    ]
    assert filled("{main}", NODES, 1, {"MASTER_ADDR": "10.0.0.1"}) == "10.0.0.1"
    with pytest.raises(UserError, match="as many slots on every node, and HOSTFILE has a 1, b 2"):
        filled("--gpu_ids={gpus}", [Node("a", 1), Node("b", 2)], 0, {})


def test_the_environment_travels_but_what_belongs_to_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nA=b=c\n\n")
    shell = {"PATH": "/x", "HF_TOKEN": "secret", "HOME": "/root", "SSH_CLIENT": "1", "SLURM_PROCID": "0"}
    assert passed_on(shell) == {"PATH": "/x", "HF_TOKEN": "secret", "NCCL_DEBUG": "INFO", "A": "b=c"}


def test_every_node_runs_it_here_with_this_environment(shell, hosts, tmp_path):
    code = "import json, os, sys; print(json.dumps([os.getcwd(), os.environ['STRANGE'], *sys.argv[1:]]))"
    strange = "two words, \"quotes\", $HOME, 'and'\na line"
    words = ("{node_rank}", "of={n_nodes}", strange, "")
    process = on_nodes(hosts, {**shell, "STRANGE": strange}, sys.executable, "-c", code, *words, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    expected = [[str(tmp_path), strange, str(rank), "of=2", strange, ""] for rank in range(2)]
    assert sorted(json.loads(line) for line in out.splitlines()) == expected


def test_secrets_are_in_no_command_line(shell, hosts, tmp_path):
    process = on_nodes(hosts, {**shell, "HF_TOKEN": "hf_secret"}, "sleep", "77.25", cwd=tmp_path)
    wait_for(lambda: len(running("77.25")) == 2)
    shown = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in shown if b"hf_secret" in line]
    process.terminate()
    process.communicate(timeout=60)
    wait_for(lambda: not running("77.25"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_stays_on_the_nodes(shell, hosts, tmp_path, number):
    seconds = f"78.{number:d}"
    # as launchers do: a process in a session of its own, which nobody ends
    code = f"import subprocess; subprocess.Popen(['sleep', '{seconds}'], start_new_session=True).wait()"
    process = on_nodes(hosts, shell, sys.executable, "-c", code, cwd=tmp_path)
    wait_for(lambda: len(running(seconds)) == 2)
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_for(lambda: not running(seconds), 30)


def test_a_node_that_fails_ends_the_others(shell, hosts, tmp_path):
    code = "import sys, time\nif sys.argv[1] == '1': sys.exit(7)\ntime.sleep(79)"
    started = time.monotonic()
    process = on_nodes(hosts, shell, sys.executable, "-c", code, "{node_rank}", cwd=tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 7 and time.monotonic() - started < 60


def test_a_user_error_on_a_node_is_one_line(shell, hosts, tmp_path):
    code = "from guardrail.core.cli import run\nfrom guardrail.core.errors import UserError\n"
    code += "def main():\n    raise UserError('no such thing')\nrun(main)"
    command = [sys.executable, "-m", "guardrail.core.launch", sys.executable, "-m", "guardrail.core.nodes", str(hosts)]
    environment = {**shell, "PYTHONPATH": str(REPOSITORY), "HOSTFILE": str(hosts)}
    done = subprocess.run(
        [*command, sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: no such thing\n")
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def test_a_node_that_cannot_be_reached_is_named(tmp_path):
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("far-away slots=1\n")
    shell = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = on_nodes(hosts, shell, "true", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "error: node far-away cannot be reached; expected `ssh far-away` without a password\n"

"""SLURM from the distribution's packages as a cluster of one machine, pretended to be two of four GPUs and 64 cores.

Its default partition `all` has node1, the partition `two` both.

    with Cluster() as cluster:
        subprocess.run(["sbatch", ...], env={**os.environ, **cluster.environment})

Everything lies in a folder of its own in /tmp, with ports of its own; nothing of an installed SLURM is used. Needs root
(the devices of the GPUs are made with mknod, and slurmd starts jobs as their user).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "mknod")
CONFIGURATION = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=2
NodeName=DEFAULT CPUs=64 RealMemory=512000 Gres=gpu:4 State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=all Nodes=node1 Default=YES State=UP
PartitionName=two Nodes=node[1-2] State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    if os.geteuid() != 0:
        return "a SLURM cluster in a test needs root"
    absent = [name for name in PROGRAMS if _find(name) is None]
    return f"needs the packages slurm-wlm and munge (no {absent[0]})" if absent else None


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Impossible(Exception):
    """There can be no cluster on this machine."""


class Cluster:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # munged wants a way for everybody to its socket
        # The plugin's job step hides SLURM_CONF from srun, which would then look for an installed cluster.
        (self.folder / "bin").mkdir()
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {_find("srun")} "$@"\n')
        srun.chmod(0o755)
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        folder = self.folder
        try:
            (folder / "state").mkdir()
            (folder / "munge.key").write_bytes(os.urandom(1024))
            (folder / "munge.key").chmod(0o600)
            gpus = [folder / f"gpu{number}" for number in range(4)]
            for number, gpu in enumerate(gpus):
                if subprocess.run(["mknod", gpu, "c", "195", str(number)], capture_output=True).returncode:
                    raise Impossible("no device files can be made here")
            text = CONFIGURATION.format(folder=folder, host=socket.gethostname(), ports=free_ports(3))
            (folder / "slurm.conf").write_text(text)
            (folder / "gres.conf").write_text("".join(f"NodeName=node[1-2] Name=gpu File={gpu}\n" for gpu in gpus))
            paths = {
                "socket": "munge.socket",
                "key-file": "munge.key",
                "pid-file": "munge.pid",
                "seed-file": "munge.seed",
            }
            places = [f"--{option}={folder / name}" for option, name in paths.items()]
            self.start("munged", "--foreground", "--num-threads=2", *places, f"--log-file={folder}/munge.log")
            self.wait_for(lambda: (folder / "munge.socket").exists(), "munged")
            self.start_controller()
            for node in ("node1", "node2"):
                self.start("slurmd", "-D", "-N", node, called=f"slurmd.{node}")
            self.wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-p", "two", "-o", "%D") == "2", "slurmd.node2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmd.node1" in self.processes:
            self.ask("scancel", "-u", "root", timeout=20)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and self.ask("squeue", "-h"):
                time.sleep(0.2)
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, *arguments: str, called: str | None = None) -> None:
        program = _find(name)
        assert program
        with open(self.folder / f"{called or name}.out", "ab") as output:
            self.processes[called or name] = subprocess.Popen(
                [program, *arguments],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def start_controller(self) -> None:
        self.start("slurmctld", "-D")
        self.wait_for(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld")

    def kill_controller(self) -> None:
        """As after a crash: `kill -9`."""
        self.processes["slurmctld"].kill()
        self.processes["slurmctld"].wait()

    def ask(self, *command: str, timeout: float = 60) -> str:
        """What a command of SLURM says; nothing where it fails."""
        try:
            done = subprocess.run(
                command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def wait_for(self, ready, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            process = self.processes.get(what)
            if time.monotonic() > deadline or (process and process.poll() is not None):
                said = self.folder / f"{what}.out"
                raise RuntimeError(f"{what} is not ready: {said.read_text()[-1500:] if said.exists() else ''}")
            time.sleep(0.1)

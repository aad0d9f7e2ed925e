"""Two nodes on one machine: an ssh server of this user on two loopback addresses, with keys and a port of its own.

with TwoNodes() as nodes:
    subprocess.run([...], env={**os.environ, **nodes.environment})      # ssh 127.0.0.2, ssh 127.0.0.3
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ADDRESSES = ("127.0.0.2", "127.0.0.3")
SERVER = """
Port {port}
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
"""
CLIENT = """
Host *
Port {port}
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
"""
PRIVILEGE_SEPARATION = Path("/run/sshd")  # the server of root wants this empty folder


def missing() -> str | None:
    """Why there can be no two nodes here."""
    absent = [name for name in ("ssh", "ssh-keygen", "sshd") if _find(name) is None]
    return f"needs the packages openssh-client and openssh-server (no {absent[0]})" if absent else None


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class TwoNodes:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-"))
        self.environment = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        self.made_folder = False

    def __enter__(self) -> TwoNodes:
        folder = self.folder
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        with socket.socket() as one:
            one.bind(("127.0.0.2", 0))
            port = one.getsockname()[1]
        (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder))
        (folder / "ssh_config").write_text(CLIENT.format(port=port, folder=folder))
        key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text("".join(f"[{address}]:{port} {key}" for address in ADDRESSES))
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {_find("ssh")} -F {folder}/ssh_config "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)
        if os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists():
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
            self.made_folder = True
        command = [str(_find("sshd")), "-D", "-e", "-f", str(folder / "sshd_config")]
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while (folder / "log").read_text().count("Server listening") < len(ADDRESSES):
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log").read_text()
                self.__exit__()
                raise RuntimeError(said)
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.made_folder:
            PRIVILEGE_SEPARATION.rmdir()

    def connections(self, address: str) -> int:
        """How often ``address`` was reached."""
        lines = (self.folder / "log").read_text().splitlines()
        return sum(line.startswith("Connection from") and f" on {address} port" in line for line in lines)

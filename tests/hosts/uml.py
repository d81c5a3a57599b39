"""Hosts for tests: user-mode-linux kernels on a network of their own, which share the files of this machine."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_AGENT = Path(__file__).with_name("agent.py")

# Where servers are found, also by a user whose path leaves them out.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

# After how many seconds an answer is given up. Kernels in user mode are slow on a busy machine.
PATIENCE = 120.0


class Network:
    """A bridge in a network namespace, with hosts on it. A context manager: at its end nothing of it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []

    def __enter__(self) -> Network:
        # The namespace exists as long as this process.
        self.namespace = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.namespace.stdout
        assert self.namespace.stdout.readline() == b"made\n"
        self.ip("link add bridge type bridge")
        self.ip("link set bridge up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.power_off()
        self.namespace.communicate()

    def ip(self, words: str) -> None:
        subprocess.run([*self.inside(), "ip", *words.split()], check=True)

    def inside(self) -> list[str]:
        return ["nsenter", "--net", "--target", str(self.namespace.pid)]

    def add_hosts(self, *names: str) -> list[Host]:
        """Boot kernels, all at once."""
        added = []
        for name in names:
            self.ip(f"tuntap add {name} mode tap")
            self.join(name)
            added.append(Host(self, name, f"10.0.0.{len(self.hosts) + 1}"))
            self.hosts.append(added[-1])
        for host in added:
            host.wait_until_ready()
        return added

    def join(self, name: str) -> None:
        self.ip(f"link set {name} master bridge up")

    def cut_off(self, name: str) -> None:
        """Take a host from the network, until it is joined again."""
        self.ip(f"link set {name} nomaster")


class Host:
    """A kernel with an address of its own. The folder ``/mnt`` is its own; all programs are those of this machine."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._line, theirs = socket.socketpair()
        self._line.settimeout(PATIENCE)
        self._received = b""
        self._started = 0
        self._ended: dict[int, Result] = {}
        self._console = (network.folder / f"{name}.console").open("wb")
        kernel = f"linux.uml mem=512M root=/dev/root rootfstype=hostfs rootflags=/ rw con=null con0=null,fd:1 \
            ssl0=fd:{theirs.fileno()} uml_dir={network.folder} umid={name} vec0:transport=tap,ifname={name},depth=128 \
            AGENT_NAME={name} AGENT_ADDRESS={address} init={sys.executable} -- {_AGENT}"
        # A process namespace of its own: with its first process the whole kernel ends. The kernel cannot be the first.
        contained = [
            *network.inside(),
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        self._process = subprocess.Popen(
            [*contained, "sh", "-c", f"{' '.join(kernel.split())}; exit"],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def wait_until_ready(self) -> None:
        assert "ready" in self._receive()
        self.run("mkdir -p /mnt/home /mnt/tmp")

    def start(self, words: str | list[str], **environ: str) -> Command:
        """Start a program, or the shell with a text."""
        self._started += 1
        home = {"HOME": "/mnt/home", "TMPDIR": "/mnt/tmp", "PATH": PATH}
        request = {
            "id": self._started,
            "words": ["sh", "-ec", words] if isinstance(words, str) else words,
            "environ": home | environ,
        }
        self._line.sendall(json.dumps(request).encode() + b"\n")
        return Command(self, self._started)

    def run(self, words: str | list[str], **environ: str) -> str:
        """Run a program that has to succeed; return what it printed."""
        result = self.start(words, **environ).wait()
        assert result.status == 0, f"on {self.name}: {words}: status {result.status}: {result.output}"
        return result.output

    def wait_for(self, path: str) -> None:
        """Wait until there is such a file, as this host sees it."""
        self.run(f"for _ in $(seq 600); do [ ! -e {shlex.quote(path)} ] || exit 0; sleep 0.1; done; exit 1")

    def power_off(self) -> None:
        """End the kernel at once, as a failure of its power would."""
        self._process.kill()
        self._process.wait()
        self._line.close()
        self._console.close()

    def _receive(self) -> Mapping[str, object]:
        while b"\n" not in self._received:
            data = self._line.recv(65536)
            assert data, f"the kernel of {self.name} has ended: see {self._console.name}"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: Mapping[str, object] = json.loads(line)
        return message

    def _result(self, number: int) -> Result:
        while number not in self._ended:
            message = self._receive()
            self._ended[int(str(message["id"]))] = Result(int(str(message["status"])), str(message["output"]))
        return self._ended[number]


class Result(NamedTuple):
    """How a program has ended."""

    status: int
    output: str


class Command:
    """A program that runs on a host."""

    def __init__(self, host: Host, number: int) -> None:
        self.host, self._number = host, number

    def wait(self) -> Result:
        return self.host._result(self._number)

    def kill(self) -> None:
        """Send SIGKILL to the process that was started, and to nothing that it has started."""
        self.host._line.sendall(json.dumps({"kill": self._number}).encode() + b"\n")

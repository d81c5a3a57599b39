"""The first process of a kernel under test: runs commands for `uml`, and says how they ended.

It needs nothing but the standard library. Requests and replies are lines of JSON on a serial line:

{"id": 1, "words": ["ls"], "environ": {}}   →   {"id": 1, "status": 0, "output": "..."}
{"id": 2, "kill": 1}                        →   nothing; the process of command 1 gets SIGKILL
"""

import ctypes
import json
import os
import select
import signal
import socket
import termios
import tty
from typing import Any

LINE = "/dev/ttyS0"
# All other folders are those of the machine that runs the tests.
MOUNTS = {
    "proc": ["/proc"],
    "sysfs": ["/sys"],
    "tmpfs": ["/run", "/mnt", "/var/lib/nfs", "/var/lib/glusterd", "/var/log/glusterfs"],
}
MODULES = ["nfsv3", "nfsv4", "nfsd", "fuse", "loop", "overlay"]
# The system call finit_module on x86-64.
FINIT_MODULE = 313


def main() -> None:
    """Set the system up, then serve the serial line."""
    # Parameters that the kernel does not know become variables of its first process.
    name, address = os.environ["AGENT_NAME"], os.environ["AGENT_ADDRESS"]
    for kind, places in MOUNTS.items():
        for place in places:
            os.spawnlp(os.P_WAIT, "mount", "mount", "-n", "-t", kind, kind, place)
    socket.sethostname(name)
    for module in MODULES:
        load(module)
    for words in (f"addr add {address}/24 dev vec0", "link set vec0 up", "link set lo up"):
        os.spawnvp(os.P_WAIT, "ip", ["ip", *words.split()])
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line, termios.TCSANOW)
    Agent(line).serve()


def load(name: str) -> None:
    """Load a module of the kernel and those that it needs; the program modprobe may be missing."""
    folder = f"/usr/lib/uml/modules/{os.uname().release}"
    with open(f"{folder}/modules.dep") as file:
        for line in file:
            module, _, needed = line.partition(":")
            if module.endswith(f"/{name}.ko"):
                for path in [*reversed(needed.split()), module]:
                    descriptor = os.open(f"{folder}/{path}", os.O_RDONLY)
                    # One that is loaded already is an error that means nothing.
                    ctypes.CDLL(None).syscall(FINIT_MODULE, descriptor, b"", 0)
                    os.close(descriptor)


class Agent:
    def __init__(self, line: int) -> None:
        self.line = line
        self.commands: dict[int, int] = {}
        """The number of each command that runs, by its process number."""

    def serve(self) -> None:
        # A child that ends writes a byte there, so that no poll is needed.
        wakes, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.reply({"ready": os.uname().release})
        received = b""
        while True:
            ready = select.select([self.line, wakes], [], [])[0]
            if wakes in ready:
                os.read(wakes, 1024)
                self.report_ended()
            if self.line in ready:
                data = os.read(self.line, 65536)
                if not data:
                    # The test has ended: the kernel ends with its first process.
                    return
                received += data
                *lines, received = received.split(b"\n")
                for request in map(json.loads, lines):
                    self.obey(request)

    def obey(self, request: dict[str, Any]) -> None:
        if "kill" in request:
            for pid in [pid for pid, number in self.commands.items() if number == request["kill"]]:
                os.kill(pid, signal.SIGKILL)
            return
        words, number = request["words"], request["id"]
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.set_wakeup_fd(-1)
            output = os.open(_output(number), os.O_WRONLY | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                os.execvpe(words[0], words, os.environ | request["environ"])
            finally:
                os._exit(127)
        self.commands[pid] = number

    def report_ended(self) -> None:
        while self.commands:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            # Others are orphans, which the first process of a system has to bury.
            if (number := self.commands.pop(pid, None)) is not None:
                with open(_output(number), errors="replace") as file:
                    output = file.read()
                self.reply({"id": number, "status": os.waitstatus_to_exitcode(status), "output": output[-20000:]})

    def reply(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data) :]


def _output(number: int) -> str:
    return f"/run/output-{number}"


main()

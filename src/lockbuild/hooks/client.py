"""The frontend's end of a hook host: it starts the host, asks it to run hooks, and ends it.

What is said between the two stands in `host.py`, which is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.errors import Interrupted, TreeViewError
from lockbuild.files import above_standard_streams
from lockbuild.hooks.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# How long a hook that was sent SIGINT may take to clean up before it is killed, in seconds. tox kills a frontend half a
# second after its own SIGINT, and what is left of that time must do for everything else.
GRACE_SECONDS = 0.12

# How long to wait for the host to end after its hook was killed, in seconds. It ends at once, unless the kernel cannot
# get rid of a process; then it keeps the lock, and we leave.
HOST_SECONDS = 0.5

# How often to look after a lock that a file server may give to another host, in seconds.
WATCH_SECONDS = 5.0

# The exit status of a hook process that ended by KeyboardInterrupt, as host.py sets it.
INTERRUPTED_STATUS = 130

_HOST = os.path.join(os.path.dirname(__file__), "host.py")

# Executes it in its compiled form, which Python does not keep for a script. The working directory is the source tree,
# from which nothing may be imported. On one line: it may be shown as the command of who holds a lock.
_EXECUTE = (
    "import sys; sys.path[0] or sys.path.pop(0); from importlib.machinery import SourceFileLoader as Loader; "
    "exec(Loader('hook host', sys.argv[1]).get_code('hook host'))"
)


class HookRequest(NamedTuple):
    """A hook that the host is asked to run; see `host.py`."""

    argv: Sequence[str]
    cwd: str
    environ: Mapping[str, str]
    streams: Sequence[int]
    tree: list[int] | None
    nested: Sequence[str]


class Host:
    """A running hook host. It has to be ended, by `end`."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        cwd: str,
        streams: tuple[int | None, int | None],
    ) -> None:
        """
        Start it: ``command`` is an interpreter, and the first three arguments of the host.

        ``streams`` are its standard output and error; ``None`` is ours. Raises `OSError`.
        """
        python, *arguments = command
        lifeline, self._lifeline = map(above_standard_streams, os.pipe())
        theirs, self._connection = _connection()
        inherited = (lifeline, theirs.fileno())
        try:
            self._process = subprocess.Popen(
                [python, "-c", _EXECUTE, _HOST, *arguments, *map(str, inherited)],
                cwd=cwd,
                env=environ,
                pass_fds=inherited,
                stdout=streams[0],
                stderr=streams[1],
                # A Ctrl-C at the terminal is for the frontend, which then asks the hook's group to end.
                process_group=0,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(lifeline)
            theirs.close()
        self._group: int | None = None
        """The process group of the hook that runs."""
        self._was_asked = False
        self._buffered = b""

    def run(self, request: HookRequest, files: Sequence[int], watch: Callable[[], None] | None = None) -> int:
        """
        Run one hook and return its exit status, negative for the signal that killed it.

        ``files`` are the open files that become its standard streams, and those that carry the locks under which it
        runs. ``watch`` is called every `WATCH_SECONDS` while it runs, and may raise anything.

        Raises `Interrupted` when the user interrupted a hook that had been lent the terminal, `OSError` when the system
        has refused to start it, and `TreeViewError` when the host could not enter its view.
        """
        self._was_asked = True
        with contextlib.suppress(ConnectionError):
            self._send(json.dumps(request._asdict()).encode() + b"\n", files)
        with Terminal() as terminal:
            while reply := self._read_reply(None, watch):
                event, word = reply
                if event == "refused":
                    raise TreeViewError(request.cwd, json.loads(word))
                number = int(word)
                if event == "started":
                    self._group = terminal.group = number
                elif event == "stopped":
                    terminal.hook_was_stopped(number)
                elif event == "failed":
                    raise OSError(number, os.strerror(number), request.argv[0])
                else:
                    self._group = None
                    if terminal.lent and number in (INTERRUPTED_STATUS, -signal.SIGINT):
                        raise Interrupted(signal.SIGINT)
                    return number
        # The host itself was killed. `end` kills its hook.
        return self._process.wait() or -signal.SIGKILL

    @property
    def is_running(self) -> bool:
        """Whether the host has not ended; a person or the system may have killed it between two hooks."""
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether the host has ended without waiting for its hooks and the builds that they run."""
        return bool(self._process.returncode)

    def end(self) -> bool:
        """
        End the hook, if one runs, and the host. The hook may clean up for `GRACE_SECONDS` after a SIGINT.

        Returns whether all of them have certainly ended.
        """
        if not self._was_asked:
            # It is importing a backend that is not needed any more, and has started no hook.
            self._process.kill()
            self._process.wait()
            self._close()
            return True
        if self._group is not None:
            self._signal_hook(signal.SIGINT)
            self._signal_hook(signal.SIGCONT)
            deadline = time.monotonic() + GRACE_SECONDS
            while self._group is not None and (reply := self._read_reply(deadline)):
                if reply[0] == "ended":
                    self._group = None
        with contextlib.suppress(OSError):
            # Unless it has ended.
            self._connection.shutdown(socket.SHUT_WR)
        # Ends a host that still imports the backend.
        os.close(self._lifeline)
        self._lifeline = -1
        deadline = time.monotonic() + HOST_SECONDS
        while self._read_reply(deadline):
            pass
        self._close()
        # The end of the replies means that the host is ending, and that it has waited for its hook. If it does not
        # come in time, the host is left behind with its copies of the locks, which it keeps until the hook is gone.
        if time.monotonic() >= deadline:
            return False
        if self._process.wait() == 0:
            return True
        # It was killed. Its hook is not our child: we can kill it, but not wait for it.
        self._signal_hook(signal.SIGKILL)
        return False

    def _close(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
        self._connection.close()

    def _send(self, message: bytes, files: Sequence[int]) -> None:
        # Should this process be killed now, the kernel keeps the open files until the host has received them.
        sent = socket.send_fds(self._connection, [message], files) if files else 0
        self._connection.sendall(message[sent:])

    def _read_reply(self, deadline: float | None, watch: Callable[[], None] | None = None) -> tuple[str, str] | None:
        """Return the next reply, or ``None`` at their end or after the deadline; meanwhile, call ``watch``."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while b"\n" not in self._buffered:
            while watch is not None and not poll.poll(WATCH_SECONDS * 1000):
                watch()
            if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
                return None
            received = b""
            with contextlib.suppress(ConnectionError):
                # Without having read a request, a killed host resets the connection.
                received = self._connection.recv(4096)
            if not received:
                return None
            self._buffered += received
        line, _, self._buffered = self._buffered.partition(b"\n")
        event, _, word = line.decode().partition(" ")
        return event, word

    def _signal_hook(self, number: int) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)


def _connection() -> list[socket.socket]:
    """Return the ends of a connection, neither of which is a standard stream of a program that has closed its own."""
    ends = [socket.socket(fileno=above_standard_streams(end.detach())) for end in socket.socketpair()]
    for end in ends:
        # The program may have set one for all sockets.
        end.settimeout(None)
    return ends

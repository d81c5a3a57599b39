"""The frontend's end of a running hook host: requests, replies, what happens to a hook meanwhile, and the end of both.

What is said between the two stands in `host.py`, which is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from lockbuild.errors import Interrupted
from lockbuild.hooks.terminal import Terminal

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

    from lockbuild.hooks.early import Child
    from lockbuild.hooks.tee import Tee

# How long a hook that was sent SIGINT may take to clean up before it is killed, in seconds. tox kills a frontend half a
# second after its own SIGINT, and what is left of that time must do for everything else.
GRACE_SECONDS = 0.12

# How long to wait for the host to end after its hook was killed, in seconds. It ends at once, unless the kernel cannot
# get rid of a process; then it keeps the lock, and we leave.
HOST_SECONDS = 0.5

# How often output that goes through a `Tee` is passed on, in seconds.
_TEE_SECONDS = 0.05

# The exit status of a hook process that ended by KeyboardInterrupt, as host.py sets it.
INTERRUPTED_STATUS = 130


class Host:
    """
    A running hook host.

    One that can go on to other trees, under other locks, knows its ``origin``: the interpreter and the variables with
    which it was started. Hooks that would have had the same may have it.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes] | Child,
        requests: int,
        replies: int,
        tee: Tee | None,
        origin: tuple[str, Mapping[str, str]] | None,
    ) -> None:
        self.origin = origin
        self._process = process
        self._requests = requests
        self._replies = replies
        self._tee = tee
        self._hook: int | None = None
        self._was_asked = False
        self._buffered = b""

    def run(
        self,
        argv: Sequence[str],
        cwd: str,
        environ: Mapping[str, str],
        tree: list[int] | None,
        nested: list[str],
    ) -> int:
        """Run one hook and return its exit status, negative for the signal that killed it."""
        request = json.dumps({"argv": list(argv), "cwd": cwd, "environ": dict(environ), "tree": tree, "nested": nested})
        self._was_asked = True
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, request.encode() + b"\n")
        with Terminal() as terminal:
            while reply := self._read_reply(None):
                event, number = reply
                if event == "started":
                    self._hook = terminal.group = number
                elif event == "stopped":
                    terminal.hook_was_stopped(number)
                else:
                    self._hook = None
                    if terminal.lent and number in (INTERRUPTED_STATUS, -signal.SIGINT):
                        raise Interrupted(signal.SIGINT)
                    return number
        # The host itself was killed. Its hook is not our child, so that all we can do is to kill it, too; `end` will
        # say that it may still run.
        self._signal_hook(signal.SIGKILL)
        return self._process.wait() or -signal.SIGKILL

    def take_locks(self, descriptors: Sequence[int], deadline: float | None) -> bool:
        """
        Let go of the locks under which hooks have run, and have the next ones run under those of these open files.

        False when a build that is nested in a hook still runs, the host is no more, or it does not answer before the
        deadline: then it can only be ended.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, json.dumps({"locks": len(descriptors)}).encode() + b"\n")
        if self._read_reply(deadline) != ("under", 0):
            return False
        if not descriptors:
            return True
        import socket

        with contextlib.suppress(BrokenPipeError), socket.socket(fileno=os.dup(self._requests)) as channel:
            socket.send_fds(channel, [b"\0"], descriptors)
        return self._read_reply(deadline) == ("under", len(descriptors))

    def end(self) -> bool:
        """
        End the hook, if one runs, and the host. The hook may clean up for `GRACE_SECONDS` after a SIGINT.

        Returns whether all of them have certainly ended.
        """
        if not self._was_asked:
            # It is importing a backend that nobody needs any more, and has started no hook.
            self._process.kill()
            self._process.wait()
            os.close(self._requests)
            os.close(self._replies)
            return True
        if self._hook is not None:
            self._signal_hook(signal.SIGINT)
            self._signal_hook(signal.SIGCONT)
            deadline = time.monotonic() + GRACE_SECONDS
            while self._hook is not None and (reply := self._read_reply(deadline)):
                if reply[0] == "ended":
                    self._hook = None
        os.close(self._requests)
        deadline = time.monotonic() + HOST_SECONDS
        while self._read_reply(deadline):
            pass
        os.close(self._replies)
        # The end of the replies means that the host is ending, and that it has waited for its hook. If it does not
        # come in time, the host is left behind with its copies of the locks, which it keeps until the hook is gone.
        if time.monotonic() >= deadline:
            return False
        # A host that was killed has waited for nobody.
        return self._process.wait() == 0

    def _read_reply(self, deadline: float | None) -> tuple[str, int] | None:
        """Return the next reply, or ``None`` at the end of the pipe or after the deadline."""
        while b"\n" not in self._buffered:
            if not self._wait_for_replies(deadline):
                return None
            received = os.read(self._replies, 4096)
            if not received:
                return None
            self._buffered += received
        line, _, self._buffered = self._buffered.partition(b"\n")
        event, _, number = line.decode().partition(" ")
        return event, int(number)

    def _wait_for_replies(self, deadline: float | None) -> bool:
        """Wait until there is something to read, and pass on the hook's output meanwhile; false after the deadline."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        for reader in self._tee.readers if self._tee is not None else ():
            poll.register(reader, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            pause = left if self._tee is None else min(_TEE_SECONDS, _TEE_SECONDS if left is None else left)
            ready = [descriptor for descriptor, _ in poll.poll(None if pause is None else pause * 1000)]
            if self._replies in ready:
                return True
            if self._tee is None or left == 0:
                return False
            self._tee.pass_on()

    def _signal_hook(self, number: int) -> None:
        if self._hook is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._hook, number)

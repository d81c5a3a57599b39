"""Job control: the hook's process group and the terminal that the frontend was started at.

A hook runs in a process group of its own, so that Ctrl-C reaches the frontend alone and the frontend can end the hook
with everything that it started. To a terminal such a group is in the background: it is stopped when it reads. People do
read the terminal in hooks (``breakpoint()`` in a setup.py), so a hook that is stopped for that gets the terminal, as a
shell would give it, and the frontend takes it back when the hook has ended.

Ctrl-Z stops the frontend; the hook has to stop and go on with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType


class Terminal:
    """The terminal while one hook runs; a context manager. Without a terminal, it does nothing."""

    def __init__(self) -> None:
        self.group: int | None = None
        """The hook's process group, once it is known."""
        self.lent = False
        """Whether the hook has been given the terminal."""
        self._handles_stop = False

    def __enter__(self) -> Self:
        """Have Ctrl-Z stop the hook, too."""
        if threading.current_thread() is threading.main_thread():
            # Only the main thread may, and only where nobody else has a plan for the signal.
            self._handles_stop = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
        if self._handles_stop:
            signal.signal(signal.SIGTSTP, self._stop_with_hook)
        return self

    def __exit__(self, *_: object) -> None:
        """Take the terminal back."""
        if self._handles_stop:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._reclaim()

    def hook_was_stopped(self, number: int) -> None:
        """React to a signal that has stopped the hook: give it the terminal, or stop with it."""
        if number not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP) or self.group is None:
            # A debugger, or our own _stop_with_hook: whoever stopped it will have it go on.
            return
        try:
            terminal = os.open("/dev/tty", os.O_RDWR)
        except OSError:
            return
        try:
            if number == signal.SIGTSTP:
                self._reclaim()
                self._stop_self(signal.SIGTSTP)
            while os.tcgetpgrp(terminal) != os.getpgrp() and not self.lent:
                # In the background we may not give away what is not ours. We stop as any background job does that
                # wants to read, until the shell brings us to the foreground.
                self._stop_self(signal.SIGTTIN)
                # The kernel does not stop a group that no shell looks after; then this is a slow wait.
                time.sleep(0.05)
            _give_terminal(terminal, self.group)
            self.lent = True
            os.killpg(self.group, signal.SIGCONT)
        except OSError:
            # The terminal or the hook has gone meanwhile; the hook's end will be reported.
            pass
        finally:
            os.close(terminal)

    def _reclaim(self) -> None:
        if self.lent:
            self.lent = False
            with contextlib.suppress(OSError):
                terminal = os.open("/dev/tty", os.O_RDWR)
                try:
                    _give_terminal(terminal, os.getpgrp())
                finally:
                    os.close(terminal)

    def _stop_with_hook(self, number: int, _frame: FrameType | None) -> None:
        if self.group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGSTOP)
        self._stop_self(number)
        if self.group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGCONT)

    def _stop_self(self, number: int) -> None:
        """Stop this process's own group; returns when it goes on."""
        handler = signal.signal(number, signal.SIG_DFL) if self._handles_stop else None
        # With its default action the signal takes effect before kill returns.
        os.killpg(os.getpgrp(), number)
        if handler is not None:
            signal.signal(number, handler)


def _give_terminal(terminal: int, group: int) -> None:
    # A background process that sets the foreground group is stopped by SIGTTOU unless it blocks that.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

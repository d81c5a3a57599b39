"""Job control: lends the frontend's terminal to the hook's process group.

A hook runs in a process group of its own. So Ctrl-C reaches only the frontend, which can end the hook with all that it
started. For the terminal, such a group is in the background: the kernel stops it when it reads. But a hook may have to
read (``breakpoint()`` in a setup.py). So the frontend gives the terminal to a hook that was stopped for that, as a
shell would, and takes it back when the hook has ended.

Ctrl-Z stops the frontend; the hook stops and continues with it.
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
    """The terminal while one hook runs; a context manager. Without a terminal, it has no effect."""

    def __init__(self) -> None:
        self.group: int | None = None
        """The process group of the hook, once it is known."""
        self.lent = False
        """Whether the hook has the terminal."""
        self._handles_stop = False

    def __enter__(self) -> Self:
        """Let Ctrl-Z stop the hook as well."""
        if threading.current_thread() is threading.main_thread():
            # Only the main thread may handle signals. A handler that the program has set stays.
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
        """React to a signal that has stopped the hook: give it the terminal, or stop as well."""
        if number not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP) or self.group is None:
            # A debugger or _stop_with_hook has stopped the hook, and will continue it.
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
                # In the background we cannot give the terminal away. We stop like any background job that reads, until
                # the shell brings us to the foreground.
                self._stop_self(signal.SIGTTIN)
                # The kernel does not stop an orphaned process group. Then this loop waits.
                time.sleep(0.05)
            _give_terminal(terminal, self.group)
            self.lent = True
            os.killpg(self.group, signal.SIGCONT)
        except OSError:
            # The terminal or the hook is gone. The host reports the end of the hook.
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
        """Stop this process's own group; return when it continues."""
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

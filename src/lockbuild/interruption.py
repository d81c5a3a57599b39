"""Signals that ask for an end, turned into an exception, so that every ``with`` on the way out does its part."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from lockbuild.errors import Interrupted
from lockbuild.processes import descendants, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# How long to wait for processes that were killed, in seconds: not at all, unless the kernel cannot get rid of one.
_DEATH_SECONDS = 0.1

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Raise `Interrupted` in the main thread on the first of these signals and ignore the later ones.

    A second Ctrl-C, or the SIGTERM that tox sends 0.3 s after its SIGINT, may not cut off the cleaning up. A signal
    that was ignored before (``nohup``, a shell's background job) stays ignored.
    """
    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    handled = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, descendants())

    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


def end_with_stdin() -> None:
    """
    From now on have the end of standard input interrupt this process, like SIGTERM. Others find their input empty.

    A pipe ends also when the process at its other end was killed.
    """
    import threading

    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    main = threading.main_thread().ident
    threading.Thread(target=_interrupt_at_end_of, args=(lifeline, main), daemon=True).start()


def _interrupt_at_end_of(lifeline: int, thread: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    if sys.platform == "win32":
        os._exit(1)
    # To the main thread: its handler raises the interruption, and a system call that it waits in returns.
    signal.pthread_kill(thread, signal.SIGTERM)


@contextlib.contextmanager
def killing_descendants() -> Iterator[None]:
    """Have an interruption end not only the program that we run in here, but also what that has started."""
    try:
        yield
    except Interrupted as interruption:
        for process in interruption.descendants:
            if is_running(process):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        # Whoever removes their temporary files now would else meet them in the middle of a system call.
        deadline = time.monotonic() + _DEATH_SECONDS
        while any(map(is_running, interruption.descendants)) and time.monotonic() < deadline:
            time.sleep(0.001)
        raise

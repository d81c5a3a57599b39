"""Turns signals that ask for an end into an exception, so that every ``with`` statement cleans up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from lockbuild.errors import Interrupted
from lockbuild.processes import descendants, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# How many seconds to wait for killed processes. They end at once, unless the kernel cannot end one.
_DEATH_SECONDS = 0.1

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Raise `Interrupted` in the main thread on the first of these signals and ignore the later ones.

    Neither a second Ctrl-C nor the SIGTERM that tox sends 0.3 s after its SIGINT may cut the cleanup short. A signal
    that was ignored before (by ``nohup``, in a shell's background job) stays ignored.
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


@contextlib.contextmanager
def killing_descendants() -> Iterator[None]:
    """On an interruption, kill all processes below this one, not only the program that runs in this context."""
    try:
        yield
    except Interrupted as interruption:
        for process in interruption.descendants:
            if is_running(process):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        # Wait until they have ended: our caller removes their temporary files now.
        deadline = time.monotonic() + _DEATH_SECONDS
        while any(map(is_running, interruption.descendants)) and time.monotonic() < deadline:
            time.sleep(0.001)
        raise

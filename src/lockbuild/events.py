"""What happens during a build, told to whoever wants to know.

The code that builds and locks knows no terminal: it calls the methods of a `Reporter`. The console is one reporter;
a test's list is another. The methods of this class do nothing, so that a reporter writes only those it needs.
"""

from __future__ import annotations

import time
from typing import NamedTuple


class Holder(NamedTuple):
    """The process that holds a lock."""

    pid: int
    command: str | None
    since: float | None
    """When it took the lock, in seconds since the epoch, where it left a record of that."""

    def __str__(self) -> str:
        """Return it in the words of a message: ``1234 (lockbuild --wheel) for 12 s``."""
        command = f" ({self.command})" if self.command else ""
        held = "" if self.since is None else f" for {max(0.0, time.time() - self.since):.0f} s"
        return f"{self.pid}{command}{held}"


class LockWait(NamedTuple):
    """A wait for a lock that still goes on."""

    subject: str
    """What the lock protects, as the user named it: the path of a source tree, mostly."""
    lock_file: str
    holder: Holder | None
    """Who holds it, or ``None`` where that cannot be seen from here."""
    waited: float
    """Seconds since the wait began."""
    timeout: float | None
    """Seconds after which it ends in an error; ``None`` waits for ever."""
    activity: str | None = None
    """What the holder does, where that is what is waited for."""


class Reporter:
    """
    Hears of events. Every method may be called from the thread that builds, and must return soon.

    While pip runs for a build environment, another thread tells of waits and warnings of what is built for that.
    """

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        """Hear a message of the library ``build``, with its kinds: ``step``, ``subprocess`` and what follows it."""

    def detail(self, message: str) -> None:
        """Hear something that only a person who asked for more wants to know."""

    def warn(self, message: str) -> None:
        """Hear of something that may surprise later."""

    def waiting(self, wait: LockWait) -> None:
        """Hear twice a second of a wait for a lock that has lasted for half a second or longer."""

    def got_lock(self, subject: str, waited: float) -> None:
        """Hear that a lock was taken after a wait of so many seconds of which `waiting` was told."""

    def began(self, step: str) -> None:
        """
        Hear that a step of a build has begun; its names are those of `Timing`.

        Two more are parts of ``environment``: ``resolving``, in which pip runs, and ``filling``, in which the wheels
        that it has found are unpacked and linked.
        """

    def progress(self, done: int, total: int) -> None:
        """Hear how much of the step that has begun is done: so many wheels of so many are in an environment."""

    def ended(self, step: str, seconds: float) -> None:
        """Hear that it is over, whether or not it has succeeded, after so many seconds."""


class ReporterFailedError(Exception):
    """A reporter has raised an `OSError`; kept apart from those of what it was told of."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(error)

"""The events of a build, and the interface of a reporter that receives them.

The code that builds and locks knows no terminal: it calls the methods of a `Reporter`. The console is one reporter; a
list in a test is another.
"""

from __future__ import annotations

import time
from typing import NamedTuple


class Holder(NamedTuple):
    """The process that holds a lock."""

    pid: int
    command: str | None
    since: float | None
    """When it took the lock, in seconds since the epoch; ``None`` if it left no record."""
    others: tuple[int, ...] = ()
    """The process IDs of others that hold it as well, each with a private view of the tree."""
    host: str | None = None
    """Its host, if that is another one."""

    def __str__(self) -> str:
        """Return words for a message, such as ``1234 (lockbuild --wheel) for 12 s``."""
        command = f" ({self.command})" if self.command else ""
        held = "" if self.since is None else f" for {max(0.0, time.time() - self.since):.0f} s"
        others = f" and by {', '.join(map(str, self.others))}" if self.others else ""
        host = f" on {self.host}" if self.host else ""
        return f"{self.pid}{host}{command}{held}{others}"


class LockWait(NamedTuple):
    """A wait for a lock that is not over."""

    subject: str
    """What the lock protects, as the user named it; usually the path of a source tree."""
    lock_file: str
    holder: Holder | None
    """The process that holds the lock, or ``None`` if it cannot be seen."""
    waited: float
    """Seconds since the wait began."""
    timeout: float | None
    """Seconds after which the wait ends with an error; ``None`` waits forever."""
    activity: str | None = None
    """What the holder is doing, if the wait is for its result."""


class Reporter:
    """
    Receives the events of a build. The methods of this class do nothing; a subclass overrides those that it needs.

    The thread that builds calls these methods, so they must return soon. While pip runs for a build environment,
    another thread reports waits and warnings of builds that pip has started.
    """

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        """Called with a message that ``build`` logs. ``kind`` is ``("step",)``, ``("subprocess", ...)`` or ``None``."""

    def detail(self, message: str) -> None:
        """Called with a message for verbose output."""

    def warn(self, message: str) -> None:
        """Called with a warning."""

    def waiting(self, wait: LockWait) -> None:
        """Called twice a second during a wait for a lock, once it has lasted half a second."""

    def got_lock(self, subject: str, waited: float) -> None:
        """Called when a lock was taken after a wait of ``waited`` seconds that `waiting` has reported."""

    def began(self, step: str) -> None:
        """
        Called when a step of a build begins. Its names are those of `Timing`.

        Two more are parts of ``environment``: in ``resolving``, pip runs; in ``filling``, lockbuild unpacks the wheels
        that pip has found and links them into the environment.
        """

    def progress(self, done: int, total: int) -> None:
        """Called when ``done`` of ``total`` wheels are in the environment that is being filled."""

    def ended(self, step: str, seconds: float) -> None:
        """Called when a step is over after ``seconds``, whether or not it has succeeded."""


class ReporterFailedError(Exception):
    """A reporter has raised an `OSError`, which must not be taken for an error of the lock."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(error)

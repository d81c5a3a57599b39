"""The log of one build of a run: what lockbuild tells of it, beside what its hooks write there themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockbuild.errors import shown
from lockbuild.events import LockWait, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO


class BuildLog(Reporter):
    """
    A reporter that writes into a file, which is unbuffered, because hooks write there as well.

    ``activity`` is called with what the build begins to do.
    """

    def __init__(self, file: BinaryIO, verbosity: int, activity: Callable[[str], None]) -> None:
        self._file = file
        self._verbosity = verbosity
        self._activity = activity
        self._is_waiting = False

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        """Write a message of ``build``."""
        self._write(f"* {message}" if kind == ("step",) else message)

    def detail(self, message: str) -> None:
        """Write a detail, with -v."""
        if self._verbosity > 0:
            self._write(message)

    def warn(self, message: str) -> None:
        """Write a warning."""
        self._write(f"WARNING {message}")

    def waiting(self, wait: LockWait) -> None:
        """Write once that the build waits."""
        words = f"waiting for the lock on {shown(wait.subject)}, held by {wait.holder or 'an invisible process'}"
        if not self._is_waiting:
            self._is_waiting = True
            self._write(f"* {words}")
        self._activity(words)

    def got_lock(self, subject: str, waited: float) -> None:
        """Write that the wait is over."""
        self._is_waiting = False
        self._write(f"* got the lock on {shown(subject)} after {waited:.0f} s")

    def began(self, step: str) -> None:
        """Tell of a step."""
        self._activity(step)

    def failed(self, error: Exception) -> None:
        """Write the error with which the build has ended."""
        self._write(f"ERROR {error}")

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n".encode(errors="backslashreplace"))

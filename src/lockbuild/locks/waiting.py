"""Waiting for a lock that is not free: how often it is tried, when the reporter hears of it, and when it is given up.

A wait yields how long to sleep before it goes on, as the acquisition of a lock does (`lockbuild.locks.directory`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lockbuild.errors import LockTimeoutError
from lockbuild.events import LockWait, Reporter, ReporterFailedError
from lockbuild.locks.holders import find_holder, record_beside
from lockbuild.locks.kernel import try_to_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

# How often a lock that is not free is tried again, in seconds. Two system calls an attempt; with several waiters,
# one of them finds it free sooner than that.
_POLL_SECONDS = 0.01

# After how many seconds, and how often from then on, the reporter hears of a wait.
_REPORT_SECONDS = 0.5


class Wait:
    """
    The wait for a lock, which begins now. For all of the lock's targets there is one limit and one story.

    ``subject`` is what the lock protects, ``activity`` what its holder does, in the words of messages.
    """

    def __init__(self, subject: str, activity: str | None, timeout: float | None, reporter: Reporter) -> None:
        self._subject = subject
        self._activity = activity
        self._timeout = timeout
        self._reporter = reporter
        self._started = time.monotonic()
        self._next_report = _REPORT_SECONDS

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._started

    @property
    def was_told(self) -> bool:
        """Whether the reporter has heard of it."""
        return self._next_report > _REPORT_SECONDS

    def until_locked(self, descriptor: int, lock_file: str) -> Iterator[float]:
        """
        Wait for one of the targets, an open file, until it is locked.

        Raises `LockTimeoutError`, and `ReporterFailedError` for what the reporter raises. ``lock_file`` is the one
        beside which a record says who holds the whole lock.
        """
        while True:
            waited = self.seconds
            if self._timeout is not None and waited >= self._timeout:
                holder = find_holder(descriptor, record_beside(lock_file))
                raise LockTimeoutError(self._subject, lock_file, holder, self._timeout)
            if waited >= self._next_report:
                self._next_report = waited + _REPORT_SECONDS
                self._tell(descriptor, lock_file, waited)
            yield _POLL_SECONDS if self._timeout is None else min(_POLL_SECONDS, self._timeout - waited)
            if try_to_lock(descriptor):
                return

    def _tell(self, descriptor: int, lock_file: str, waited: float) -> None:
        holder = find_holder(descriptor, record_beside(lock_file))
        try:
            self._reporter.waiting(LockWait(self._subject, lock_file, holder, waited, self._timeout, self._activity))
        except OSError as error:
            # A terminal that has gone, say. It is no reason to take uv's lock for one that cannot be had.
            raise ReporterFailedError(error) from error

"""Waiting for a lock that is not free: how often it is tried, when somebody is told, and when it is given up.

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

    from lockbuild.locks.directory import DirectoryLock

# How often a lock that is not free is tried again, in seconds. Two system calls an attempt; with several waiting,
# one of them finds it free sooner than that.
_POLL_SECONDS = 0.01

# How often by one that is not ready to use it, while others are.
_UNREADY_SECONDS = 0.2

# After how many seconds, and how often from then on, the reporter hears of a wait.
_REPORT_SECONDS = 0.5


class Wait:
    """
    The wait for a lock. For all of the kernel's locks that it consists of there is one limit and one story.

    ``started`` is when somebody began to take it, by the monotonic clock.
    """

    def __init__(self, lock: DirectoryLock, reporter: Reporter, started: float) -> None:
        self._lock = lock
        self._reporter = reporter
        self._started = started
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
        Wait for one of the kernel's locks, on an open file, until it is taken.

        Raises `LockTimeoutError`, and `ReporterFailedError` for what the reporter raises. ``lock_file`` is the one
        beside which stands who holds the whole lock.
        """
        timeout = self._lock.timeout
        next_attempt = 0.0
        while True:
            waited = self.seconds
            if timeout is not None and waited >= timeout:
                holder = find_holder(descriptor, record_beside(lock_file))
                raise LockTimeoutError(self._lock.subject, lock_file, holder, timeout)
            if waited >= self._next_report:
                self._next_report = waited + _REPORT_SECONDS
                self._tell(descriptor, lock_file, waited)
            yield _POLL_SECONDS if timeout is None else min(_POLL_SECONDS, timeout - waited)
            waited = self.seconds
            if self._lock.is_ready() or waited >= next_attempt:
                # Those that are ready may have been stopped, and the lock be free.
                next_attempt = waited + _UNREADY_SECONDS
                if try_to_lock(descriptor):
                    return

    def _tell(self, descriptor: int, lock_file: str, waited: float) -> None:
        lock = self._lock
        holder = find_holder(descriptor, record_beside(lock_file))
        try:
            self._reporter.waiting(LockWait(lock.subject, lock_file, holder, waited, lock.timeout, lock.activity))
        except OSError as error:
            # A terminal that has gone, say. It is no reason to take uv's lock for one that cannot be had.
            raise ReporterFailedError(error) from error

"""Waits for a lock that is not free: tries it again, tells the reporter, and gives up after the timeout.

Like the acquisition of a lock (`lockbuild.locks.directory`), a wait yields how long to sleep before it goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lockbuild.errors import LockTimeoutError
from lockbuild.events import Holder, LockWait, ReporterFailedError
from lockbuild.locks.holders import find_holder, record_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lockbuild.locks.targets import LockRequest

# How often to try again, in seconds. An attempt costs two system calls.
_POLL_SECONDS = 0.01

# After how many seconds the reporter first hears of a wait, and how often from then on.
_REPORT_SECONDS = 0.5


# By which factor the pauses between attempts grow.
_SLOWER = 1.3


class Wait:
    """The wait for a lock, which begins now. All targets of the lock share one timeout and one sequence of reports."""

    def __init__(self, request: LockRequest) -> None:
        self._request = request
        self._started = time.monotonic()
        self._next_report = _REPORT_SECONDS

    @property
    def seconds(self) -> float:
        """How long the wait has lasted."""
        return time.monotonic() - self._started

    @property
    def was_told(self) -> bool:
        """Whether the reporter has heard of the wait."""
        return self._next_report > _REPORT_SECONDS

    def until(
        self,
        attempt: Callable[[], bool],
        descriptor: int,
        lock_file: str,
        first: Callable[[], Holder | None] = lambda: None,
        slowest: float = 0.0,
    ) -> Iterator[float]:
        """
        Repeat an attempt to lock one target, an open file, until it succeeds.

        A record beside ``lock_file`` may say who holds the lock. ``first`` returns a process that waits for it as well,
        and gets it first. The attempts become rarer until there are ``slowest`` seconds between two. Raises
        `LockTimeoutError`, and `ReporterFailedError` when the reporter raises `OSError`.
        """
        timeout, pause = self._request.timeout, _POLL_SECONDS
        while True:
            waited = self.seconds
            if timeout is not None and waited >= timeout:
                holder = find_holder(descriptor, record_beside(lock_file))
                raise LockTimeoutError(self._request.subject, lock_file, holder, timeout)
            if waited >= self._next_report:
                self._next_report = waited + _REPORT_SECONDS
                self._tell(descriptor, lock_file, first())
            yield pause if timeout is None else min(pause, timeout - waited)
            pause = max(_POLL_SECONDS, min(pause * _SLOWER, slowest))
            if attempt():
                return

    def _tell(self, descriptor: int, lock_file: str, first: Holder | None) -> None:
        subject, timeout, activity = self._request.subject, self._request.timeout, self._request.activity
        holder = first or find_holder(descriptor, record_beside(lock_file))
        if first is not None:
            activity = f"waiting for the lock on {subject}"
        try:
            self._request.reporter.waiting(LockWait(subject, lock_file, holder, self.seconds, timeout, activity))
        except OSError as error:
            # For example, the terminal has gone. The lock must not take it for a failure to lock a target.
            raise ReporterFailedError(error) from error

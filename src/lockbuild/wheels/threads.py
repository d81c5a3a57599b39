"""Threads for work that waits for the disk."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def pool_of(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads. Raises `OSError` when the system refuses to start one."""
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    except RuntimeError as error:
        # Python does not pass the error of the system on.
        if str(error) != "can't start new thread":
            raise
        raise OSError(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)} ({error})") from error

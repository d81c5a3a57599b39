"""Enclosing locks: a process that runs this one holds them. This one goes on under them and does not wait for them."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from lockbuild.locks.holders import locks_held, mode_of_lock
from lockbuild.processes import ancestors


class EnclosingLock(NamedTuple):
    """A lock that a process holds which runs this one."""

    is_exclusive: bool
    inherited: int | None
    """The open file that carries it, if this process has inherited that."""


def enclosing_lock(descriptor: int) -> EnclosingLock | None:
    """
    Return the lock on the file behind ``descriptor`` that a process holds which runs this one, if one does.

    ``flock DIR COMMAND`` passes the open file that carries the lock to its command. pip and uv pass no open files on to
    their hooks, but then ``flock`` is an ancestor.
    """
    file = os.fstat(descriptor)
    inherited = _inherited(file)
    if inherited is not None:
        number, mode = inherited
        return EnclosingLock(mode == "WRITE", number)
    lineage = set(ancestors())
    modes = [each.mode for each in locks_held(file) if each.pid in lineage]
    return EnclosingLock(modes[0] == "WRITE", None) if modes else None


def _inherited(file: os.stat_result) -> tuple[int, str] | None:
    """
    Return an inherited descriptor of a file that carries a lock on it, and the mode of the lock.

    The kernel says in ``fdinfo`` which open file holds the lock. Trying to lock the inherited descriptor is no test:
    two builds that inherited it would both succeed.
    """
    folder = "/proc/self/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            # A descriptor that was inherited through exec is inheritable. Others were opened in this process.
            if os.get_inheritable(int(name)) and os.path.samestat(os.fstat(int(name)), file):
                mode = mode_of_lock(f"/proc/self/fdinfo/{name}")
                if mode is not None:
                    return int(name), mode
    return None

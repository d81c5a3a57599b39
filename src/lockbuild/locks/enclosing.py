"""Enclosing locks: a process that runs this one holds them. This one goes on under them and does not wait for them."""

from __future__ import annotations

import contextlib
import os

from lockbuild.locks.holders import find_holder, holds_flock
from lockbuild.processes import ancestors


def inherited_lock(descriptor: int) -> int | None:
    """
    Return an inherited descriptor of the same directory as ``descriptor`` that carries the lock on it.

    ``flock DIR COMMAND`` passes such a descriptor to its command. The kernel says in ``fdinfo`` which open file holds
    the lock. Trying to lock the inherited descriptor is no test: two builds that inherited it would both succeed.
    """
    wanted = os.fstat(descriptor)
    folder = "/proc/self/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            # A descriptor that was inherited through exec is inheritable. Others were opened in this process.
            if (
                os.get_inheritable(int(name))
                and os.path.samestat(os.fstat(int(name)), wanted)
                and holds_flock(f"/proc/self/fdinfo/{name}")
            ):
                return int(name)
    return None


def is_held_by_ancestor(descriptor: int) -> bool:
    """Return whether an ancestor holds a lock, such as ``uv build`` its own lock file, or ``flock`` the directory."""
    holder = find_holder(descriptor, None)
    return holder is not None and holder.pid in ancestors()

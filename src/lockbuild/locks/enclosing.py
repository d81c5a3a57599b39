"""Enclosing locks: held by a process that this one runs in, which goes on under them and waits for none of them."""

from __future__ import annotations

import contextlib
import os

from lockbuild.locks.holders import find_holder, holds_flock
from lockbuild.processes import ancestors


def inherited_lock(descriptor: int) -> int | None:
    """
    Return a descriptor of an open file's directory that this process was started with and that carries its lock.

    ``flock DIR COMMAND`` starts its command so. The kernel says in ``fdinfo`` which open file holds the lock. To try
    to lock the inherited descriptor instead would not do: two builds that were given the same one would both succeed.
    """
    wanted = os.fstat(descriptor)
    folder = "/proc/self/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            # What was inherited by an exec is inheritable. What is not, another thread here has opened.
            if (
                os.get_inheritable(int(name))
                and os.path.samestat(os.fstat(int(name)), wanted)
                and holds_flock(f"/proc/self/fdinfo/{name}")
            ):
                return int(name)
    return None


def is_held_by_ancestor(descriptor: int) -> bool:
    """Tell whether an ancestor of this process holds a lock: ``uv build`` that of the tree, ``flock`` the directory."""
    holder = find_holder(descriptor, None)
    return holder is not None and holder.pid in ancestors()

"""
Places at the starting line: who of the builds that wait for one tree may import its backend now.

All of them need a hook host that has imported the backend, and nothing forbids to start ten at once. But then the one
that has the lock shares the machine with nine that only get ready; and once these are ready, they wait for each other
with all but one processor idle. So `PLACES` at a time get ready, and that is in time: one build's hooks take as long.

A place is a lock on a file beside the tree's lock file. The host inherits it, and lets it go when it has imported. It
guards nothing: where it cannot be had for another reason than that it is taken, one starts without.
"""

from __future__ import annotations

import os

# One that gets ready for each that runs its hooks would do if both took the same time; to import takes longer.
PLACES = 2


class AllPlacesTakenError(Exception):
    """Enough builds of this tree are getting ready. Try again soon."""


def take_place(lock_file: str) -> int | None:
    """
    Return an open file that holds a place until its last copy is closed; ``None`` where there are no places.

    Raises `AllPlacesTakenError`.
    """
    from lockbuild.locks.kernel import LockFile, LocksUnsupportedError, NotALockFileError, try_to_lock

    for path in _places(lock_file):
        try:
            descriptor = LockFile(path).open()
        except (OSError, NotALockFileError):
            return None
        try:
            if try_to_lock(descriptor):
                return descriptor
        except (OSError, LocksUnsupportedError):
            os.close(descriptor)
            return None
        os.close(descriptor)
    raise AllPlacesTakenError


def make_place(lock_file: str) -> None:
    """Make a place, for `take_known_place`: this build may have had one beside another tree's lock file."""
    from contextlib import suppress

    from lockbuild.locks.kernel import LockFile, NotALockFileError

    # Without one the next build starts its host a little later.
    with suppress(OSError, NotALockFileError):
        os.close(LockFile(_places(lock_file)[0]).open())


def take_known_place(lock_file: str) -> int:
    """
    As `take_place`, for a build that has imported next to nothing: only where there was a place before.

    Raises `AllPlacesTakenError`, or `OSError`.
    """
    import fcntl

    for path in _places(lock_file):
        # Somebody may have put a FIFO or a link there.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    raise AllPlacesTakenError


def _places(lock_file: str) -> list[str]:
    return [f"{lock_file}.starting.{number}" for number in range(PLACES)]

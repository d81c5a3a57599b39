"""The staging folder of a build, in which everything temporary of that build lies.

It is in the folder for temporary files, and a build that is killed leaves it. So each has a record in the cache: a file
that the frontend keeps locked, and that names the folder. No process inherits the record, so its lock is free as soon
as the frontend has ended. Then a clean-up removes the folder, whatever its own TMPDIR is, and the record last.

Other users may write to the folder for temporary files. A name there proves nothing: the record is in a private folder,
and the staging folder is opened, checked and removed by descriptor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import Self

from lockbuild.errors import CacheFolderError
from lockbuild.files import above_standard_streams, new_file
from lockbuild.folders import open_folder, remove_private_folder
from lockbuild.locks.kernel import LocksUnsupportedError, left_behind, try_to_lock
from lockbuild.paths import STAGING, cache_folder, staging_records, temporary_folder

# More bytes than any record has.
_RECORD_SIZE = 1 << 16


class Staging:
    """A staging folder; a context manager. With ``for_all``, `tempfile` of this process makes everything in it."""

    def __init__(self, cache_dir: str | None = None, *, for_all: bool = False) -> None:
        # Named before it is made: an interruption may come when it exists and `__enter__` has not returned.
        self._parent = temporary_folder()
        self._name = os.urandom(8).hex()
        self._cache_dir = cache_dir
        self._for_all = for_all
        self._record: tuple[str, int] | None = None
        self.path = os.path.join(self._parent, f"{STAGING}{self._name}")

    def __enter__(self) -> Self:
        """Make the folder. Raises `OSError`."""
        # Without a place for a record the build goes on, and no clean-up finds the folder.
        with contextlib.suppress(OSError, CacheFolderError, LocksUnsupportedError):
            path = os.path.join(staging_records(self._cache_dir), self._name)
            self._record = path, above_standard_streams(new_file(path, 0o600))
            # What is not locked names no folder: a clean-up could have opened it just now.
            if try_to_lock(self._record[1]):
                os.write(self._record[1], b"\0".join((_this_machine(), os.fsencode(self._parent))))
        os.mkdir(self.path, 0o700)
        if self._for_all:
            tempfile.tempdir = self.path
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder. A second call has something to do when the first was interrupted."""
        if self._for_all:
            tempfile.tempdir = self._parent
        shutil.rmtree(self.path, ignore_errors=True)
        if self._record is not None:
            record, descriptor = self._record
            self._record = None
            os.close(descriptor)
            # Otherwise a clean-up tries again.
            if not os.path.lexists(self.path):
                with contextlib.suppress(OSError):
                    os.unlink(record)


def remove_left_behind(cache_dir: str | None, oldest: float) -> int:
    """
    Remove the staging folders of ended processes; return how many.

    The record of a folder that cannot be reached, on another machine for example, is kept until ``oldest``, in seconds
    since the epoch.
    """
    cache = cache_folder(cache_dir)
    if cache is None or not os.path.isdir(cache):
        return 0
    folder = staging_records(cache_dir)
    removed = 0
    for name in os.listdir(folder):
        record = os.path.join(folder, name)
        with contextlib.suppress(OSError), left_behind(record) as descriptor:
            if descriptor is not None and (
                _remove(os.read(descriptor, _RECORD_SIZE), name) or os.fstat(descriptor).st_mtime < oldest
            ):
                os.unlink(record)
                removed += 1
    return removed


def _remove(content: bytes, name: str) -> bool:
    """Remove the staging folder that a record names; tell whether it is gone."""
    machine, _, parent = content.partition(b"\0")
    if not parent:
        # Its process was killed before it made the folder.
        return True
    if machine != _this_machine():
        return False
    try:
        # Refused where another user could have given the name to another folder of ours.
        with open_folder(os.fsdecode(parent)) as folder:
            return remove_private_folder(folder, f"{STAGING}{name}")
    except FileNotFoundError:
        return True
    except CacheFolderError:
        return False


def _this_machine() -> bytes:
    return os.fsencode(os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", ""))

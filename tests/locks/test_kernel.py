"""Our lock and filelock's are one and the same lock of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock, lock_descriptor, unlock_descriptor

from lockbuild.locks.kernel import LockFile, try_to_lock, unlock


@pytest.fixture
def files(tmp_path: Path) -> tuple[int, int]:
    """Two open files of one lock file, as two processes have them."""
    lock_file = LockFile(str(tmp_path / "lock"))
    return lock_file.open(), os.open(lock_file.path, os.O_RDWR)


def test_what_we_have_locked_filelock_cannot_lock(files: tuple[int, int]) -> None:
    ours, theirs = files
    assert try_to_lock(ours)
    assert not lock_descriptor(theirs, blocking=False)
    unlock(ours)
    assert lock_descriptor(theirs, blocking=False)
    os.close(theirs)


def test_what_filelock_has_locked_we_cannot_lock(files: tuple[int, int]) -> None:
    ours, theirs = files
    assert lock_descriptor(theirs, blocking=False)
    assert not try_to_lock(ours)
    unlock_descriptor(theirs)
    assert try_to_lock(ours)
    os.close(theirs)
    unlock(ours)


def test_a_file_lock_of_filelock_excludes_ours(tmp_path: Path) -> None:
    lock_file = LockFile(str(tmp_path / "lock"))
    ours = lock_file.open()
    with FileLock(lock_file.path, fallback_to_soft=False, preserve_lock_file=True):
        assert not try_to_lock(ours)
    assert try_to_lock(ours)
    unlock(ours)

"""A lock of ours is one that filelock's other ways of locking a file respect."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from lockbuild.locks.kernel import LockFile, try_to_lock, unlock


def test_a_file_lock_of_filelock_excludes_ours(tmp_path: Path) -> None:
    lock_file = LockFile(str(tmp_path / "lock"))
    ours = lock_file.open()
    with FileLock(lock_file.path, fallback_to_soft=False, preserve_lock_file=True):
        assert not try_to_lock(ours)
    assert try_to_lock(ours)
    unlock(ours)

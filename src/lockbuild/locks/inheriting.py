"""The open files that carry a lock: which a process inherits that is to hold it too, and when they are closed.

They can be opened before they are locked. A process that is started with them has the lock as soon as this one has
taken it, because both have the same open files; so a hook host can start while we still wait.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from lockbuild.locks.kernel import Directory, LockFile, NotALockFileError, unlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class OpenFiles:
    """The open files of one lock. ``epoch`` changes whenever they are others than `descriptors` said before."""

    def __init__(self) -> None:
        self.epoch = 0
        self._ahead: dict[LockFile | Directory, int] = {}
        self._awaited: tuple[int, ...] = ()
        self._locked: list[int] = []
        self._enclosing: list[int] = []
        self._has_heirs = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that carry the lock or are going to, those of enclosing locks included."""
        return (*self._locked, *self._enclosing, *self._awaited, *self._ahead.values())

    @property
    def are_locked(self) -> bool:
        """Whether one of them has been locked by us."""
        return bool(self._locked)

    def open_ahead(self, files: Iterable[LockFile | Directory]) -> None:
        """Open files that are going to be locked. One that cannot be opened is left for the acquisition to report."""
        for file in files:
            if file not in self._ahead:
                with contextlib.suppress(OSError, NotALockFileError):
                    self._ahead[file] = file.open()

    def open(self, file: LockFile | Directory) -> int:
        """Return a descriptor of a file, opened ahead or now. Raises what the file's ``open`` raises."""
        if file in self._ahead:
            return self._ahead.pop(file)
        # A process that was started with what was opened ahead does not have this one.
        self.epoch += 1
        return file.open()

    @contextlib.contextmanager
    def awaiting(self, descriptor: int) -> Iterator[None]:
        """Count a file that we wait for among the `descriptors`."""
        self._awaited = (descriptor,)
        try:
            yield
        finally:
            self._awaited = ()

    def keep(self, descriptor: int) -> None:
        """Keep a file that is locked now."""
        self._locked.append(descriptor)

    def replace_by_enclosing(self, descriptor: int, inherited: int | None) -> None:
        """Close a file whose lock an enclosing lock covers; ``inherited`` is the open file that carries that one."""
        self.epoch += 1
        if inherited is not None:
            self._enclosing.append(inherited)
        os.close(descriptor)

    def close_ahead(self) -> None:
        """Close what was opened and is not locked. Calling it again does nothing."""
        while self._ahead:
            os.close(self._ahead.popitem()[1])

    def leave_to_heirs(self) -> None:
        """Have the lock outlive its release, for processes that have inherited it."""
        self._has_heirs = True

    def release(self) -> None:
        """Free what is locked; with heirs only close it, and the kernel keeps the lock until the last has ended."""
        self._enclosing.clear()
        while self._locked:
            (os.close if self._has_heirs else unlock)(self._locked.pop())
        self._has_heirs = False

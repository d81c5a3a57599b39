"""The open files that carry a lock. Processes that inherit them hold the lock as well.

They can be opened before they are locked. A process that is started with them holds the lock as soon as this process
has taken it, because both have the same open files. So a hook host can start while its frontend still waits.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from lockbuild.locks.kernel import NotALockFileError, unlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lockbuild.locks.kernel import Lockable


class OpenFiles:
    """The open files of one lock. ``epoch`` changes whenever `descriptors` will differ from what they were before."""

    def __init__(self) -> None:
        self.epoch = 0
        self._ahead: dict[Lockable, int] = {}
        self._awaited: tuple[int, ...] = ()
        self._locked: list[int] = []
        self._enclosing: list[int] = []
        self._has_heirs = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock or will, including those of enclosing locks."""
        return (*self._locked, *self._enclosing, *self._awaited, *self._ahead.values())

    @property
    def are_locked(self) -> bool:
        """Whether this process has locked one of them."""
        return bool(self._locked)

    def open_ahead(self, files: Iterable[Lockable]) -> None:
        """Open files that will be locked. The acquisition reports those that cannot be opened."""
        for file in files:
            if file not in self._ahead:
                with contextlib.suppress(OSError, NotALockFileError):
                    self._ahead[file] = file.open()

    def open(self, file: Lockable) -> int:
        """Return a descriptor of a file that was opened ahead or is opened now. Raises what its ``open`` raises."""
        if file in self._ahead:
            return self._ahead.pop(file)
        # A process that was started with the files opened ahead lacks this one.
        self.epoch += 1
        return file.open()

    @contextlib.contextmanager
    def awaiting(self, descriptor: int) -> Iterator[None]:
        """Count a file among the `descriptors` while this process waits for its lock."""
        self._awaited = (descriptor,)
        try:
            yield
        finally:
            self._awaited = ()

    def keep(self, descriptor: int) -> None:
        """Keep a file that this process has locked."""
        self._locked.append(descriptor)

    def replace_by_enclosing(self, descriptor: int, inherited: int | None) -> None:
        """Close a file that an enclosing lock covers; ``inherited`` is the open file that carries that lock."""
        self.epoch += 1
        if inherited is not None:
            self._enclosing.append(inherited)
        os.close(descriptor)

    def close_ahead(self) -> None:
        """Close the files that are open but not locked. Calling it again does nothing."""
        while self._ahead:
            os.close(self._ahead.popitem()[1])

    def leave_to_heirs(self) -> None:
        """Keep the lock beyond its release, for processes that have inherited it."""
        self._has_heirs = True

    def release(self) -> None:
        """Free the lock. With heirs, only close it: the kernel keeps the lock until the last heir has ended."""
        self._enclosing.clear()
        while self._locked:
            (os.close if self._has_heirs else unlock)(self._locked.pop())
        self._has_heirs = False

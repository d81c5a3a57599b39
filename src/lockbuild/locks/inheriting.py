"""The open files that carry a lock. Hook processes get copies and hold the lock as well."""

from __future__ import annotations

import os

from lockbuild.locks.kernel import close, unlock


class OpenFiles:
    """The open files of one lock."""

    def __init__(self) -> None:
        self._locked: list[int] = []
        self._enclosing: list[int] = []
        self._has_heirs = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock, including those of enclosing locks."""
        return (*self._locked, *self._enclosing)

    @property
    def are_locked(self) -> bool:
        """Whether this process has locked one of them."""
        return bool(self._locked)

    def keep(self, descriptor: int) -> None:
        """Keep a file that this process has locked."""
        self._locked.append(descriptor)

    def replace_by_enclosing(self, descriptor: int, inherited: int | None) -> None:
        """Close a file that an enclosing lock covers; ``inherited`` is the open file that carries that lock."""
        if inherited is not None:
            self._enclosing.append(inherited)
        os.close(descriptor)

    def leave_to_heirs(self) -> None:
        """Keep the lock beyond its release, for processes that have copies."""
        self._has_heirs = True

    def release(self) -> None:
        """Free the lock. With heirs, only close it: the kernel keeps the lock until the last heir has ended."""
        self._enclosing.clear()
        while self._locked:
            (close if self._has_heirs else unlock)(self._locked.pop())
        self._has_heirs = False

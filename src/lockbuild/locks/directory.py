"""The lock on a directory: takes its targets (`lockbuild.locks.targets`) one after the other.

All processes take the targets in the same order, so that no two wait for each other. A target that an enclosing lock
covers is not taken again; examples are a hook that builds its own tree, and ``flock . lockbuild``. No process waits for
a target while it holds another: ``flock .`` takes the directory first, ``uv build`` takes its own lock file first, and
a lockbuild that either of them runs needs the other targets. `lockbuild.locks.waiting` waits for a target that is not
free; it is imported only then.

The acquisition is one generator that yields how long to sleep: in ``time.sleep``, or in ``asyncio.sleep``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from typing import TYPE_CHECKING, Self

from lockbuild.errors import LockUnavailableError, SourceTreeMovedError, shown
from lockbuild.events import ReporterFailedError
from lockbuild.locks.enclosing import enclosing_lock
from lockbuild.locks.holders import record_beside, remove_record, write_record
from lockbuild.locks.inheriting import OpenFiles
from lockbuild.locks.kernel import (
    Directory,
    LockFile,
    LocksUnsupportedError,
    NotALockFileError,
    unlock,
)
from lockbuild.locks.nesting import HeldLock, held_by_ancestor, is_seen_in_view, lent, real_identity
from lockbuild.locks.network import HeldTreeFile, TreeFile, signed
from lockbuild.locks.targets import directory_targets
from lockbuild.processes import own_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from contextlib import AbstractContextManager

    from lockbuild.locks.kernel import Lockable
    from lockbuild.locks.targets import ChooseTargets, LockRequest, Target
    from lockbuild.locks.waiting import Wait

# How often to make the directory again when it vanishes at once. In /proc, making one always fails in that way.
_ATTEMPTS = 1000


class _StartOver(Exception):  # noqa: N818 - not an error, and never leaves this module
    """The wait for a later target is over. The earlier ones were freed for it and have to be taken again."""


class DirectoryLock:
    """
    A lock on a directory, for every process, user and container on this machine: exclusive, or shared on request.

    A context manager, plain and asynchronous. Entering raises `LockTimeoutError`, `LockUnavailableError` or
    `CacheFolderError`. Unless the request has ``create``, it raises `OSError` when there is no directory, and
    `SourceTreeMovedError` when the path leads to another one after a wait.
    """

    def __init__(self, request: LockRequest, targets: ChooseTargets = directory_targets) -> None:
        self.path = request.path
        self.held: HeldLock | None = None
        """While the lock is held: what the builds that a hook starts need to know about it."""
        self.lock_file: str | None = None
        """The path of the lock file, once the acquisition has chosen it."""
        self._request = request
        self._reporter = request.reporter
        self._create = request.create
        self._choose_targets = targets
        self._files = OpenFiles()
        self._locked: os.stat_result | None = None
        """The directory whose inode is locked."""
        self._tree_file: HeldTreeFile | None = None
        """The file of a tree that several hosts see, while it is locked."""
        self._wait: Wait | None = None
        self._end_announcement: Callable[[], None] | None = None
        """While others are told that this process waits for the exclusive lock."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock. A process that has them keeps the lock when this one is killed."""
        return self._files.descriptors

    def __enter__(self) -> Self:
        """Wait for the lock and take it."""
        with contextlib.closing(self._acquire()) as delays:
            for delay in delays:
                time.sleep(delay)
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        if self.held is not None:
            if not self._request.shared:
                remove_record(record_beside(self.held.lock_file))
            self.held = None
        self._give_up()

    async def __aenter__(self) -> Self:
        """Wait for the lock and take it. The event loop runs on meanwhile."""
        import asyncio

        with contextlib.closing(self._acquire()) as delays:
            for delay in delays:
                await asyncio.sleep(delay)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release the lock."""
        self.__exit__()

    def lent(self) -> AbstractContextManager[dict[str, str]]:
        """
        Let builds that are started in this context go on under the lock, instead of waiting for it forever.

        Yields the environment variable that they have to be started with. At its end, the context waits for those that
        still run. The lock must be held. Under a shared one, they must run in a private view.
        """
        if self.held is None:
            raise RuntimeError(f"the lock on {self.path} is not held; take it before lending it")
        return lent(self.held)

    def leave_to_heirs(self) -> None:
        """
        Keep the lock beyond its release, for processes that have its descriptors.

        A release would free the lock for them as well. After this call, a release only closes our descriptors. The
        kernel keeps the lock until the last heir has ended, such as a hook that is still dying.
        """
        if self.held is not None:
            self._files.leave_to_heirs()

    def confirm(self) -> None:
        """Raise `LockLostError` if another host has had the lock while this process held it."""
        if self._tree_file is not None:
            self._tree_file.confirm(self.path)

    @property
    def may_be_lost(self) -> bool:
        """Whether the lock is one that a file server may give to another host."""
        return self._tree_file is not None

    def _acquire(self) -> Generator[float, None, None]:
        """Take the lock; until then, yield how long to sleep. Closing the generator frees the targets taken so far."""
        if self.held is not None:
            raise RuntimeError(f"this lock on {self.path} is already held; use a second one to wait for it")
        self._wait = None
        try:
            yield from self._take_all()
            if self._wait is not None and self._wait.was_told:
                self._reporter.got_lock(self._request.subject, self._wait.seconds)
        except ReporterFailedError as failure:
            self.__exit__()
            raise failure.error from None
        except BaseException:
            self.__exit__()
            raise
        finally:
            if self._end_announcement is not None:
                self._end_announcement()
                self._end_announcement = None

    def _take_all(self) -> Iterator[float]:
        before = self._find_or_make()
        canonical = os.path.realpath(self.path)
        targets: Sequence[Target] = ()
        while True:
            try:
                enclosing = self._enclosing_build(before)
                lock_file = (yield from self._take_nested(enclosing)) if enclosing is not None else None
                if lock_file is None:
                    targets = targets or self._choose_targets(self._request, canonical)
                    lock_file = yield from self._take_targets(targets)
                break
            except _StartOver:
                continue
        after = os.stat(self.path) if os.path.isdir(self.path) else None
        # A build that waited knows only the tree that existed when it began, and may use only the directory that it
        # has locked. Between any two of these steps, another process could have pointed a link elsewhere.
        if (
            after is None
            or (not self._create and not os.path.samestat(before, after))
            or (self._locked is not None and not os.path.samestat(self._locked, after))
        ):
            raise SourceTreeMovedError(self.path)
        if not self._request.shared:
            # Of several holders, the kernel has to tell.
            write_record(record_beside(lock_file))
        self.held = HeldLock(
            *real_identity(after), own_identity(), lock_file, self.descriptors[0], self._request.shared
        )

    def _find_or_make(self) -> os.stat_result:
        """Return the status of the directory, which is made with ``create``. Its last holder may be removing it."""
        attempts_left = _ATTEMPTS
        while True:
            attempts_left -= 1
            try:
                if self._create:
                    os.makedirs(os.path.realpath(self.path), exist_ok=True)
                return os.stat(self.path)
            except (FileExistsError, FileNotFoundError):
                # The last holder removed it between two steps, perhaps inside makedirs, which then fails because the
                # directory first exists and then does not. Only a file of that name is an obstacle.
                if not self._create or not attempts_left or _is_no_directory(self.path):
                    raise

    def _enclosing_build(self, directory: os.stat_result) -> HeldLock | None:
        """Return the lock of a build that runs this one. One that it shares is for what runs in its view."""
        enclosing = held_by_ancestor(directory)
        if enclosing is None or not enclosing.is_shared or is_seen_in_view(directory):
            return enclosing
        if self._request.shared:
            return None
        problem = f"process {enclosing.holder.pid}, which runs this build, holds a shared lock on it"
        remedy = "let it take an exclusive lock, or build with --tree private"
        raise LockUnavailableError(self._request.subject, enclosing.lock_file, problem, remedy)

    def _take_nested(self, enclosing: HeldLock) -> Generator[float, None, str | None]:
        """Take the lock file for builds nested in the enclosing one; return its path, or ``None`` if it is gone."""
        self.lock_file = enclosing.nested_lock_file
        try:
            yield from self._take(LockFile(self.lock_file, create=False))
        except FileNotFoundError:
            # The ancestor's hooks have ended. A process that they left running waits like any other.
            return None
        self._reporter.detail(
            f"{shown(self.path)} is already locked by process {enclosing.holder.pid}, which runs this build"
        )
        return self.lock_file

    def _pass_gate(self, targets: Sequence[Target]) -> Iterator[float]:
        """Before sharing the lock, let a build have its turn that waits for the exclusive one."""
        if self._request.shared:
            from lockbuild.locks.gate import Gate

            with Gate(target.file for target in targets) as gate:
                if not gate.is_open():
                    yield from self._begun_wait().until(gate.is_open, gate.descriptor, targets[0].file.path, gate.first)

    def _take_targets(self, targets: Sequence[Target]) -> Generator[float, None, str]:
        """Take all targets in their order; return the path of the lock file, which is the first."""
        yield from self._pass_gate(targets)
        first, *others = targets
        self.lock_file = lock_file = yield from self._take_or_replace(first)
        for target in others:
            yield from self._take_or_replace(target, lock_file)
        return lock_file

    def _take_or_replace(self, target: Target | None, lock_file: str | None = None) -> Generator[float, None, str]:
        """Take a target or its replacement; return the path of the one taken."""
        while target is not None:
            file = target.file
            try:
                yield from self._take(file, target)
                return file.path
            except (OSError, LocksUnsupportedError, NotALockFileError) as error:
                target = target.instead(error, lock_file or file.path)
        return ""

    def _take(self, file: Lockable, target: Target | None = None) -> Iterator[float]:
        """
        Wait for one file and keep it locked, unless an enclosing lock covers the target that it is.

        Without a target it is the lock file of nested builds. These exclude each other, also in a private view.
        """
        while True:
            try:
                descriptor = file.open()
            except FileNotFoundError:
                if not self._create or not isinstance(file, Directory):
                    raise
                self._find_or_make()
                continue
            attempt = functools.partial(
                file.try_to_lock, descriptor, shared=target is not None and self._request.shared
            )
            try:
                if not attempt():
                    if target is not None:
                        if target.may_be_enclosed and self._is_enclosed(file, descriptor):
                            return
                        self._announce()
                    if self._files.are_locked:
                        # The holder may be about to wait for a target that we hold.
                        self._give_up()
                        yield from self._wait_for(file, descriptor, attempt)
                        raise _StartOver
                    yield from self._wait_for(file, descriptor, attempt)
                current = file.is_current(descriptor)
            except BaseException:
                unlock(descriptor)
                raise
            if current:
                self._files.keep(descriptor)
                if isinstance(file, Directory):
                    self._locked = os.fstat(descriptor)
                if isinstance(file, TreeFile):
                    self._tree_file = signed(file, descriptor, shared=self._request.shared)
                return
            # Between our open and our lock, another file got the name, and another process may hold that one. With
            # ``create``, a directory that its last holder has removed is made again.
            unlock(descriptor)
            if self._create:
                self._find_or_make()
            elif isinstance(file, Directory):
                raise SourceTreeMovedError(self.path)

    def _begun_wait(self) -> Wait:
        if self._wait is None:
            from lockbuild.locks.waiting import Wait

            self._wait = Wait(self._request)
        return self._wait

    def _wait_for(self, file: Lockable, descriptor: int, attempt: Callable[[], bool]) -> Iterator[float]:
        # The record beside the lock file says who holds a directory.
        lock_file = (self.lock_file or file.path) if isinstance(file, Directory) else file.path
        # Each question about a file of the tree goes to the file server.
        slowest = 1.0 if isinstance(file, TreeFile) else 0.0
        yield from self._begun_wait().until(attempt, descriptor, lock_file, slowest=slowest)

    def _announce(self) -> None:
        """Announce that we wait for the exclusive lock, so that others do not share it again and again."""
        if self._end_announcement is None and not self._request.shared:
            from lockbuild.locks.gate import announce

            self._end_announcement = announce(self.path)

    def _is_enclosed(self, file: Lockable, descriptor: int) -> bool:
        """
        Return whether an enclosing lock covers a target that is not free, as in ``flock DIR lockbuild``.

        pip and uv pass no descriptors on to their hooks, but there ``flock`` is an ancestor, and it holds the directory
        for its descendants. A build that holds the directory for its own hooks is no enclosing lock: it holds the
        lock file as well, and a process that gets here has locked that file.
        """
        enclosing = enclosing_lock(descriptor)
        if enclosing is None:
            return False
        by = "the command that runs this build" if enclosing.inherited is not None else "a process that runs this build"
        if not enclosing.is_exclusive:
            remedy = "let it take an exclusive lock, as flock does without --shared"
            raise LockUnavailableError(self._request.subject, file.path, f"{by} holds a shared lock on it", remedy)
        self._reporter.detail(f"{shown(file.path)} is already locked by {by}")
        if isinstance(file, Directory):
            self._locked = os.fstat(descriptor)
        self._files.replace_by_enclosing(descriptor, enclosing.inherited)
        return True

    def _give_up(self) -> None:
        if self._tree_file is not None:
            self._tree_file.end_record()
            self._tree_file = None
        self._locked = None
        self._files.release()


def _is_no_directory(path: str) -> bool:
    """Return whether a path, or the target of a link with that path, exists and is not a directory."""
    try:
        return not stat.S_ISDIR(os.lstat(os.path.realpath(path)).st_mode)
    except FileNotFoundError:
        return False

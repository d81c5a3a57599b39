"""The lock on a directory: how its targets (`lockbuild.locks.targets`) are taken, one after the other.

The order is the same for all processes, so that no two can wait for each other. Where an enclosing lock already covers
a target (a hook that runs a build of its own tree, ``flock . lockbuild``), that one is not taken again. No process
waits for a target while it holds another: ``flock .`` takes the directory first and ``uv build`` its own lock file, and
a lockbuild below them wants the rest. How one that is not free is waited for is told in `lockbuild.locks.waiting`,
which is imported then.

The acquisition is one generator that yields how long to sleep. Threads sleep in ``time.sleep``, coroutines in
``asyncio.sleep`` (`SourceTreeLock`), and both run the same code.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, Self

from lockbuild.errors import CacheFolderError, SourceTreeMovedError, shown
from lockbuild.events import Reporter, ReporterFailedError
from lockbuild.locks.enclosing import inherited_lock, is_held_by_ancestor
from lockbuild.locks.holders import record_beside, remove_record, write_record
from lockbuild.locks.inheriting import OpenFiles
from lockbuild.locks.kernel import (
    Directory,
    LockFile,
    LocksUnsupportedError,
    NotALockFileError,
    try_to_lock,
    unlock,
)
from lockbuild.locks.nesting import HeldLock, held_by_ancestor, lent
from lockbuild.locks.targets import directory_targets
from lockbuild.processes import own_identity

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from contextlib import AbstractContextManager

    from lockbuild.locks.targets import ChooseTargets, Target
    from lockbuild.locks.waiting import Wait

# How often the directory is made when it vanishes again at once. In /proc none can be made, and that is all it says.
_ATTEMPTS = 1000


class _StartOver(Exception):  # noqa: N818 - not an error, and never leaves this module
    """A later target was not free. The earlier ones were given up for the wait, which is over now."""


class DirectoryLock:
    """
    An exclusive lock on a directory, for every process, user and container on this machine.

    A context manager. ``timeout`` is in seconds; ``None`` waits for ever. With ``create``
    the directory is made when it is missing, also when its last holder has removed it. ``subject`` is what the lock
    protects, and ``activity`` what its holder does meanwhile, in the words of messages. Entering raises
    `LockTimeoutError`, `LockUnavailableError`, `CacheFolderError`; without ``create`` `SourceTreeMovedError` when
    another directory has the path after a wait, and `OSError` when none had it before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        reporter: Reporter | None = None,
        create: bool = False,
        subject: str | None = None,
        activity: str | None = None,
        targets: ChooseTargets = directory_targets,
    ) -> None:
        self.path = os.fspath(path)
        self.subject = subject or self.path
        self.held: HeldLock | None = None
        """What a hook's descendants need to know of this lock, while it is held."""
        self.lock_file: str | None = None
        """The path of the lock file, once `open` has found where it is."""
        self._activity = activity
        self._timeout = timeout
        self._reporter = reporter or Reporter()
        self._create = create
        self._cache_dir = cache_dir
        self._choose_targets = targets
        self._files = OpenFiles()
        self._locked: os.stat_result | None = None
        """The directory whose inode is locked."""
        self._wait: Wait | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock. A process that inherits them keeps it when this one is killed."""
        return self._files.descriptors

    @property
    def epoch(self) -> int:
        """Changes whenever `descriptors` will be others than those that `open` has announced."""
        return self._files.epoch

    def open(self) -> None:
        """
        Open what is going to be locked, without locking it.

        A process that is started with these descriptors has the lock as soon as this one has taken it. What cannot be
        opened is left for the acquisition to report.
        """
        with contextlib.suppress(OSError, CacheFolderError):
            files = [target.file for target in self._targets(os.path.realpath(self.path))]
            self.lock_file = files[0].path
            self._files.open_ahead(files)

    def close(self) -> None:
        """Close what was opened and is not locked. Calling it again does nothing."""
        self._files.close_ahead()

    def __enter__(self) -> Self:
        """Wait for the lock and take it."""
        with self.acquiring() as delays:
            for delay in delays:
                time.sleep(delay)
        return self

    def acquiring(self) -> contextlib.closing[Generator[float, None, None]]:
        """Take the lock in a context of its own: yields how long to sleep, again and again, until it is taken."""
        # Closed at once when the wait is broken off: a lock that it has taken so far is free then.
        return contextlib.closing(self._acquire())

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.close()
        if self.held is not None:
            remove_record(record_beside(self.held.lock_file))
            self.held = None
        self._give_up()

    def lent(self) -> AbstractContextManager[dict[str, str]]:
        """
        Let builds that are started in here go on under this lock, which is held: they would wait for it for ever.

        Yields the environment variable that they have to be started with. Leaving waits for those that still run.
        """
        if self.held is None:
            raise RuntimeError(f"this lock on {self.path} is not held; only a lock that is can be lent")
        return lent(self.held)

    def leave_to_heirs(self) -> None:
        """
        Have the lock, which is held, outlive its release, for processes that have inherited its descriptors.

        A release frees the lock also for them. After this call it only closes our descriptors, and the kernel keeps
        the lock until the last heir, a hook that is still dying, has ended.
        """
        if self.held is not None:
            self._files.leave_to_heirs()

    def _acquire(self) -> Generator[float, None, None]:
        if self.held is not None:
            raise RuntimeError(f"this lock on {self.path} is held already; make a second one to wait for it")
        self._wait = None
        try:
            yield from self._take_all()
            if self._wait is not None and self._wait.was_told:
                self._reporter.got_lock(self.subject, self._wait.seconds)
        except ReporterFailedError as failure:
            self.__exit__()
            raise failure.error from None
        except BaseException:
            self.__exit__()
            raise

    def _targets(self, canonical: str) -> Sequence[Target]:
        return self._choose_targets(self.subject, canonical, self._cache_dir, self._reporter)

    def _take_all(self) -> Iterator[float]:
        before = self._find_or_make()
        canonical = os.path.realpath(self.path)
        while True:
            try:
                enclosing = held_by_ancestor(before)
                lock_file = (yield from self._take_nested(enclosing)) if enclosing is not None else None
                if lock_file is None:
                    lock_file = yield from self._take_targets(self._targets(canonical))
                break
            except _StartOver:
                continue
        after = os.stat(self.path) if os.path.isdir(self.path) else None
        # A build that waited knows only the tree that was there when it began, and may use only the directory that
        # it has locked: a link could have been pointed elsewhere between any two of these steps.
        if (
            after is None
            or (not self._create and not os.path.samestat(before, after))
            or (self._locked is not None and not os.path.samestat(self._locked, after))
        ):
            raise SourceTreeMovedError(self.path)
        write_record(record_beside(lock_file))
        self.held = HeldLock(after.st_dev, after.st_ino, own_identity(), lock_file)

    def _find_or_make(self) -> os.stat_result:
        """Return what the directory is, which is made when it may be. Its last holder may just be removing it."""
        attempts_left = _ATTEMPTS
        while True:
            attempts_left -= 1
            try:
                if self._create:
                    os.makedirs(os.path.realpath(self.path), exist_ok=True)
                return os.stat(self.path)
            except (FileExistsError, FileNotFoundError):
                # In the middle of that, too: makedirs finds that it exists, and then that it is no directory. By now
                # another process may have made it again. Only what is there and is no directory is in the way.
                if not self._create or not attempts_left or _is_no_directory(self.path):
                    raise

    def _take_nested(self, enclosing: HeldLock) -> Generator[float, None, str | None]:
        """Take the lock of builds that are nested in a build of this directory; return its file, if it has one."""
        self.lock_file = enclosing.nested_lock_file
        try:
            yield from self._take(LockFile(self.lock_file, create=False))
        except FileNotFoundError:
            # The ancestor has ended its hooks, and a process that they left running is a stranger now.
            return None
        self._reporter.detail(
            f"{shown(self.path)} is locked already by process {enclosing.holder.pid}, which this runs in"
        )
        return self.lock_file

    def _take_targets(self, targets: Sequence[Target]) -> Generator[float, None, str]:
        """Take all targets in their order; return the path of the lock file, which is the first."""
        first, *others = targets
        self.lock_file = lock_file = yield from self._take_or_replace(first)
        for target in others:
            yield from self._take_or_replace(target, lock_file)
        return lock_file

    def _take_or_replace(self, target: Target | None, lock_file: str | None = None) -> Generator[float, None, str]:
        """Take a target, or what it names in its place; return the path of what was taken."""
        while target is not None:
            file = target.file
            try:
                yield from self._take(file, may_be_enclosed=target.may_be_enclosed)
                return file.path
            except (OSError, LocksUnsupportedError, NotALockFileError) as error:
                target = target.instead(error, lock_file or file.path)
        return ""

    def _take(self, file: LockFile | Directory, *, may_be_enclosed: bool = False) -> Iterator[float]:
        """Wait for one of the kernel's locks and keep it, unless it is not free because an enclosing lock covers it."""
        while True:
            try:
                descriptor = self._files.open(file)
            except FileNotFoundError:
                if not self._create or not isinstance(file, Directory):
                    raise
                self._find_or_make()
                continue
            try:
                if not try_to_lock(descriptor):
                    if may_be_enclosed and self._is_enclosed(file, descriptor):
                        return
                    if self._files.are_locked:
                        # The holder may be about to wait for one of those that we have.
                        self._give_up()
                        yield from self._wait_for(file, descriptor)
                        raise _StartOver
                    yield from self._wait_for(file, descriptor)
                current = file.is_current(descriptor)
            except BaseException:
                # Not only closed: a hook host that was started early has the same open file, and would keep its lock.
                unlock(descriptor)
                raise
            if current:
                self._files.keep(descriptor)
                if isinstance(file, Directory):
                    self._locked = os.fstat(descriptor)
                return
            # Between our open and our lock the name was given to another file, which another process may hold. A
            # directory that its last holder has removed is made again, or found to be gone by our caller.
            unlock(descriptor)
            if self._create:
                self._find_or_make()
            elif isinstance(file, Directory):
                raise SourceTreeMovedError(self.path)

    def _wait_for(self, file: LockFile | Directory, descriptor: int) -> Iterator[float]:
        if self._wait is None:
            from lockbuild.locks.waiting import Wait

            self._wait = Wait(self.subject, self._activity, self._timeout, self._reporter)
        # Who holds a directory is in the record beside the lock file.
        lock_file = file.path if isinstance(file, LockFile) else self.lock_file or file.path
        with self._files.awaiting(descriptor):
            yield from self._wait.until_locked(descriptor, lock_file)

    def _is_enclosed(self, file: LockFile | Directory, descriptor: int) -> bool:
        """
        Tell whether an enclosing lock covers what is not free, as of ``flock DIR COMMAND`` that runs this process.

        pip and uv hand no descriptors on to their hooks. But that ``flock`` is an ancestor, which holds the directory
        for what runs below it. A build that holds it for its own hooks is none: it has the lock file as well, and a
        process that gets here has that.
        """
        inherited = inherited_lock(descriptor)
        if inherited is None and not is_held_by_ancestor(descriptor):
            return False
        by = "the command that runs this one" if inherited is not None else "a process that this one runs in"
        self._reporter.detail(f"{shown(file.path)} is locked already by {by}")
        if isinstance(file, Directory):
            self._locked = os.fstat(descriptor)
        self._files.replace_by_enclosing(descriptor, inherited)
        return True

    def _give_up(self) -> None:
        self._locked = None
        self._files.release()


def _is_no_directory(path: str) -> bool:
    """Tell whether something else has a path, or the path that a link of this name leads to."""
    try:
        return not stat.S_ISDIR(os.lstat(os.path.realpath(path)).st_mode)
    except FileNotFoundError:
        return False

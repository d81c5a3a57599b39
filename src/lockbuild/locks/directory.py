"""The lock on a directory: which of the kernel's locks it consists of, and in which order they are taken.

`DirectoryLock` takes, in this order, which is the same for everybody so that no two can wait for each other:

1. the lock file that the path's digest names, in the lock folder: it works on every platform and file system;
2. the directory itself: its inode is the same for other users, cache folders, mounts and spellings of the path;
3. those of other tools: for a source tree, the lock file by which ``uv build`` excludes itself.

Where a lock around this process already covers one of them (a hook that runs a build of its own tree, ``flock .
lockbuild``), that one is not taken again. Nobody waits for one of the three while holding another: ``flock .`` takes
the directory first and ``uv build`` its own, and a lockbuild below them wants the rest. How one that is not free is
waited for is told in `lockbuild.locks.waiting`, which is imported then.

The acquisition is one generator that yields how long to sleep. Threads sleep in ``time.sleep``, coroutines in
``asyncio.sleep``, and both run the same code.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, Self

from lockbuild.errors import (
    CacheFolderError,
    LockUnavailableError,
    SourceTreeMovedError,
    shown,
)
from lockbuild.events import Reporter, ReporterFailedError
from lockbuild.locks.around import inherited_lock, is_held_by_ancestor
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.holders import record_beside, remove_record, write_record
from lockbuild.locks.kernel import (
    Directory,
    LockFile,
    LocksUnsupportedError,
    NotALockFileError,
    try_to_lock,
    unlock,
)
from lockbuild.locks.nesting import HeldLock, held_by_ancestor, lent
from lockbuild.locks.processes import own_identity
from lockbuild.paths import fallback_lock_folder, lock_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from lockbuild.locks.waiting import Wait


# How often the directory is made when it vanishes again at once. In /proc none can be made, and that is all it says.
_ATTEMPTS = 1000


class _StartOver(Exception):  # noqa: N818 - not an error, and never leaves this module
    """A later lock was not free. The earlier ones were given up for the wait, which is over now."""


class DirectoryLock:
    """
    An exclusive lock on a directory, for every process, user and container on this machine.

    A context manager, plain and asynchronous. ``timeout`` is in seconds; ``None`` waits for ever. With ``create``
    the directory is made when it is missing, also when its last holder has removed it. Entering raises
    `LockTimeoutError`, `LockUnavailableError`, `CacheFolderError`; without ``create`` `SourceTreeMovedError` when
    another directory has the path after a wait, and `OSError` when none had it before.
    """

    _kind = "directory"

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
    ) -> None:
        self.path = os.fspath(path)
        self.subject = subject or self.path
        """What the lock protects, in the words of messages."""
        self.activity = activity
        """What its holder does meanwhile, where that is what others wait for: ``building foo-1.0.tar.gz``."""
        self.timeout = timeout
        self.held: HeldLock | None = None
        """What a hook's descendants need to know of this lock, while it is held."""
        self._cache_dir = cache_dir
        self._reporter = reporter or Reporter()
        self._create = create
        self._own: list[int] = []
        self._inherited: list[int] = []
        self._locked: os.stat_result | None = None
        """The directory whose inode is locked."""
        self._has_heirs = False
        self._opened: dict[LockFile | Directory, int] = {}
        self.lock_file: str | None = None
        """The path of the lock file, once `open` has found where it is."""
        self._awaited: int | None = None
        """What was opened and is being waited for."""
        self.is_ready: Callable[[], bool] = lambda: True
        """Asked again and again during a wait; as long as it says no, others have the lock first."""
        self.epoch = 0
        """Changes whenever `descriptors` will be others than those that `open` has announced."""
        self._started = 0.0
        """When somebody began to take it, by the monotonic clock."""
        self._wait: Wait | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock. A process that inherits them keeps it when this one is killed."""
        awaited = () if self._awaited is None else (self._awaited,)
        return (*self._own, *self._inherited, *awaited, *self._opened.values())

    def open(self) -> None:
        """
        Open what is going to be locked, without locking it.

        A process that is started with these descriptors has the lock as soon as this one has taken it, because both
        have the same open files; so a hook host can start while we still wait. What cannot be opened is left for the
        acquisition to complain of.
        """
        with contextlib.suppress(OSError, CacheFolderError):
            targets = self._targets(os.path.realpath(self.path))
            self.lock_file = targets[0].path
            for target in targets:
                with contextlib.suppress(OSError, NotALockFileError):
                    self._opened[target] = target.open()

    def close(self) -> None:
        """Close what was opened and is not locked. It does not matter how often."""
        while self._opened:
            os.close(self._opened.popitem()[1])

    def __enter__(self) -> Self:
        """Wait for the lock and take it."""
        # Closed at once when the wait is broken off: a lock that it has taken so far is free then.
        with contextlib.closing(self._acquire()) as delays:
            for delay in delays:
                time.sleep(delay)
        return self

    async def __aenter__(self) -> Self:
        """Wait for the lock and take it, while the event loop runs on."""
        import asyncio

        with contextlib.closing(self._acquire()) as delays:
            for delay in delays:
                await asyncio.sleep(delay)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.__exit__(kind, error, traceback)

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
        Have the lock outlive its release, for processes that have inherited its descriptors and may still run.

        A release frees the lock also for them. After this call it only closes our descriptors, and the kernel keeps
        the lock until the last heir, a hook that is still dying, has ended.
        """
        self._has_heirs = True

    def _acquire(self) -> Generator[float, None, None]:
        if self.held is not None:
            raise RuntimeError(f"this lock on {self.path} is held already; make a second one to wait for it")
        self._has_heirs = False
        self._wait = None
        self._started = time.monotonic()
        try:
            yield from self._take_all()
            if self._wait is not None and self._wait.was_told:
                self._reporter.got_lock(self.subject, self._wait.seconds)
        except ReporterFailedError as failure:
            self._release()
            raise failure.error from None
        except BaseException:
            self._release()
            raise

    def _targets(self, canonical: str) -> list[LockFile | Directory]:
        folder = lock_folder(self._cache_dir, self._reporter)
        targets: list[LockFile | Directory] = [LockFile(os.path.join(folder, self._file_name(canonical)))]
        if os.name != "nt":
            targets.append(Directory(canonical))
        return targets

    def _file_name(self, canonical: str) -> str:
        return f"{self._kind}-{cache_digest(canonical)}.lock"

    def _take_all(self) -> Iterator[float]:
        before = self._find_or_make()
        canonical = os.path.realpath(self.path)
        while True:
            try:
                lock_file = yield from self._take_under_ancestor(before)
                if lock_file is None:
                    lock_file = yield from self._take_lock_file(self._file_name(canonical))
                    yield from self._take_directory(canonical, lock_file)
                    yield from self._take_neighbours(canonical)
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
                # somebody else may have made it again. Only what is there and is no directory is in the way.
                if not self._create or not attempts_left or _is_no_directory(self.path):
                    raise

    def _take_under_ancestor(self, directory: os.stat_result) -> Generator[float, None, str | None]:
        """Take the lock of builds that are nested in a build of this directory; return its file, if there is one."""
        around = held_by_ancestor(directory)
        if around is None:
            return None
        lock_file = around.nested_lock_file
        try:
            yield from self._take(LockFile(lock_file, create=False), lock_file)
        except FileNotFoundError:
            # The ancestor has ended its hooks, and whatever they left running is a stranger now.
            return None
        self._reporter.detail(
            f"{shown(self.path)} is locked already by process {around.holder.pid}, which this runs in"
        )
        return lock_file

    def _take_lock_file(self, name: str) -> Generator[float, None, str]:
        """Take the lock file in the lock folder, or in the private one where that file system has no locks."""
        folder = lock_folder(self._cache_dir, self._reporter)
        lock_file = os.path.join(folder, name)
        try:
            try:
                yield from self._take(LockFile(lock_file), lock_file)
            except FileNotFoundError:
                # Somebody has removed the folder since, with our lock file in it, perhaps while we waited.
                return (yield from self._take_lock_file(name))
            except LocksUnsupportedError as error:
                folder = fallback_lock_folder(f"files in {shown(folder)} cannot be locked: {error}", self._reporter)
                lock_file = os.path.join(folder, name)
                yield from self._take(LockFile(lock_file), lock_file)
        except (LocksUnsupportedError, NotALockFileError) as error:
            raise LockUnavailableError(self.subject, lock_file, str(error)) from error
        except OSError as error:
            raise LockUnavailableError(self.subject, lock_file, error.strerror or str(error)) from error
        return lock_file

    def _take_directory(self, canonical: str, lock_file: str) -> Iterator[float]:
        """Take the directory itself. Where it cannot be locked, the lock file alone has to do, and that is told."""
        if os.name == "nt":
            # Windows opens no directories, and has neither bind mounts nor a way to remove an open lock file.
            return
        try:
            yield from self._take(Directory(canonical), lock_file, covered=self._is_locked_around)
        except (LocksUnsupportedError, PermissionError) as error:
            problem = str(error) if isinstance(error, LocksUnsupportedError) else "you may not read it"
            self._reporter.warn(
                f"{shown(self.path)} cannot be locked itself, {problem}: only builds that use the lock file "
                f"{shown(lock_file)} wait for each other, not those of other users or cache folders"
            )
        except (FileNotFoundError, NotADirectoryError):
            raise SourceTreeMovedError(self.path) from None
        except OSError as error:
            raise LockUnavailableError(self.path, canonical, error.strerror or str(error)) from error

    def _take_neighbours(self, canonical: str) -> Iterator[float]:  # noqa: ARG002 - for SourceTreeLock
        """Take the locks of other tools on the same directory. Only a source tree has any."""
        yield from ()

    def _take(
        self,
        target: LockFile | Directory,
        lock_file: str,
        covered: Callable[[int], bool] = lambda _: False,
    ) -> Iterator[float]:
        """
        Wait for one of the kernel's locks and keep it. ``covered`` tells of one that is not free whether it is held
        around this process, which then does not wait for itself.
        """
        while True:
            opened = self._opened.pop(target, None)
            if opened is None:
                # Whoever was started with what `open` has opened does not have this one.
                self.epoch += 1
            try:
                descriptor = target.open() if opened is None else opened
            except FileNotFoundError:
                if not self._create or not isinstance(target, Directory):
                    raise
                self._find_or_make()
                continue
            try:
                if not try_to_lock(descriptor):
                    if covered(descriptor):
                        self.epoch += 1
                        os.close(descriptor)
                        return
                    if self._own:
                        # Its holder may be about to wait for one of those that we have.
                        self._give_up()
                        yield from self._wait_for(descriptor, lock_file)
                        raise _StartOver
                    yield from self._wait_for(descriptor, lock_file)
                current = target.is_current(descriptor)
            except BaseException:
                # Not only closed: a hook host that was started early has the same open file, and would keep its lock.
                unlock(descriptor)
                raise
            if current:
                self._own.append(descriptor)
                if isinstance(target, Directory):
                    self._locked = os.fstat(descriptor)
                return
            # Between our open and our lock the name was given to another file, which another process may hold. A
            # directory that its last holder has removed is made again, or found to be gone by our caller.
            unlock(descriptor)
            if self._create:
                self._find_or_make()
            elif isinstance(target, Directory):
                raise SourceTreeMovedError(self.path)

    def _wait_for(self, descriptor: int, lock_file: str) -> Iterator[float]:
        if self._wait is None:
            from lockbuild.locks.waiting import Wait

            self._wait = Wait(self, self._reporter, self._started)
        self._awaited = descriptor
        try:
            yield from self._wait.until_locked(descriptor, lock_file)
        finally:
            self._awaited = None

    def _is_locked_around(self, descriptor: int) -> bool:
        """
        Tell whether ``flock DIR COMMAND`` runs this process, directly or with others between.

        pip and uv hand no descriptors on to their hooks. But that ``flock`` is an ancestor, which holds the directory
        for what runs below it. A build that holds it for its own hooks is none: it has the lock file, too, and who
        gets here has that.
        """
        if self._find_inherited_lock(descriptor):
            return True
        if not is_held_by_ancestor(descriptor):
            return False
        self._reporter.detail(f"{shown(self.path)} is locked already by a process that this one runs in")
        self._locked = os.fstat(descriptor)
        return True

    def _find_inherited_lock(self, descriptor: int) -> bool:
        inherited = inherited_lock(descriptor)
        if inherited is None:
            return False
        self._reporter.detail(f"{shown(self.path)} is locked already by the command that runs this one")
        self._inherited.append(inherited)
        self._locked = os.fstat(descriptor)
        return True

    def _release(self) -> None:
        self.close()
        if self.held is not None:
            remove_record(record_beside(self.held.lock_file))
            self.held = None
        self._give_up()

    def _give_up(self) -> None:
        self._inherited.clear()
        self._locked = None
        while self._own:
            descriptor = self._own.pop()
            if self._has_heirs:
                os.close(descriptor)
            else:
                unlock(descriptor)


def _is_no_directory(path: str) -> bool:
    """Tell whether something else has a path, or the path that a link of this name leads to."""
    try:
        return not stat.S_ISDIR(os.lstat(os.path.realpath(path)).st_mode)
    except FileNotFoundError:
        return False

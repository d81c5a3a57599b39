"""One family of exceptions: each carries its data as attributes, its message, and the exit status it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockbuild.events import Holder
    from lockbuild.processes import ProcessIdentity


def shown(path: str) -> str:
    """Return a path as a message shows it: on one line, whatever characters and bytes it consists of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


class LockbuildError(Exception):
    """Something that lockbuild cannot go on from; ``str()`` of it is one line for a person."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the constructor, whose arguments are not those that `Exception` keeps."""
        return restored_exception, (type(self), self.args, self.__dict__)


def restored_exception(kind: type[Exception], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    """Return an exception as it was when it was taken apart for another process."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class LockTimeoutError(LockbuildError):
    """A lock was not free within the time that the caller allowed. Nothing was built."""

    # EX_TEMPFAIL of sysexits.h: "try again later".
    exit_status = 75

    def __init__(self, subject: str, lock_file: str, holder: Holder | None, timeout: float) -> None:
        self.subject = subject
        self.lock_file = lock_file
        self.holder = holder
        self.timeout = timeout
        held_by = f"is held by {holder}" if holder else "is held by a process that cannot be seen from here"
        super().__init__(
            f"Gave up after {timeout:g} s: the lock on {shown(subject)} ({shown(lock_file)}) {held_by}; "
            "wait for it, or allow more with --lock-timeout or LOCKBUILD_LOCK_TIMEOUT"
        )


class LockUnavailableError(LockbuildError):
    """A lock cannot be had at all, because its file cannot be opened or its file system has no locks."""

    def __init__(self, subject: str, lock_file: str, problem: str) -> None:
        self.subject = subject
        self.lock_file = lock_file
        self.problem = problem
        super().__init__(
            f"Cannot lock {shown(subject)} with {shown(lock_file)}: {problem}; choose another cache "
            "folder with --cache-dir, or build without a lock with --lock never"
        )


class SourceTreeMovedError(LockbuildError):
    """The source tree was renamed, replaced or removed while a build waited for its lock."""

    def __init__(self, tree: str) -> None:
        self.tree = tree
        super().__init__(
            f"{shown(tree)} was moved, replaced or removed while waiting for its lock; start the build again"
        )


class SettingsError(LockbuildError):
    """A value in the environment or in ``[tool.lockbuild]`` is not one that lockbuild knows."""


class ArtifactError(LockbuildError):
    """The backend returned without leaving the artifact that it names, or what it left is not whole."""


class UnmetDependenciesError(LockbuildError):
    """Without isolation: build requirements are not installed."""


class EnvironmentFolderError(LockbuildError):
    """What the user named as the place for the build environment is not a folder."""


class OutDirError(LockbuildError):
    """The out-dir is not a folder and cannot be made one."""


class SdistError(LockbuildError):
    """A file is not a source distribution that a wheel can be built from."""


class WheelError(LockbuildError):
    """A wheel that cannot be installed: it is damaged, or would write where it must not."""

    def __init__(self, wheel: str, problem: str) -> None:
        self.wheel = wheel
        self.problem = problem
        super().__init__(f"The wheel {shown(wheel)} cannot be installed: {shown(problem)}")


class CacheFolderError(LockbuildError):
    """No folder can be had in which lock files, or what is kept, are safe."""


class WorkerError(LockbuildError):
    """The worker process of an `async_build` has ended without a word: it was killed, or could not start."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"The process of the build ended unexpectedly, with status {status}; start it again")


class Interrupted(KeyboardInterrupt):
    """A signal asks the build to end. ``exit_status`` is what shells show for it, 128 + the signal's number."""

    def __init__(self, signal_number: int, descendants: Sequence[ProcessIdentity] = ()) -> None:
        self.signal_number = signal_number
        self.descendants = descendants
        """The processes that ran below this one when the signal came. Those of an installer that is killed are
        nobody's children afterwards, and could not be found any more."""
        self.exit_status = 128 + signal_number
        super().__init__(signal_number)

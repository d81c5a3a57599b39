"""The exceptions of lockbuild. Each has its data as attributes, a message, and an exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockbuild.events import Holder
    from lockbuild.processes import ProcessIdentity


def shown(path: str) -> str:
    """Return a path for a message: on one line, whatever characters and bytes it contains."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


class LockbuildError(Exception):
    """The base of all errors of lockbuild. ``str()`` gives a one-line message."""

    exit_status = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the constructor, whose arguments differ from those that `Exception` keeps."""
        return restored_exception, (type(self), self.args, self.__dict__)


def restored_exception(kind: type[Exception], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    """Return an exception from another process, given its type, arguments and attributes."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class LockTimeoutError(LockbuildError):
    """A lock was not free within the timeout. Nothing was built."""

    # EX_TEMPFAIL in sysexits.h: "try again later".
    exit_status = 75

    def __init__(self, subject: str, lock_file: str, holder: Holder | None, timeout: float) -> None:
        self.subject = subject
        self.lock_file = lock_file
        self.holder = holder
        self.timeout = timeout
        held_by = f"is held by {holder}" if holder else "is held by a process that cannot be seen from here"
        super().__init__(
            f"Gave up after {timeout:g} s: the lock on {shown(subject)} ({shown(lock_file)}) {held_by}; "
            "wait for it, or allow more time with --lock-timeout or LOCKBUILD_LOCK_TIMEOUT"
        )


class TreeViewError(LockbuildError):
    """A source tree cannot be built in a private view."""

    def __init__(self, tree: str, reason: str) -> None:
        self.tree = tree
        self.reason = reason
        super().__init__(f"There is no private view of {shown(tree)}: {shown(reason)}; use --tree shared")


class LockUnavailableError(LockbuildError):
    """A lock cannot be taken, because its file cannot be opened or its file system has no locks."""

    def __init__(
        self,
        subject: str,
        lock_file: str,
        problem: str,
        remedy: str = "choose another cache folder with --cache-dir, or build without a lock with --lock never",
    ) -> None:
        self.subject = subject
        self.lock_file = lock_file
        self.problem = problem
        super().__init__(f"Cannot lock {shown(subject)} with {shown(lock_file)}: {problem}; {remedy}")


class LockLostError(LockbuildError):
    """Another host was given the lock on a source tree while this one held it. Nothing was published."""

    def __init__(self, tree: str, reason: str) -> None:
        self.tree = tree
        self.reason = reason
        super().__init__(
            f"Lost the lock on {shown(tree)} while it was built ({shown(reason)}): the network was interrupted, and "
            "another host may have built in it meanwhile; nothing was published, start the build again"
        )


class SourceTreeMovedError(LockbuildError):
    """The source tree was renamed, replaced or removed while a build waited for its lock."""

    def __init__(self, tree: str) -> None:
        self.tree = tree
        super().__init__(
            f"{shown(tree)} was moved, replaced or removed while this build waited for its lock; start it again"
        )


class PythonNotFoundError(LockbuildError):
    """The Python that a build should use cannot be found, or cannot run lockbuild."""

    def __init__(self, wanted: str, problem: str) -> None:
        self.wanted = wanted
        self.problem = problem
        super().__init__(f"Cannot build with the Python {shown(wanted)}: {shown(problem)}")


class SettingsError(LockbuildError):
    """An option, an environment variable or a key in ``[tool.lockbuild]`` has an invalid value."""


class ArtifactError(LockbuildError):
    """The backend did not build the artifact that it names, or the artifact is incomplete."""


class UnmetDependenciesError(LockbuildError):
    """Without isolation, build requirements are not installed."""


class InstallerError(LockbuildError):
    """The installer could not install the requirements of a build."""

    def __init__(
        self,
        installer: str,
        reason: str,
        output: str,
        *,
        is_unreachable: bool = False,
        asked_by: str = "the build requirements",
    ) -> None:
        self.installer = installer
        self.reason = reason
        self.output = output
        """What the installer has printed."""
        self.is_unreachable = is_unreachable
        """Whether it could not reach an index."""
        self.asked_by = asked_by
        """What names the requirements, such as ``build-system.requires``."""
        super().__init__(f"{installer} could not install {asked_by}: {shown(reason)}")

    def for_those_of(self, asked_by: str) -> InstallerError:
        """Return this error for requirements that ``asked_by`` names."""
        return InstallerError(
            self.installer, self.reason, self.output, is_unreachable=self.is_unreachable, asked_by=asked_by
        )


class EnvironmentFolderError(LockbuildError):
    """The path of the build environment that the user named is not a folder."""


class OutDirError(LockbuildError):
    """The out-dir is not a folder and cannot be made."""


class SdistError(LockbuildError):
    """A source distribution cannot be used for a build."""


class WheelError(LockbuildError):
    """A wheel cannot be installed, because it is damaged or would write outside its environment."""

    def __init__(self, wheel: str, problem: str) -> None:
        self.wheel = wheel
        self.problem = problem
        super().__init__(f"The wheel {shown(wheel)} cannot be installed: {shown(problem)}")


class CacheFolderError(LockbuildError):
    """There is no safe folder for lock files or for the cache."""


class WorkerError(LockbuildError):
    """The process of an `async_build` ended without a result: it was killed, or could not start."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"The build process ended unexpectedly with status {status}; start the build again")


class ExecutorError(LockbuildError):
    """A scheduler cannot be reached, or its workers cannot run a build."""


class PlanError(LockbuildError):
    """Builds of one run exclude each other, or a source of it cannot be found."""


class SourceNotBuiltError(LockbuildError):
    """A build requires projects of the same run whose wheels are not there yet."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        super().__init__(f"{', '.join(names)} must be built first")


class NeededBuildFailedError(LockbuildError):
    """A build that needs a project of the same run was not started, because the build of that project has failed."""

    def __init__(self, needed: str) -> None:
        self.needed = needed
        super().__init__(f"Not built, because it needs {shown(needed)}, which failed")


class CircleError(LockbuildError):
    """Projects of the same run need each other to be built."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = list(sources)
        listed = " needs ".join(map(shown, (*sources, sources[0])))
        super().__init__(f"The build requirements form a circle: {listed}; break it to build them")


class Interrupted(KeyboardInterrupt):
    """A signal asks the build to end. As in shells, ``exit_status`` is 128 + the number of the signal."""

    def __init__(self, signal_number: int, descendants: Sequence[ProcessIdentity] = ()) -> None:
        self.signal_number = signal_number
        self.descendants = descendants
        """The processes below this one when the signal came. Once an installer is killed, its children cannot be found
        any more."""
        self.exit_status = 128 + signal_number
        super().__init__(signal_number)

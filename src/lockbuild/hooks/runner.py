"""A runner for pyproject-hooks that runs hooks through the hook host, under locks that travel with each request.

On POSIX a `HookRunner` starts the host of `host.py` once and has it fork a process for each hook; on Windows each hook
is a process in a job object. Outside of `HookRunner.under` no hook runs. After an interruption that is so within a
fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from lockbuild.files import is_standard_stream
from lockbuild.locks import SourceTreeLock
from lockbuild.locks.nesting import environment_for_hooks, lend_to_nested_builds, take_back, try_to_take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lockbuild.hooks import HookEnvironment
    from lockbuild.hooks.client import Host
    from lockbuild.locks import InheritableLock
    from lockbuild.project import Project
    from lockbuild.views import View

    Output = Callable[[Sequence[str], Sequence[bytes], int], None]


class _Origin(NamedTuple):
    """What a host was started with."""

    python: str
    environment: str
    """``kept``, or ``-`` for an environment that is not."""
    modules: str
    """The modules that it imports ahead, with commas between them, or ``-``."""
    view: str
    """The private view of the tree that it enters, as JSON, or ``-``."""
    environ: Mapping[str, str]
    revision: int = 0
    """That of the environment."""


class HostKeeper:
    """Keeps the host of a build for the next build of this process; a context manager, at whose end the host ends."""

    def __init__(self) -> None:
        self._kept: tuple[Host, _Origin] | None = None

    def __enter__(self) -> Self:
        """Begin without a host."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the host."""
        if kept := self.take():
            kept[0].end()

    def keep(self, host: Host, origin: _Origin) -> None:
        """Keep a host that runs no hook."""
        self._kept = host, origin

    def take(self) -> tuple[Host, _Origin] | None:
        """Return the host and what it was started with, if one is kept; the caller has to end it."""
        kept, self._kept = self._kept, None
        return kept


class HookRunner:
    """
    Runs hooks; a runner for pyproject-hooks, to be called within its context `under`.

    With ``on_output`` the hooks' standard output and error are collected instead of being inherited. The function is
    given the command, the output and the exit status of each hook that has ended: in one piece, or in two where the
    runner ``separates_output``. Without ``preimport`` no backend is imported ahead. With a ``keeper``, it goes on with
    the host of another runner.
    """

    def __init__(
        self,
        on_output: Output | None = None,
        *,
        separates_output: bool = False,
        preimport: bool = True,
        keeper: HostKeeper | None = None,
    ) -> None:
        self._on_output = on_output
        self._files = (2 if separates_output else 1) if on_output else 0
        self._preimport = preimport
        self._keeper = keeper
        self._locks: Sequence[InheritableLock] = ()
        self._view = "-"
        self._lent: list[str] = []
        """The lock files by which builds that the last hook ran have excluded each other."""
        self._output: list[IO[bytes]] = []
        self._read_until: list[int] = []
        self._host: Host | None = None
        self._origin: _Origin | None = None

    def start(self, project: Project, environment: HookEnvironment | None, view: View | None = None) -> None:
        """
        Start the host for hooks of a project. No lock need be taken yet.

        With a view, the host and all its hooks see the tree as that. It is mounted before the locks are taken; nothing
        is looked up in it until a hook runs.

        It imports the project's backend meanwhile, if that is one that bears it. A host that is there already goes on
        if it is the one that would be started.
        """
        if os.name != "posix":
            return
        python = environment.python_executable if environment else sys.executable
        isolation = (environment.make_extra_environ() if environment else None) or {}
        # The first is the one by which pyproject-hooks tells its script of the backend.
        environ = {**os.environ, "_PYPROJECT_HOOKS_BUILD_BACKEND": project.backend, **isolation}
        may_import = self._preimport and not _searches_cwd(environ)
        modules = ",".join(project.imported_ahead if may_import else ()) or "-"
        self._view = view.to_json() if view is not None else "-"
        kept, revision = (environment.is_kept, environment.revision) if environment else (False, 0)
        origin = _Origin(python, "kept" if kept else "-", modules, self._view, environ, revision)
        if self._host is None and self._keeper is not None and (taken := self._keeper.take()):
            self._host, self._origin = taken
        if self._host is None or self._origin != origin or not self._host.is_running:
            self.close()
            # An interpreter that is not there is missed by the look at the environment.
            with contextlib.suppress(OSError):
                self._start_host(origin, project.tree)

    def end(self) -> None:
        """Leave the host to the next runner, if there may be one; otherwise end it. No hook runs."""
        if self._keeper is not None and self._host is not None and self._origin is not None:
            self._keeper.keep(self._host, self._origin)
            self._host = None
        self.close()

    def close(self) -> None:
        """End the host, and with it a hook that still runs."""
        host, self._host = self._host, None
        output, self._output = self._output, []
        has_ended = False
        try:
            has_ended = host is None or host.end()
        finally:
            # Also where an interruption ends the wait for the host.
            for lock in () if has_ended else self._locks:
                lock.leave_to_heirs()
            for file in output:
                file.close()
        if host is not None and not has_ended and host.was_killed:
            # Otherwise the host waits for the builds that its hooks have left running.
            for path in self._lent:
                take_back(path)

    @contextlib.contextmanager
    def under(self, locks: Sequence[InheritableLock], *, keeps_host: bool = False) -> Iterator[None]:
        """
        Run hooks under these locks. No hook is left running afterwards, except where the kernel cannot end one.

        The host ends as well, unless it is kept for what comes next. Its copies of the locks' open files hold no lock
        once it is released.
        """
        outer, self._locks = self._locks, locks
        is_kept = False
        try:
            yield
            is_kept = keeps_host and self._have_nested_builds_ended()
        finally:
            if not is_kept:
                self.close()
            self._locks = outer

    def confirm_locks(self) -> None:
        """Raise `LockLostError` if another host was given the lock on the tree under which hooks have run."""
        for lock in self._locks:
            if isinstance(lock, SourceTreeLock):
                lock.confirm()

    def __call__(
        self,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        """
        Run one hook: ``cmd`` is an interpreter, pyproject-hooks' script and its arguments.

        Raises `subprocess.CalledProcessError` when it ends with anything but status 0; its ``stderr`` is the
        reason. Raises `Interrupted` when the user interrupted a hook that had been lent the terminal.
        """
        environ = dict(extra_environ or {}) | self._environment_of_locks()
        cwd = cwd or os.getcwd()
        self._open_output()
        if sys.platform == "win32":
            from lockbuild.windows import run_in_job

            status = run_in_job(cmd, cwd, os.environ | environ, self._streams())
        else:
            status = self._run_in_host(cmd, cwd, environ)
        if self._on_output is not None:
            self._on_output(cmd, [self._read_on(number) for number in range(self._files)], status)
        if status:
            raise subprocess.CalledProcessError(status, list(cmd), stderr=_reason(status, cmd[-1]))

    def _run_in_host(self, cmd: Sequence[str], cwd: str, environ: Mapping[str, str]) -> int:
        python, *argv = cmd
        from lockbuild.hooks.client import HookRequest

        if self._host is None or self._origin is None or self._origin.python != python:
            self.close()
            self._start_host(_Origin(python, "-", "-", self._view, os.environ | environ), cwd)
        assert self._host is not None
        self._lent = self._lend_locks()
        streams = self._streams_by_number()
        files = [*streams.values(), *(descriptor for lock in self._locks for descriptor in lock.descriptors)]
        may_be_lost = any(isinstance(lock, SourceTreeLock) and lock.may_be_lost for lock in self._locks)
        request = HookRequest(argv, cwd, environ, [*streams], self._locked_tree(), self._lent)
        try:
            return self._host.run(request, files, self.confirm_locks if may_be_lost else None)
        except BaseException:
            # Interrupted. Our caller is about to remove the files by which it talks with the hook. One that ran on
            # would miss its input, and say so, or put its output into the folder that is being removed.
            self.close()
            raise

    def _start_host(self, origin: _Origin, cwd: str) -> None:
        from lockbuild.hooks.client import Host

        self._open_output()
        self._host = Host(origin[:4], origin.environ, cwd, self._streams())
        self._origin = origin

    def _open_output(self) -> None:
        if len(self._output) < self._files:
            import tempfile

            self._output = [tempfile.TemporaryFile() for _ in range(self._files)]  # noqa: SIM115 - closed by `close`
            self._read_until = [0] * self._files

    def _read_on(self, number: int) -> bytes:
        """Return what was written to one of the files since."""
        # The position is shared with the hooks' standard output. No hook runs now, and after the reading it is at the
        # end again, where the next one goes on writing.
        self._output[number].seek(self._read_until[number])
        output = self._output[number].read()
        self._read_until[number] += len(output)
        return output

    def _streams(self) -> tuple[int | None, int | None]:
        """Return what hooks have as their standard output and error; ``None`` is ours."""
        if not self._output:
            return None, None
        return self._output[0].fileno(), self._output[-1].fileno()

    def _streams_by_number(self) -> dict[int, int]:
        """Return what becomes the standard output and error of a hook; not one that a program has closed."""
        if self._output:
            return {1: self._output[0].fileno(), 2: self._output[-1].fileno()}
        return {number: number for number in (1, 2) if is_standard_stream(number)}

    def _locked_tree(self) -> list[int] | None:
        """Return the device and inode of the source tree that is locked for the hooks, if one is."""
        for lock in self._locks:
            if isinstance(lock, SourceTreeLock) and lock.held is not None:
                return [lock.held.device, lock.held.inode]
        return None

    def _lend_locks(self) -> list[str]:
        """Let builds that the hooks run go on under our locks; return the files by which these exclude each other."""
        held = [lock.held for lock in self._locks if lock.held is not None]
        if not held:
            return []
        return lend_to_nested_builds(held)

    def _have_nested_builds_ended(self) -> bool:
        """Let no more builds go on under our locks; false if one still does, for which the host has to wait."""
        if not self._lent:
            return True
        return all(map(try_to_take_back, self._lent))

    def _environment_of_locks(self) -> dict[str, str]:
        held = [lock.held for lock in self._locks if lock.held is not None]
        if not held:
            return {}
        return environment_for_hooks(held)


def _reason(status: int, exchange: str) -> str:
    """Return why a hook has failed, from the signal that killed it or the file that `host.py` has left."""
    if status < 0:
        import signal

        return f"it was killed by {signal.Signals(-status).name}"
    with contextlib.suppress(OSError), open(os.path.join(exchange, "reason"), encoding="utf-8") as file:
        return file.read()
    return f"its exit status is {status}"


def _searches_cwd(environ: Mapping[str, str]) -> bool:
    """Tell whether PYTHONPATH leads Python to the working directory, as it is when a process starts, or below it."""
    path = environ.get("PYTHONPATH", "")
    return path != "" and not all(map(os.path.isabs, path.split(os.pathsep)))

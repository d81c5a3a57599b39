"""The frontend's side of a hook call: a runner for pyproject-hooks that runs hooks through the hook host.

`HookRunner` is what ``BuildBackendHookCaller`` takes as its ``runner``. On POSIX it starts the host of `host.py` once
and has it fork a process for each hook; elsewhere each hook is a plain subprocess. Whoever leaves the runner's
context has no hook running any more, and after an interruption that is so within a fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING

from lockbuild.hooks.early import host_command, host_environ, socket_pair
from lockbuild.hooks.running import HOST_SECONDS, Host
from lockbuild.hooks.starting import make_place, take_place
from lockbuild.locks import SourceTreeLock
from lockbuild.paths import hosts_folder
from lockbuild.project import IMPORTED_ALIKE_EVERYWHERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lockbuild.environments import BuildEnvironment
    from lockbuild.hooks.compiling import Compiling
    from lockbuild.hooks.early import EarlyHost
    from lockbuild.hooks.tee import Tee
    from lockbuild.locks import InheritableLock
    from lockbuild.project import Project


class HookRunner:
    """
    Runs hooks; a runner for pyproject-hooks, to be called within its context `under`.

    With ``on_output`` the hooks' standard output and error are collected instead of being inherited. The function is
    given the command, the output and the exit status of each hook that has ended: in one piece, or in two where the
    runner ``separates_output``. With ``tee`` it is passed on and written down instead.

    It may run the hooks of several trees, one after the other. While it ``keeps_host``, one that has imported a backend
    goes on from tree to tree. The first one may be ``early``.
    """

    def __init__(
        self,
        on_output: Callable[[Sequence[str], Sequence[bytes], int], None] | None = None,
        tee: Tee | None = None,
        early: EarlyHost | None = None,
        *,
        separates_output: bool = False,
    ) -> None:
        self._locks: Sequence[InheritableLock] = ()
        self._on_output = on_output
        self._tee = tee
        self._output: list[IO[bytes]] = []
        self._read_until: list[int] = []
        self._separates_output = separates_output
        self._host: Host | None = None
        self._host_suits: tuple[str, dict[int, int]] | None = None
        self._host_is_expected = False
        self._compiling: Compiling | None = None
        self._early = early
        self.keeps_host = False

    def close(self) -> None:
        """End a host that nobody uses."""
        self._end_host()

    @contextlib.contextmanager
    def under(self, locks: Sequence[InheritableLock]) -> Iterator[None]:
        """Run hooks under these locks. No hook is left running afterwards, except where the kernel cannot end one."""
        outer, self._locks = self._locks, locks
        is_kept = False
        try:
            yield
            is_kept = self.keeps_host and self._free_host()
        finally:
            if not is_kept:
                self._end_host()
            self._locks = outer

    def warm_up(
        self,
        project: Project,
        environment: BuildEnvironment | None,
        locks: Sequence[InheritableLock],
        place: str | None = None,
    ) -> None:
        """
        Start the host for hooks that will run under ``locks``, which need not be taken yet, with their open files.

        It imports the project's backend meanwhile. A hook that turns out to need another host gets another one. With
        the lock file of a tree as ``place`` it takes a place beside that; raises `AllPlacesTakenError` if there is
        none now.
        """
        python = environment.python_executable if environment else sys.executable
        if os.name != "posix" or self._host_would_suit(python, locks):
            return
        isolation = (environment.make_extra_environ() if environment else None) or {}
        environ = host_environ(project.backend, isolation)
        is_alike = project.backend_module in IMPORTED_ALIKE_EVERYWHERE and not _searches_cwd(environ)
        early, self._early = self._early, None
        if early is not None:
            if started := early.take():
                origin = (started.python, started.environ)
                self._host = Host(started.process, started.requests, started.replies, self._tee, origin)
            if is_alike and environment is not None and environment.generation is not None:
                folder = hosts_folder(os.path.dirname(environment.generation.folder))
                if early.note(folder, python, project.backend, place or "") and place is not None:
                    make_place(place)
        if self._host is not None and self._host_suits is None and self._host.origin == (python, environ):
            # It is sent the locks before the first hook.
            self._host_is_expected = True
            return
        self._end_host()
        descriptor = take_place(place) if place is not None else None
        # An interpreter that is not there is found out by those who look at the environment.
        with contextlib.suppress(OSError):
            self._start_host(
                python, project.tree, environ, project.backend, locks, descriptor, self.keeps_host and is_alike
            )
            if environment is not None and environment.is_new:
                self._compile_ahead(environment, project.backend_module, environ)

    def _compile_ahead(self, environment: BuildEnvironment, module: str, environ: Mapping[str, str]) -> None:
        from lockbuild.hooks.compiling import Compiling, is_worthwhile

        if is_worthwhile():
            self._compiling = Compiling(environment.python_executable, module.partition(".")[0], environ)

    def _start_host(
        self,
        python: str,
        cwd: str | None,
        environ: Mapping[str, str],
        backend: str | None,
        locks: Sequence[InheritableLock],
        place: int | None = None,
        serves_more: bool = False,
    ) -> None:
        self._open_output()
        requests = socket_pair() if serves_more else os.pipe()
        replies = os.pipe()
        inherited = (place or 0, requests[0], replies[1], *_descriptors(locks))
        stdout, stderr = self._streams()
        try:
            process = subprocess.Popen(
                host_command(python, backend, inherited),
                cwd=cwd,
                env=environ,
                pass_fds=inherited[0 if place else 1 :],
                stdout=stdout,
                stderr=stderr,
                # A Ctrl-C at the terminal is for the frontend, which then asks the hook's group to end.
                process_group=0,
            )
        except BaseException:
            os.close(requests[1])
            os.close(replies[0])
            raise
        finally:
            os.close(requests[0])
            os.close(replies[1])
            if place is not None:
                os.close(place)
        self._host = Host(process, requests[1], replies[0], self._tee, (python, environ) if serves_more else None)
        self._host_suits = (python, _epochs(locks))

    def _host_would_suit(self, python: str, locks: Sequence[InheritableLock]) -> bool:
        return self._host is not None and self._host_suits == (python, _epochs(locks))

    def _send_locks_to_expected_host(self, python: str) -> bool:
        """Have the host that was expected run hooks under our locks; false if it is not that, or cannot."""
        is_expected, self._host_is_expected = self._host_is_expected, False
        if self._host is None or self._host.origin is None or self._host.origin[0] != python or not is_expected:
            return False
        # It may still import the backend.
        if not self._host.take_locks(_descriptors(self._locks), None):
            return False
        self._host_suits = (python, _epochs(self._locks))
        return True

    def _free_host(self) -> bool:
        """Have the host let go of the locks; false if there is none that is of any use afterwards."""
        # Until it is expected for the next tree, it suits none.
        self._host_suits = None
        if self._host is None or self._host.origin is None:
            return False
        return self._host.take_locks((), time.monotonic() + HOST_SECONDS)

    def _end_host(self) -> None:
        host, self._host = self._host, None
        output, self._output = self._output, []
        compiling, self._compiling = self._compiling, None
        try:
            if host is not None and not host.end():
                for lock in self._locks:
                    lock.leave_to_heirs()
        finally:
            for file in output:
                file.close()
            if self._tee is not None:
                self._tee.close()
            if compiling is not None:
                compiling.end()

    def __call__(
        self,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        """
        Run one hook: ``cmd`` is an interpreter, pyproject-hooks' script and its arguments.

        Raises `subprocess.CalledProcessError` when it ends with anything but status 0, and `Interrupted` when the user
        interrupted a hook that had been lent the terminal.
        """
        environ = dict(extra_environ or {}) | self._environment_of_locks()
        if os.name == "posix":
            if not self._host_would_suit(cmd[0], self._locks) and not self._send_locks_to_expected_host(cmd[0]):
                self._end_host()
            if self._host is None:
                self._start_host(cmd[0], cwd, os.environ | environ, None, self._locks)
                assert self._host is not None
            try:
                status = self._host.run(cmd[1:], cwd or os.getcwd(), environ, self._locked_tree(), self._lend_locks())
            except BaseException:
                # Interrupted. Our caller is about to remove the files by which it talks with the hook. One that ran on
                # would miss its input, and say so, or put its output into the folder that is being removed.
                self._end_host()
                raise
        else:
            if not self._output:
                self._open_output()
            stdout, stderr = self._streams()
            status = subprocess.run(
                cmd, cwd=cwd, env=os.environ | environ, stdout=stdout, stderr=stderr, check=False
            ).returncode
        if self._tee is not None:
            self._tee.pass_on()
        if self._on_output is not None:
            self._on_output(cmd, [self._read_on(number) for number in range(len(self._output))], status)
        if status:
            raise subprocess.CalledProcessError(status, list(cmd))

    def _open_output(self) -> None:
        if self._on_output is not None:
            import tempfile

            files = 2 if self._separates_output else 1
            self._output = [tempfile.TemporaryFile() for _ in range(files)]  # noqa: SIM115 - closed with the host
            self._read_until = [0] * files

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
        if self._tee is not None:
            return self._tee.writers
        if not self._output:
            return None, None
        return self._output[0].fileno(), self._output[-1].fileno()

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
        from lockbuild.locks.nesting import lend_to_nested_builds

        return lend_to_nested_builds(held)

    def _environment_of_locks(self) -> dict[str, str]:
        held = [lock.held for lock in self._locks if lock.held is not None]
        if not held:
            return {}
        from lockbuild.locks.nesting import environment_for_hooks

        return environment_for_hooks(held)


def _descriptors(locks: Sequence[InheritableLock]) -> list[int]:
    return [descriptor for lock in locks for descriptor in lock.descriptors]


def _searches_cwd(environ: Mapping[str, str]) -> bool:
    """Tell whether PYTHONPATH leads Python to the working directory, as it is when a process starts, or below it."""
    path = environ.get("PYTHONPATH", "")
    return path != "" and not all(map(os.path.isabs, path.split(os.pathsep)))


def _epochs(locks: Sequence[InheritableLock]) -> dict[int, int]:
    return {id(lock): lock.epoch for lock in locks}

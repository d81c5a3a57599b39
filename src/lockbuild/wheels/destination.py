"""Where wheels are installed: the folders of an environment's schemes, and the lock on each of them."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockbuild.errors import EnvironmentFolderError, LockUnavailableError, shown
from lockbuild.locks import cache_digest
from lockbuild.locks.kernel import Directory, LockFile, LocksUnsupportedError, NotALockFileError, try_to_lock, unlock
from lockbuild.paths import fallback_lock_folder, lock_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lockbuild.events import Reporter

# Asks an interpreter where its environment has what. Isolated from the working directory and from PYTHONPATH.
_QUESTION = "import json, sys, sysconfig; print(json.dumps([sysconfig.get_paths(), '%d.%d' % sys.version_info[:2]]))"

# The longest pause between two tries of a lock that is not free, in seconds. It is held while some files are linked.
_LONGEST_PAUSE = 0.01


@dataclass(frozen=True)
class Destination:
    """The folders into which wheels are installed."""

    schemes: Mapping[str, str]
    """The absolute paths of ``purelib``, ``platlib``, ``scripts`` and ``data``; and of ``headers``, the folder in which
    each distribution has one."""
    python_executable: str
    """What the scripts are run with."""

    def folder(self, scheme: str, distribution: str) -> str:
        """Return the folder of a wheel's scheme."""
        path = self.schemes[scheme]
        return os.path.join(path, distribution) if scheme == "headers" else path


def virtual_environment(path: str, python_executable: str | None = None) -> Destination:
    """
    Return the destination that a virtual environment is, as its own interpreter tells.

    Raises `EnvironmentFolderError` where there is no interpreter.
    """
    import json
    import subprocess

    path = os.path.abspath(path)
    python = python_executable or os.path.join(
        path, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python"))
    )
    try:
        answer = subprocess.run([python, "-Ic", _QUESTION], capture_output=True, check=True, text=True)
        paths, version = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise EnvironmentFolderError(
            f"{shown(path)} is not a virtual environment: its interpreter {shown(python)} cannot be asked where "
            "packages belong"
        ) from error
    return Destination(with_headers(paths, path, version), python)


def with_headers(paths: Mapping[str, str], prefix: str, version: str) -> dict[str, str]:
    """Return the schemes of wheels, of ``sysconfig``'s paths in a virtual environment: pip's place for headers."""
    schemes = {name: paths[name] for name in ("purelib", "platlib", "scripts", "data")}
    return {**schemes, "headers": os.path.join(prefix, "include", "site", f"python{version}")}


@contextlib.contextmanager
def locked(
    directory: str, cache_dir: str | None, reporter: Reporter, stopped: threading.Event | None = None
) -> Iterator[None]:
    """
    Hold the lock on one directory that wheels are installed into, against threads and processes.

    It is the kernel's lock on the directory itself; each thread opens the directory for itself, and two open files
    exclude each other wherever they are. Where directories cannot be locked it is a lock file named by the path.
    Raises `LockUnavailableError`; `InterruptedError` when ``stopped`` is set during the wait. Nobody takes one of these
    locks while holding another, so they cannot deadlock.
    """
    stopped = stopped or threading.Event()
    descriptor: int | None = None
    if os.name != "nt":
        with contextlib.suppress(LocksUnsupportedError):
            descriptor = _wait_for(Directory(directory), stopped)
    if descriptor is None:
        name = f"destination-{cache_digest(os.path.realpath(directory))}.lock"
        descriptor = _wait_for_lock_file(name, directory, lock_folder(cache_dir, reporter), reporter, stopped)
    try:
        yield
    finally:
        unlock(descriptor)


def _wait_for_lock_file(name: str, directory: str, folder: str, reporter: Reporter, stopped: threading.Event) -> int:
    lock_file = os.path.join(folder, name)
    try:
        try:
            return _wait_for(LockFile(lock_file), stopped)
        except LocksUnsupportedError as error:
            folder = fallback_lock_folder(f"files in {shown(folder)} cannot be locked: {error}", reporter)
            lock_file = os.path.join(folder, name)
            return _wait_for(LockFile(lock_file), stopped)
    except (LocksUnsupportedError, NotALockFileError) as error:
        raise LockUnavailableError(directory, lock_file, str(error)) from error


def _wait_for(target: Directory | LockFile, stopped: threading.Event) -> int:
    """Return an open file that has the lock. Raises `LocksUnsupportedError`."""
    while True:
        descriptor = target.open()
        try:
            pause = 0.0001
            while not try_to_lock(descriptor):
                if stopped.wait(pause):
                    raise InterruptedError
                pause = min(2 * pause, _LONGEST_PAUSE)
            # Between our open and our lock somebody may have put another one under this name.
            if target.is_current(descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        unlock(descriptor)

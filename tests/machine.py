"""What some tests need of the machine: root's powers (namespaces, mounts, other users), messages as they are written.

Nothing here changes the machine outside of a test: mounts are made in namespaces that end with their process, other
users are plain numbers without an entry in the user database.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Self

import pytest

import lockbuild
from witness import LOCKBUILD, PATIENCE, WitnessTree, end_all, make_witness_tree


def _may_make_namespaces() -> bool:
    """Tell whether we are root with root's powers, which a container may have taken away."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for /proc, namespaces or its flock")
as_root = pytest.mark.skipif(
    not _may_make_namespaces(), reason="namespaces, mounts and other users need root on Linux, with all of its powers"
)

# How a wait for a lock is told in the first message about it.
WAITING = "* Waiting for the lock on "

# Prints the version if the interpreter can do what the example needs: make virtual environments and compile extensions.
_PROBE = """
import ensurepip, pathlib, sys, sysconfig, venv
if sys.implementation.name == "cpython" and pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(*sys.version_info[:2])
"""

# Starts a program and adopts its orphans. A process group whose parent is gone is "orphaned": the kernel has a stopped
# one go on. Adopted, it stays as it is.
ADOPTER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
with open(os.environ["PID_FILE"] + ".new", "w") as file:
    file.write(str(pid))
os.rename(os.environ["PID_FILE"] + ".new", os.environ["PID_FILE"])
while True:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        break
"""


def state(pid: int) -> str:
    """Return the letter that the kernel has for what a process does; X for one that is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_running(pid: int) -> bool:
    """Tell whether a process has not ended."""
    return state(pid) not in ("Z", "X")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Return the children of a process of one thread that have not ended."""
    numbers = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [number for number in numbers if is_running(number)]


def is_free(path: Path) -> bool:
    """Try the kernel's lock on a file or directory, as ``flock -n`` does."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def start_adopted(
    tree: WitnessTree, *options: str, env: Mapping[str, str | None] | None = None, gate: Path | None = None
) -> int:
    """Start a build as `WitnessTree.start` does; return its process number. What it leaves behind has a parent."""
    pid_file = tree.control / "adopted"
    pid_file.unlink(missing_ok=True)
    adopter = (sys.executable, "-c", ADOPTER, *LOCKBUILD)
    tree.start(*options, command=adopter, env={**(env or {}), "PID_FILE": str(pid_file)}, gate=gate)
    return int(tree.told(pid_file.name))


def read_message(process: subprocess.Popen[str], text: str) -> str:
    """
    Return the next line on a process's standard error that contains ``text``.

    It is read byte by byte, so that what follows is left for ``communicate``.
    """
    assert process.stderr is not None
    descriptor = process.stderr.fileno()
    deadline = time.monotonic() + PATIENCE
    line = b""
    seen: list[str] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(descriptor, 1) if ready else b""
        line += byte
        if not byte or byte == b"\n":
            told = line.decode(errors="replace")
            if text in told:
                return told.rstrip("\n")
            seen.append(told)
            if not byte:
                raise AssertionError(f"no message with {text!r} came, but: {''.join(seen)}")
            line = b""


def wait_until_it_waits(process: subprocess.Popen[str]) -> str:
    """Wait until a build says that it waits for a lock; return that message."""
    return read_message(process, WAITING)


def after_setup(script: str, *namespaces: str, command: tuple[str, ...] = LOCKBUILD) -> tuple[str, ...]:
    """Return a command that runs in its own mount namespace (and further ones) after a shell script has run there."""
    options = ("--fork", "--kill-child", "--mount-proc") if "--pid" in namespaces else ()
    return ("unshare", "--mount", *namespaces, *options, "sh", "-ec", f'{script}\nexec "$@"', "sh", *command)


def bind(source: Path | str, target: Path | str, *options: str) -> str:
    """Return the shell command that mounts a folder at a second place."""
    command = shlex.join(["mount", "--bind", str(source), str(target)])
    if options:
        command += "\n" + shlex.join(["mount", "-o", f"remount,bind,{','.join(options)}", str(target)])
    return command


@dataclass(frozen=True)
class User:
    """An unprivileged user: a number, and a way to run this Python as that user."""

    number: int
    folder: Path
    """A folder that is the user's own."""

    @property
    def environ(self) -> dict[str, str | None]:
        """Settings with which the user's builds keep to folders that are the user's own."""
        temporary = self.folder / "tmp"
        if not temporary.exists():
            temporary.mkdir()
            os.chown(temporary, self.number, self.number)
        return {"TMPDIR": str(temporary), "HOME": str(self.folder), "LOCKBUILD_CACHE_DIR": str(self.folder / "cache")}

    def command(self, *words: str, setup: str = "") -> tuple[str, ...]:
        """
        Return a command that runs Python with these words as this user, after a shell script that root runs.

        The user may not be able to reach the interpreter and the packages that these tests run with (below a home
        folder that is closed to others). So they are mounted in the user's folder, in the command's own namespace.
        """
        places: dict[str, Path | str] = {
            "python": sys.base_prefix,
            "packages": _packages(),
            "source": Path(lockbuild.__file__).parents[1],
        }
        for name in places:
            (self.folder / name).mkdir(exist_ok=True)
        interpreter = Path(os.path.realpath(sys.executable)).relative_to(os.path.realpath(sys.base_prefix))
        path = f"{self.folder / 'source'}:{self.folder / 'packages'}"
        script = "\n".join(bind(place, self.folder / name) for name, place in places.items())
        identity = ("--reuid", str(self.number), "--regid", str(self.number), "--clear-groups")
        # After setpriv, because the loader would take LD_LIBRARY_PATH for the tools before it, too.
        variables = (f"PYTHONPATH={path}", f"LD_LIBRARY_PATH={self.folder / 'python' / 'lib'}")
        python = (str(self.folder / "python" / interpreter), *words)
        return after_setup(f"{script}\n{setup}", command=("setpriv", *identity, "env", *variables, *python))

    @property
    def lockbuild(self) -> tuple[str, ...]:
        """The command that runs lockbuild as this user."""
        return self.command("-m", "lockbuild")


def _become(number: int) -> None:
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)
    os.umask(0)


def as_user(number: int, action: Callable[[], object]) -> None:
    """Do something as an unprivileged user, in a process of the user's own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _become(number)
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Attack:
    """An unprivileged user who takes a step again and again, as fast as he can; a context manager."""

    def __init__(self, user: int, step: Callable[[], int]) -> None:
        context = get_context("fork")
        self._successes = context.Value("L", 0)
        self._stop = context.Event()
        self._process = context.Process(target=self._run, args=(user, step))

    @property
    def successes(self) -> int:
        """How often a step has succeeded: what ``step`` has returned in all."""
        return int(self._successes.value)

    def _run(self, user: int, step: Callable[[], int]) -> None:
        _become(user)
        while not self._stop.is_set():
            self._successes.value += step()

    def __enter__(self) -> Self:
        """Begin."""
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._process.join()


def _packages() -> Path:
    import build

    return Path(build.__file__).parents[1]


@dataclass(frozen=True)
class PublicPlace:
    """A folder that every user can reach (pytest's is root's alone), with a witness tree that every user may write."""

    path: Path
    tree: WitnessTree

    def user(self, number: int) -> User:
        """Return an unprivileged user with a folder of the user's own here."""
        folder = self.path / f"user-{number}"
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, number, number)
        return User(number, folder)

    def shared_folder(self, name: str) -> Path:
        """Make a folder in which every user may make files, and remove only the user's own, like /tmp."""
        folder = self.path / name
        folder.mkdir()
        folder.chmod(0o1777)
        return folder


@contextlib.contextmanager
def public_place() -> Iterator[PublicPlace]:
    """Make a public place; everything that was started in its tree is ended with it."""
    path = Path(tempfile.mkdtemp(prefix="lockbuild-test-", dir="/tmp"))
    path.chmod(0o755)
    tree = make_witness_tree(path / "witness")
    tree.path.chmod(0o777)
    tree.control.chmod(0o777)
    tree.log_file.touch()
    tree.log_file.chmod(0o666)
    try:
        yield PublicPlace(path, tree)
    finally:
        end_all(tree.started)
        shutil.rmtree(path)


def second_tree(tree: WitnessTree, path: Path) -> WitnessTree:
    """Copy a witness tree; its hooks write to the same log."""
    shutil.copytree(tree.path, path, ignore=shutil.ignore_patterns("__pycache__"))
    return WitnessTree(path, tree.control, tree.started)


def error_line(result: tuple[int, str, str]) -> str:
    """Check that a build has ended with status 1 and one line that says why; return that line."""
    status, out, err = result
    assert status == 1, (status, out, err)
    assert "Traceback" not in out + err
    assert "bug in lockbuild" not in err
    errors = [line for line in err.splitlines() if line.startswith("ERROR ")]
    assert errors == err.splitlines()[-1:], err
    return errors[0]


def warnings_in(message: str) -> list[str]:
    """Return the warnings among what a build has written to standard error."""
    return [line for line in message.splitlines() if line.startswith("WARNING ")]


def interpreters() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield interpreters that can build the example, one for each version from 3.11 on, ours first."""
    candidates = [sys.executable, *filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 20)))]
    if root := os.environ.get("PYENV_ROOT"):
        candidates += map(str, sorted(Path(root).glob("versions/*/bin/python3")))
    seen = set()
    for candidate in candidates:
        probed = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True, cwd="/")
        # A shim of a version manager may name a version that is not there, and fail.
        if probed.returncode == 0 and probed.stdout:
            major, minor = map(int, probed.stdout.split())
            if (major, minor) >= (3, 11) and (major, minor) not in seen:
                seen.add((major, minor))
                yield candidate, (major, minor)

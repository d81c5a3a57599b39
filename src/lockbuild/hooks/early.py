"""The hook host of a build that is repeated, started before that build knows which one it needs.

To read the command line, the project and the key of its environment, and to import what that takes, is a tenth of a
small build, in which its host could import the backend. The next build in the same working directory, with the same
options and the same last word, mostly comes to the same end: the same interpreter and the same backend. So a build
leaves a note of them, and the next one starts that host first of all. Where there is none for its last word, which may
be a tree that is new, it goes by the latest one.

It is a guess, and nothing depends on it. The host has no locks, and runs no hook. When the frontend has found out by
itself what it needs, and would have started this very host, it sends it the locks before the first hook. A host that
nobody has expected is ended. Notes name what is executed, so they are in a folder that only this user can write.

Until the host runs nothing is imported that it does not take; what is imported here delays it.
"""

from __future__ import annotations

import os

from lockbuild.digest import sha256
from lockbuild.folders import is_private_folder
from lockbuild.hooks.starting import AllPlacesTakenError, take_known_place
from lockbuild.user_folders import HOSTS_SUFFIX, cache_folder, environment_folder_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HOST = os.path.join(os.path.dirname(__file__), "host.py")

# Executes it in its compiled form, which Python does not keep for a script. The working directory is the source tree,
# from which nothing may be imported. On one line: it may be shown as the command of who holds a lock.
_EXECUTE = (
    "import sys; sys.path[0] or sys.path.pop(0); from importlib.machinery import SourceFileLoader as Loader; "
    "exec(Loader('hook host', sys.argv[1]).get_code('hook host'))"
)

# A note consists of the interpreter, the backend, and the lock file of the tree, empty if that is not locked.
_LINES = 3

# Of `signal`, which takes longer to import than all of this.
_SIGKILL = 9


def host_command(python: str, backend: str | None, descriptors: Sequence[int]) -> list[str]:
    """Return the command that runs a hook host; ``backend`` is as pyproject.toml has it, ``None`` imports none."""
    module = backend.partition(":")[0] if backend else "-"
    return [python, "-c", _EXECUTE, _HOST, module, *map(str, descriptors)]


def host_environ(backend: str, isolation: Mapping[str, str]) -> dict[str, str]:
    """Return all the variables of a hook host that imports a backend."""
    # The first is the one by which pyproject-hooks tells its script of the backend.
    return {**os.environ, "_PYPROJECT_HOOKS_BUILD_BACKEND": backend, **isolation}


def isolation_of(scripts: str) -> dict[str, str]:
    """Return the variables that isolate hooks in an environment, the same that `build` sets."""
    path = os.environ.get("PATH")
    return {"PATH": scripts if path is None else os.pathsep.join((scripts, path)), "PYTHONPATH": ""}


class StartedHost:
    """A hook host that was started on a guess: its process, our ends of what we talk through, and its origin."""

    def __init__(self, process: Child, requests: int, replies: int, python: str, environ: Mapping[str, str]) -> None:
        self.process = process
        self.requests = requests
        self.replies = replies
        self.python = python
        self.environ = environ

    def end(self) -> None:
        """End it. It runs no hook."""
        self.process.kill()
        self.process.wait()
        os.close(self.requests)
        os.close(self.replies)


class EarlyHost:
    """
    What has become of the guess, and the note for the next one.

    It is closed by whoever has started it. A host that was taken is ended by whoever took it.
    """

    def __init__(self, names: Sequence[str], noted: Sequence[str], started: StartedHost | None) -> None:
        self._names = names
        self._noted = tuple(noted)
        self._started = started

    def take(self) -> StartedHost | None:
        """Return the host, once, if one was started."""
        started, self._started = self._started, None
        return started

    def close(self) -> None:
        """End a host that nobody has taken."""
        if started := self.take():
            started.end()

    def note(self, folder: str | None, python: str, backend: str, lock_file: str) -> bool:
        """
        Note for the next build, in the folder of the notes, which host this one needs.

        Returns whether that is news.
        """
        needed = (python, backend, lock_file)
        if folder is None or needed == self._noted or any("\n" in line for line in needed):
            return False
        for path in (os.path.join(folder, name) for name in self._names):
            hidden = f"{path}.{os.urandom(4).hex()}"
            try:
                with open(hidden, "xb") as file:
                    file.write(os.fsencode("\n".join(needed)))
                os.replace(hidden, path)
            except OSError:
                # Without a note the next build takes a little longer.
                pass
        return True


class Child:
    """A child process, as far as that of a hook host has to be known: as `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status: int | None = None

    def kill(self) -> None:
        """Kill it, unless it has been waited for."""
        if self._status is None:
            os.kill(self._pid, _SIGKILL)

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for the signal that killed it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def start_early(words: Sequence[str]) -> EarlyHost | None:
    """
    Start the host that the last build like this one needed; ``words`` are those of the command line.

    Returns where to leave the note, also where there was none; ``None`` where hosts are not to be started early. It is
    for a process that has done nothing else yet, and has no other thread.
    """
    if not hasattr(os, "posix_spawn") or os.environ.get("LOCKBUILD_PREIMPORT", "1") != "1":
        return None
    noted: list[str] = []
    started = None
    try:
        names = _names_of_notes(words)
    except OSError:
        # There is no working directory any more.
        return None
    try:
        noted = _read_note(names)
        if len(noted) == _LINES:
            started = _start(*noted)
    except (AllPlacesTakenError, OSError, ValueError):
        # It is started later, as if there were no note.
        pass
    return EarlyHost(names, noted, started)


def _start(python: str, backend: str, lock_file: str) -> StartedHost:
    place = take_known_place(lock_file) if lock_file else 0
    theirs, ours = [place] if place else [], []
    try:
        for pair in (socket_pair(), os.pipe()[::-1]):
            theirs.append(pair[0])
            ours.append(pair[1])
        for descriptor in theirs:
            # No thread is there that could start another process with it.
            os.set_inheritable(descriptor, True)
        environ = host_environ(backend, isolation_of(os.path.dirname(python)))
        # Other than `subprocess` it leaves the signals as they are that Python ignores: so does the host, a Python.
        pid = os.posix_spawn(
            python,
            host_command(python, backend, (place, *theirs[-2:])),
            environ,
            file_actions=[(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable() if number not in theirs],
            setpgroup=0,
        )
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return StartedHost(Child(pid), ours[0], ours[1], python, environ)


def _names_of_notes(words: Sequence[str]) -> list[str]:
    """Return the name of the note for these words, and that of the latest one for any last word."""
    # Not the values of options: the out-dir may be another one each time.
    options = sorted(word.partition("=")[0] for word in words if word.startswith("-"))
    return [_digest(os.getcwd(), *options, last) for last in (words[-1] if words else "", "*")]


def _digest(*parts: str) -> str:
    return sha256(os.fsencode("\0".join(parts))).hexdigest()[:24]


def _read_note(names: Sequence[str]) -> list[str]:
    cache = cache_folder()
    for store in environment_folder_names() if cache else ():
        folder = os.path.join(cache or "", f"{store}{HOSTS_SUFFIX}")
        for name in names:
            try:
                if is_private_folder(folder):
                    with open(os.path.join(folder, name), "rb") as file:
                        return os.fsdecode(file.read()).split("\n")
            except FileNotFoundError:
                # There is no such note; in a shared cache folder, perhaps none of the first user's.
                continue
    return []


def _inheritable() -> list[int]:
    """Return the descriptors, beside the standard streams, that a child would get from us and should not."""
    found = []
    for number in map(int, os.listdir("/dev/fd")):
        try:
            if number > 2 and os.get_inheritable(number):
                found.append(number)
        except OSError:
            # That of the listing itself.
            pass
    return found


def socket_pair() -> tuple[int, int]:
    """Return two connected sockets, as `os.pipe` would: open files can be sent through them."""
    try:
        # What `socket` adds to it takes longer to import than all the rest of this module.
        from _socket import socketpair
    except ImportError:
        from socket import socketpair
    ours, theirs = socketpair()
    return ours.detach(), theirs.detach()

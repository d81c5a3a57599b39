"""Facts about other processes: whether one runs, its start time, its command line, and its ancestors.

On Linux they are read in ``/proc``. Elsewhere on POSIX, ``ps`` tells the ancestors; it is run only when a lock is
contended or a build is nested in another. Windows tells only the start time. An unknown fact is ``None``: no caller may
guess.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The longest command line in a message, in characters.
_COMMAND_LENGTH = 120

_PROC = "/proc"


class ProcessIdentity(NamedTuple):
    """A process, distinguished from a later one with the same ID."""

    pid: int
    started: str | None
    """Its start time in the words of the kernel, only for comparison; ``None`` if unknown."""


def own_identity() -> ProcessIdentity:
    """Return the identity of this process. On POSIX without ``/proc``, it has no start time."""
    return ProcessIdentity(os.getpid(), _start_time(os.getpid()))


def is_running(process: ProcessIdentity) -> bool:
    """Return whether this very process still runs. On Windows, one that this user may not ask about does not."""
    started = _start_time(process.pid)
    if started is not None or os.name != "posix" or os.path.exists(f"{_PROC}/self/stat"):
        return started is not None and process.started in (None, started)
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str | None:
    """Return the command line of a process on one line, shortened for a message; ``None`` if unknown."""
    try:
        with open(f"{_PROC}/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    return shorten(words_of_command(os.fsdecode(word) for word in words)) or None


def words_of_command(words: Iterable[str]) -> str:
    """Quote the words of a command for a shell and join them on one line, without the path of the program."""
    return printable(shlex.join(_without_interpreter(list(words))))


def _without_interpreter(words: list[str]) -> list[str]:
    """Return the words of a command that tell people what runs: for Python, the module or the script and its words."""
    if not words:
        return []
    program, *rest = os.path.basename(words[0]), *words[1:]
    if not re.fullmatch(r"(python|pypy)[0-9.]*w?(\.exe)?", program):
        return [program, *rest]
    position = 0
    while position < len(rest) and re.fullmatch(r"-[BEIOPRSWXbdisuvx]+", rest[position]):
        # -W and -X have an argument.
        position += 2 if rest[position][-1] in "WX" else 1
    match rest[position:]:
        case [option, module, *arguments] if re.fullmatch("-[BEIOPRSbdisuvx]*m", option):
            return [module, *arguments]
        case [script, *arguments] if not script.startswith("-"):
            return [os.path.basename(script), *arguments]
    return [program, *rest]


def printable(line: str) -> str:
    """Replace control characters, which could break the line or control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def shorten(command: str) -> str:
    """Shorten a command line for a message."""
    return command if len(command) <= _COMMAND_LENGTH else command[: _COMMAND_LENGTH - 1] + "…"


def ancestors() -> Iterator[int]:
    """Yield the process IDs of this process's parent, its parent's parent, and so on, as far as they are visible."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        parent = _parent(pid)
        if parent is None or parent == pid:
            return
        pid = parent


def descendants() -> list[ProcessIdentity]:
    """Return the processes below this one, parents first; none without ``/proc``."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(_PROC) if os.path.isdir(_PROC) else ():
        if name.isdigit() and (fields := _stat_fields(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return [ProcessIdentity(pid, _start_time(pid)) for pid in found[1:]]


def can_tell_ancestors() -> bool:
    """Return whether `ancestors` can go beyond the parent on this platform."""
    return os.name == "posix"


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the command, which may contain spaces and parentheses."""
    if os.name != "posix":
        # On Windows, this path is on the current drive, where any user may have made it.
        return None
    try:
        # UTF-8, because Python imports that at its start: a signal handler that calls this (`interruptible`) could
        # interrupt the import of another encoding.
        with open(f"{_PROC}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended: it neither holds a lock nor runs a hook.
    return None if fields[0] in ("Z", "X") else fields


def _start_time(pid: int) -> str | None:
    if sys.platform == "win32":
        from lockbuild.windows import start_time

        return start_time(pid)
    fields = _stat_fields(pid)
    # Field 22 in proc(5), the start time in clock ticks since boot. These fields begin with the third.
    return fields[19] if fields else None


def _parent(pid: int) -> int | None:
    fields = _stat_fields(pid)
    if fields:
        return int(fields[1])
    if os.name != "posix" or os.path.exists(f"{_PROC}/self/stat"):
        return None
    import subprocess

    answer = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(answer.stdout) if answer.stdout.strip().isdigit() else None

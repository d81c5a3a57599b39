"""What can be learned about another process: whether it runs, since when, what it is called, who started it.

Linux tells it in ``/proc``. Elsewhere POSIX's ``ps`` is asked, which costs a process, and so is used only where a
lock is contended or a build is nested in another. What cannot be learned is ``None``: no caller may guess.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# The longest command line that is worth a place in a message, in characters.
_COMMAND_LENGTH = 120

_PROC = "/proc"


class ProcessIdentity(NamedTuple):
    """A process that cannot be taken for a later one which was given the same number."""

    pid: int
    started: str | None
    """The kernel's or ``ps``' word for its start time; only good for comparing."""


def own_identity() -> ProcessIdentity:
    """Return the identity of this process. Never starts a process: without ``/proc`` the start time is left out."""
    return ProcessIdentity(os.getpid(), _start_time(os.getpid()))


def is_running(process: ProcessIdentity) -> bool:
    """Tell whether this very process still runs. False where it cannot be found out (Windows)."""
    if os.name != "posix":
        return False
    started = _start_time(process.pid)
    if started is not None or os.path.exists(f"{_PROC}/self/stat"):
        return started is not None and process.started in (None, started)
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str | None:
    """Return the command line of a process on one line, shortened for a message."""
    try:
        with open(f"{_PROC}/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    return shorten(words_of_command(os.fsdecode(word) for word in words)) or None


def words_of_command(words: Iterator[str]) -> str:
    """Join a command's words as a shell would read them; control characters cannot break the line."""
    import shlex

    return printable(shlex.join(words))


def printable(line: str) -> str:
    """Replace control characters, which could break the line or do worse to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def shorten(command: str) -> str:
    """Shorten a command line to what fits into a message."""
    return command if len(command) <= _COMMAND_LENGTH else command[: _COMMAND_LENGTH - 1] + "…"


def ancestors() -> Iterator[int]:
    """Yield the process numbers of this process's parent, its parent's parent, and so on, as far as can be seen."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        parent = _parent(pid)
        if parent is None or parent == pid:
            return
        pid = parent


def descendants() -> list[ProcessIdentity]:
    """Return the processes below this one, parents first. Empty where ``/proc`` does not tell."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(_PROC) if os.path.isdir(_PROC) else ():
        if name.isdigit() and (fields := _stat_fields(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return [ProcessIdentity(pid, _start_time(pid)) for pid in found[1:]]


def can_tell_ancestors() -> bool:
    """Tell whether `ancestors` sees further than the parent here."""
    return os.name == "posix"


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` that follow the command, which may itself hold blanks and brackets."""
    if os.name != "posix":
        # On Windows this path is one on the current drive, where any user may have made it.
        return None
    try:
        # A signal handler asks, too (`interruptible`): an encoding that Python has at its start is not half imported.
        with open(f"{_PROC}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended: nothing of it holds a lock or runs a hook any more.
    return None if fields[0] in ("Z", "X") else fields


def _start_time(pid: int) -> str | None:
    fields = _stat_fields(pid)
    # Field 22 of proc(5), the start time in clock ticks since boot; the fields here begin with the third.
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

"""Who holds a lock: asked from the kernel where it tells, read from the holder's own record elsewhere.

The lock is the kernel's; what stands here is for people only. A record is a small JSON file beside the lock file,
written whole (under another name, then renamed) and never into the lock file itself: where a folder is shared, a
lock file may be a hard link that another user made to a file of ours, and whoever wrote into it would destroy that.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockbuild.locks.processes import (
    ProcessIdentity,
    command_line,
    is_running,
    own_identity,
    shorten,
    words_of_command,
)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    command: str | None
    since: float | None
    """When it took the lock, in seconds since the epoch, where it left a record of that."""

    def __str__(self) -> str:
        """Return it in the words of a message: ``1234 (lockbuild --wheel) for 12 s``."""
        command = f" ({self.command})" if self.command else ""
        held = "" if self.since is None else f" for {max(0.0, time.time() - self.since):.0f} s"
        return f"{self.pid}{command}{held}"


def find_holder(descriptor: int, record: str | None) -> Holder | None:
    """
    Return who holds the lock on the file behind ``descriptor``, or ``None`` where that cannot be seen.

    ``record`` is the path of the record that a holder may have left; it counts only if its process still runs.
    """
    noted = _read_record(record) if record else None
    pid = _holder_by_kernel(os.fstat(descriptor))
    if pid is None:
        return noted
    if noted is not None and noted.pid == pid:
        return noted
    return Holder(pid, command_line(pid), None)


def write_record(path: str) -> None:
    """Leave a record of this process as the holder. Where the folder does not allow it there is none."""
    identity = own_identity()
    content = {
        "pid": identity.pid,
        "started": identity.started,
        "command": words_of_command(iter([sys.executable, *sys.orig_argv[1:]])),
        "since": time.time(),
    }
    temporary = f"{path}.{identity.pid}.{time.monotonic_ns()}"
    with contextlib.suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(content, file)
        os.replace(temporary, path)


def remove_record(path: str) -> None:
    """Remove the record of this process."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def record_beside(lock_file: str) -> str:
    """Return the path of the record that the holder of a lock file leaves."""
    return f"{lock_file}.holder"


def recorded_pid(path: str) -> int | None:
    """Return the process number in a record, whether or not that process still runs."""
    try:
        return int(_load(path)["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(path: str) -> dict[str, Any]:
    content = json.loads(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
    return content if isinstance(content, dict) else {}


def _read_record(path: str) -> Holder | None:
    try:
        content = _load(path)
        identity = ProcessIdentity(int(content["pid"]), content["started"])
        holder = Holder(identity.pid, shorten(str(content["command"])), float(content["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return holder if is_running(identity) else None


def _holder_by_kernel(locked: os.stat_result) -> int | None:
    """Look for the holder of a flock in ``/proc/locks`` (proc(5)), which lists those that this process may see."""
    identity = f"{os.major(locked.st_dev):02x}:{os.minor(locked.st_dev):02x}:{locked.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF"; one that waits has "->" in the second place.
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == identity and int(fields[4]) > 0:
            return int(fields[4])
    return _holder_by_descriptors(locked)


def _holder_by_descriptors(locked: os.stat_result) -> int | None:
    """
    Look for a process that holds the lock through a descriptor it was given.

    ``/proc/locks`` names who called flock. When that frontend was killed, the hook process that inherited its
    descriptor holds the lock on, and only ``/proc/PID/fdinfo`` still shows it.
    """
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (locked.st_dev, locked.st_ino) and holds_flock(
                    process / "fdinfo" / descriptor.name
                ):
                    return int(process.name)
        except OSError:
            # The process has ended meanwhile, or is another user's.
            continue
    return None


def holds_flock(fdinfo: Path) -> bool:
    """Tell whether the open file that an ``fdinfo`` file of ``/proc`` describes holds an exclusive flock."""
    try:
        lines = fdinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("lock:") and "FLOCK" in line and "WRITE" in line for line in lines)

"""Who holds a lock: asked from the kernel where it tells, read from the holder's own record elsewhere.

The lock is the kernel's; what stands here is for people only. A record is a small JSON file beside the lock file,
written whole (under another name, then renamed) and never into the lock file itself: where a folder is shared, a
lock file may be a hard link that another user made to a file of ours, and whoever wrote into it would destroy that.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError
from lockbuild.events import Holder
from lockbuild.files import read_json, write_json
from lockbuild.folders import open_folder
from lockbuild.processes import (
    ProcessIdentity,
    command_line,
    is_running,
    own_identity,
    printable,
    shorten,
    words_of_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    folder, name = os.path.split(path)
    # Another user's record in a folder with the sticky bit cannot be replaced, say.
    with contextlib.suppress(OSError, CacheFolderError), open_folder(folder, shared=True) as opened:
        write_json(opened.at(name), content, 0o644, opened.descriptor)


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
        return int(read_json(path, _RECORD_SIZE)["pid"])
    except _NO_RECORD:
        return None


# What comes of a file that is not a record of ours: it may be anything, where other users can write in the folder.
_NO_RECORD = (ValueError, KeyError, TypeError, OverflowError)

# More than any record has, in bytes.
_RECORD_SIZE = 1 << 20


def _read_record(path: str) -> Holder | None:
    try:
        content = read_json(path, _RECORD_SIZE)
        identity = ProcessIdentity(int(content["pid"]), content["started"])
        holder = Holder(identity.pid, shorten(printable(str(content["command"]))), float(content["since"]))
    except _NO_RECORD:
        return None
    return holder if is_running(identity) else None


def _holder_by_kernel(locked: os.stat_result) -> int | None:
    """Look for the holder of a flock in ``/proc/locks`` (proc(5)), which lists those that this process may see."""
    if not hasattr(os, "major"):
        # Windows. Any user there may make a folder ``C:/proc`` and write into it what we would believe.
        return None
    identity = f"{os.major(locked.st_dev):02x}:{os.minor(locked.st_dev):02x}:{locked.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF"; one that waits has "->" in the second place.
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == identity and _may_have_open(fields[4], locked):
            return int(fields[4])
    return _holder_by_descriptors(locked)


def _may_have_open(pid: str, locked: os.stat_result) -> bool:
    """
    Tell whether a process may have a file open, as one that holds a lock on it must.

    The process that called flock may have ended, and another one may have its number, while a child holds the lock on.
    """
    try:
        return any(True for _ in _open_files(pid, locked))
    except OSError as error:
        return isinstance(error, PermissionError)


def _holder_by_descriptors(locked: os.stat_result) -> int | None:
    """
    Look for a process that holds the lock through a descriptor it was given.

    ``/proc/locks`` names the process that called flock. When that frontend was killed, the hook process that inherited
    its descriptor holds the lock on, and only ``/proc/PID/fdinfo`` still shows it.
    """
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # A process that has ended meanwhile, or is another user's, is passed over.
        with contextlib.suppress(OSError):
            descriptors = () if int(pid) == os.getpid() else _open_files(pid, locked)
            if any(holds_flock(f"/proc/{pid}/fdinfo/{number}") for number in descriptors):
                return int(pid)
    return None


def _open_files(pid: str, file: os.stat_result) -> Iterator[str]:
    """Yield the descriptors that a process has of a file. Raises `OSError` where it does not show them."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), file):
                yield number


def holds_flock(fdinfo: str) -> bool:
    """Tell whether the open file that an ``fdinfo`` file of ``/proc`` describes holds an exclusive flock."""
    try:
        with open(fdinfo, encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    return any(line.startswith("lock:") and "FLOCK" in line and "WRITE" in line for line in lines)

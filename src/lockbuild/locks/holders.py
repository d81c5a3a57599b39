"""The process that holds a lock, for messages: as the kernel reports it, or else as the holder recorded it.

A record is a small JSON file beside the lock file. It is written under another name and then renamed, and never into
the lock file itself: in a shared folder, a lock file may be another user's hard link to one of our files, which
writing would destroy.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

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
    Return the process that holds the lock on the file behind ``descriptor``, or ``None`` if it cannot be seen.

    ``record`` is the path of the holder's record, if any. It counts only while its process runs.
    """
    noted = _holder_in(record) if record else None
    held = list(locks_held(os.fstat(descriptor)))
    if not held:
        return noted
    pid = held[0].pid
    if noted is not None and noted.pid == pid:
        return noted
    # An exclusive lock has one holder, and perhaps processes that have inherited it.
    others = dict.fromkeys(each.pid for each in held if each.mode == "READ" and each.pid != pid)
    return Holder(pid, command_line(pid), None, tuple(others))


def write_record(path: str) -> object:
    """Record this process as the holder, if the folder can be written; return the content of the record."""
    identity = own_identity()
    content = {
        "pid": identity.pid,
        "started": identity.started,
        "command": words_of_command([sys.executable, *sys.orig_argv[1:]]),
        "since": time.time(),
        **_this_host(),
    }
    folder, name = os.path.split(path)
    # For example, another user's record in a folder with the sticky bit cannot be replaced.
    with contextlib.suppress(OSError, CacheFolderError), open_folder(folder, shared=True) as opened:
        write_json(opened.at(name), content, 0o644, opened.descriptor)
    return content


def remove_record(path: str) -> None:
    """Remove the record of this process."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def record_beside(lock_file: str) -> str:
    """Return the path of the record for a lock file."""
    return f"{lock_file}.holder"


def recorded_pid(path: str) -> int | None:
    """Return the process ID in a record, whether or not that process still runs."""
    try:
        return int(read_json(path, _RECORD_SIZE)["pid"])
    except _NO_RECORD:
        return None


# What a file raises that is not a record. In a shared folder, another user may have put anything there.
_NO_RECORD = (ValueError, KeyError, TypeError, OverflowError, AttributeError)

# More bytes than any record has.
_RECORD_SIZE = 1 << 20


def read_record(path: str) -> object:
    """Return the content of a record, in any form; ``None`` if there is none. No two records are the same."""
    return read_json(path, _RECORD_SIZE)


def _holder_in(path: str) -> Holder | None:
    try:
        content = read_json(path, _RECORD_SIZE)
        identity = ProcessIdentity(int(content["pid"]), content["started"])
        holder = Holder(identity.pid, shorten(printable(str(content["command"]))), float(content["since"]))
        if not _this_host().items() <= content.items():
            # Its process ID may be that of another process here.
            return holder._replace(host=printable(str(content["host"])))
    except _NO_RECORD:
        return None
    return holder if is_running(identity) else None


def _this_host() -> dict[str, str]:
    """Return what tells this kernel, and the processes that it numbers like this one, from others: names repeat."""
    boot = namespace = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": os.uname().nodename if hasattr(os, "uname") else "", "boot": boot, "namespace": namespace}


class KernelLock(NamedTuple):
    """A lock that a process holds or waits for, as the kernel tells it."""

    waits: bool
    mode: str
    """``READ`` for a shared lock, or ``WRITE``."""
    pid: int
    identity: str
    """The locked file, as `identity_of` gives it; empty where the caller knows the file."""


def flocks() -> list[KernelLock]:
    """Return the flocks that this process may see (proc(5)); none without ``/proc/locks``."""
    if not hasattr(os, "major"):
        # Windows. There, any user may make a folder ``C:/proc`` with misleading contents.
        return []
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    # "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF"; a waiting process has "->" as the second field.
    found = [(line.split()[1] == "->", line.replace("->", "").split()) for line in lines]
    return [KernelLock(waits, fields[3], int(fields[4]), fields[5]) for waits, fields in found if fields[1] == "FLOCK"]


def identity_of(file: os.stat_result) -> str:
    """Return how ``/proc/locks`` names a file."""
    return f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"


def locks_held(file: os.stat_result) -> Iterator[KernelLock]:
    """Yield the flocks on a file that processes hold, as far as they can be seen."""
    if not hasattr(os, "major"):
        return
    identity = identity_of(file)
    listed = [each for each in flocks() if not each.waits and each.identity == identity]
    yield from [each for each in listed if _may_have_open(each.pid, file)] or by_descriptors(file, "FLOCK")


def _may_have_open(pid: int, locked: os.stat_result) -> bool:
    """
    Return whether a process may have a file open, as the holder of a lock on it must.

    A child may hold the lock after the process that called flock has ended, and another process may have its ID.
    """
    try:
        return any(True for _ in _open_files(pid, locked))
    except OSError as error:
        return isinstance(error, PermissionError)


def by_descriptors(file: os.stat_result, kind: str) -> Iterator[KernelLock]:
    """
    Yield the locks of a kind (``FLOCK``, ``OFDLCK``) on a file that other processes have through their descriptors.

    ``/proc/locks`` names the process that called flock. When that frontend was killed, a hook process still holds the
    lock through the descriptor that it inherited, and only ``/proc/PID/fdinfo`` shows it. On btrfs, ``/proc/locks``
    names files by another device.
    """
    if not os.path.isdir("/proc/self/fdinfo"):
        return
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        # Skips processes that have ended meanwhile and those of other users.
        with contextlib.suppress(OSError):
            for number in () if pid == os.getpid() else _open_files(pid, file):
                if mode := mode_of_lock(f"/proc/{pid}/fdinfo/{number}", kind):
                    yield KernelLock(False, mode, pid, "")


def _open_files(pid: int, file: os.stat_result) -> Iterator[str]:
    """Yield the descriptors of a file in a process. Raises `OSError` if they cannot be seen."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), file):
                yield number


def mode_of_lock(fdinfo: str, kind: str = "FLOCK") -> str | None:
    """Return the mode of the lock of the open file that a ``/proc/PID/fdinfo`` describes: ``READ`` or ``WRITE``."""
    try:
        with open(fdinfo, encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    # "lock:	1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"
    modes = [line.split()[4] for line in lines if line.startswith("lock:") and kind in line]
    return modes[0] if modes else None

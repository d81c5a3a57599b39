"""What only Windows has: job objects, which end processes together, and its way to tell when a process was started."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from ctypes import wintypes
from typing import TYPE_CHECKING

# Elsewhere there is nothing to import, and nothing for a type checker to read.
assert sys.platform == "win32"

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_EXTENDED_LIMIT_INFORMATION = 9
_KILL_ON_JOB_CLOSE = 0x2000
_SET_QUOTA_AND_TERMINATE = 0x0101
_QUERY_LIMITED_INFORMATION = 0x1000
_STILL_ACTIVE = 259

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.CreateJobObjectW.restype = wintypes.HANDLE
_kernel32.CreateJobObjectW.argtypes = (wintypes.LPVOID, wintypes.LPCWSTR)
_kernel32.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD)
_kernel32.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
_kernel32.GetExitCodeProcess.argtypes = (wintypes.HANDLE, wintypes.LPDWORD)
_kernel32.GetProcessTimes.argtypes = (wintypes.HANDLE, *(ctypes.POINTER(wintypes.FILETIME),) * 4)
_kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)


class _Limits(ctypes.Structure):
    """``JOBOBJECT_EXTENDED_LIMIT_INFORMATION``, of which only the flags are of use here."""

    _fields_ = (
        ("times", ctypes.c_int64 * 2),
        ("flags", wintypes.DWORD),
        ("working_set_sizes", ctypes.c_size_t * 2),
        ("process_limit", wintypes.DWORD),
        ("affinity", ctypes.c_size_t),
        ("classes", wintypes.DWORD * 2),
        ("io_counters", ctypes.c_uint64 * 6),
        ("memory_limits", ctypes.c_size_t * 4),
    )


def run_in_job(
    command: Sequence[str], cwd: str, environ: Mapping[str, str], streams: tuple[int | None, int | None]
) -> int:
    """
    Run a command; return its exit status. What it has started and left running ends with it.

    All of that ends with this process, too: the system then closes the handle of the job, which no process inherits.
    """
    with (
        subprocess.Popen(command, cwd=cwd, env=environ, stdout=streams[0], stderr=streams[1]) as process,
        _closing(_kernel32.CreateJobObjectW(None, None)) as job,
    ):
        limits = _Limits(flags=_KILL_ON_JOB_CLOSE)
        _check(
            _kernel32.SetInformationJobObject(
                job, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
            )
        )
        with _closing(_kernel32.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, process.pid)) as handle:
            # A process that has ended already is refused.
            if not _kernel32.AssignProcessToJobObject(job, handle) and process.poll() is None:
                process.kill()
                raise ctypes.WinError(ctypes.get_last_error())
        return process.wait()


def start_time(pid: int) -> str | None:
    """Return when a process was started; ``None`` for one that has ended, or that this user may not ask about."""
    try:
        with _closing(_kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)) as handle:
            status = wintypes.DWORD()
            _check(_kernel32.GetExitCodeProcess(handle, ctypes.byref(status)))
            times = [wintypes.FILETIME() for _ in range(4)]
            _check(_kernel32.GetProcessTimes(handle, *map(ctypes.byref, times)))
    except OSError:
        return None
    return str(times[0].dwHighDateTime << 32 | times[0].dwLowDateTime) if status.value == _STILL_ACTIVE else None


@contextlib.contextmanager
def _closing(handle: int | None) -> Iterator[int]:
    _check(handle)
    assert handle is not None
    try:
        yield handle
    finally:
        _kernel32.CloseHandle(handle)


def _check(result: int | None) -> None:
    if not result:
        raise ctypes.WinError(ctypes.get_last_error())

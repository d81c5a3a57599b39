"""Imports a backend for all the hooks of a host; a script that `host.py` loads, which imports nothing of lockbuild.

Each hook is forked from the host. So the import may leave behind nothing that a fork does not copy, or that two hooks
would share, such as threads, children, open files, signal handlers and exit functions.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Sequence

# What was imported for all hooks.
_shared_modules: dict[str, types.ModuleType] = {}


def import_all(modules: Sequence[str], lifeline: int) -> bool:
    """
    Import modules, the first of which is the backend; false when that fails or they leave traces.

    The process ends when ``lifeline``, the descriptor of a pipe, ends meanwhile.
    """
    atexit.register(_spare_shared_modules)
    # It has an exit function that each hook process has to run for itself. Backends import it; so it is no trace.
    import logging  # noqa: F401

    caught: list[type[Warning]] = []

    def catch(_message: object, category: type[Warning], *_: object) -> None:
        caught.append(category)

    shows, warnings.showwarning = warnings.showwarning, catch  # type: ignore[assignment]
    handler = signal.getsignal(signal.SIGIO)
    _end_with(lifeline)
    # Imports leave little garbage.
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    before = _traces()
    try:
        importlib.import_module(modules[0])
        for each in modules[1:]:
            # Another version of the backend may not have it.
            with contextlib.suppress(ImportError):
                importlib.import_module(each)
        left_nothing = _traces() == before
    except BaseException:
        # The hook will fail at the same place, and say so to those who asked for it.
        left_nothing = False
    gc.set_threshold(*thresholds)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, 0)
    signal.signal(signal.SIGIO, handler)
    warnings.showwarning = shows
    if not left_nothing or any(issubclass(category, UserWarning) for category in caught):
        # pyproject-hooks' script passes such warnings on from the hook that imports the backend.
        return False
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()
    _shared_modules.update(sys.modules)
    for name in ("sys", "builtins", "__main__"):
        del _shared_modules[name]
    return True


def _end_with(lifeline: int) -> None:
    """
    Have the kernel end this process at once when the frontend goes, also in the middle of C code.

    macOS lets no signal be chosen and ignores SIGIO by default. There a handler ends it between two steps of Python.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    else:
        signal.signal(signal.SIGIO, lambda *_: os._exit(0))
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    # A frontend that went before this was arranged has left the end of the pipe.
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(0)


def _traces() -> list[object]:
    """Return what an import may not change: what forks do not copy, what they would share, and what the host sets."""
    wake_up = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wake_up)
    return [
        wake_up,
        [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        [signal.getitimer(timer) for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        warnings.showwarning,
        gc.isenabled(),
        gc.get_threshold(),
        os.getpgrp(),
        _count_threads(),
        _has_children(),
        # A temporary folder that is removed at the end, for one: the first hook to end would remove it for all.
        atexit._ncallbacks(),
        # Locks among them: a lock has an open file. Two hooks would share its position.
        sorted(_open_files()),
    ]


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        # Elsewhere those that Python has started have to do.
        threading = sys.modules.get("threading")
        return threading.active_count() if threading is not None else 1


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _open_files() -> list[str]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return os.listdir(folder)


def _spare_shared_modules() -> None:
    """
    Keep what the hooks share from being taken apart at the end of each, which takes as long as a short hook's work.

    Runs as the last exit function, because it was registered first. What the hook itself has imported and made is
    taken apart as ever; what is garbage is collected while everything can still be imported.
    """
    if gc.isenabled():
        gc.collect()
    for name, module in _shared_modules.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]

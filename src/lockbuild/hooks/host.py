"""The hook host: a script that runs in the build environment and forks a process for each hook.

`lockbuild.hooks.client` starts it. It imports nothing of lockbuild and never sees a hook's result: that goes through
files, as pyproject-hooks' own script writes it.

Arguments: HOST ENVIRONMENT MODULES VIEW LIFELINE CONNECTION
    The path of this file; "kept" if the environment is kept for other builds, or "-"; the names of modules to import
    before the first fork, with commas between them, or "-"; the private view of the tree to enter first, as
    ``views/overlay.py`` describes it, or "-"; and numbers of inherited descriptors: a pipe that ends with the frontend
    and that nothing is written to; and a socket for requests and replies.
Requests: a line of JSON each, one after the other, and with it open files (SCM_RIGHTS): those that become standard
    streams of this hook, then those that carry its locks; the end of the requests asks the host to end
    {"argv": [SCRIPT, HOOK_NAME, CONTROL_DIR], "cwd": DIRECTORY, "environ": {NAME: VALUE, ...},
     "streams": [NUMBER, ...] of the standard streams that the first of the open files become,
     "tree": [DEVICE, INODE] of the source tree that is locked, or null,
     "nested": [PATH, ...] of the lock files by which builds that the hook runs exclude each other}
Replies: a line each
    "started GROUP"   the hook runs in this process group
    "stopped SIGNAL"  a signal has stopped it (a terminal that it may not read, a debugger)
    "ended STATUS"    it has ended, with this exit status, negative for the signal that killed it
    "failed ERRNO"    the system has refused to start it, and the host ends
    "refused REASON"  the view could not be entered, and the host ends; the reason is a JSON string

A hook that ends with an error leaves its last line in the file "reason" in CONTROL_DIR, for the frontend's last line.

A hook process is what `python SCRIPT HOOK_NAME CONTROL_DIR` would be, from sys.argv to the way in which the interpreter
shuts down. MODULES are named only for backends on a tested list: the backend, and what its hooks import. They are
imported once, while the frontend still prepares, and each hook is forked from there. That import may leave behind
nothing that a fork does not copy, or that two hooks would share: see ``ahead.py``. If it does, or if the backend cannot
be imported, the host starts itself anew without MODULES, and each hook imports its backend itself.

PYTHONDONTWRITEBYTECODE is about the user's files. A kept environment gets its bytecode anyway, or each build would
compile the backend again: see ``compiling.py``. Hooks see the variable hold.

The promise. The requests end when the frontend has said so or was killed. The host then kills the running hook's
process group, waits for it, and ends. Until the host has received a request, the kernel keeps the open files that
travel with it. The hook keeps them until it ends, the host until the next request or its own end. So the locks stay
taken until the last of the two has ended. A program that the hook executes gets no copy: a daemon like sccache's,
started by a build, would hold the lock as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.machinery
import json
import os
import select
import signal
import socket
import sys
import time
import types

# How long the host waits for the processes of a group that it has killed, in seconds. They can only be late in the
# kernel (a disk that does not answer); as long as one lives that inherited the locks, those stay taken anyway.
_PATIENCE = 2.0

# How many open files one message may carry. The kernel drops those for which there is no room.
_MOST_FILES = 253

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypedDict

    class _Request(TypedDict):
        argv: list[str]
        cwd: str
        environ: dict[str, str]
        streams: list[int]
        tree: list[int] | None
        nested: list[str]


def start() -> None:
    """Be the host until the requests end; or, after a fork, run one hook."""
    _, host, environment, backend, view, *numbers = sys.argv
    lifeline, number = map(int, numbers)
    connection = socket.socket(fileno=number)
    _set_inheritable([lifeline, number], False)
    del sys.argv[1:]
    if view != "-":
        _enter_view(view, _script(host, "..", "..", "views", "overlay.py"), connection)
    lacks_bytecode = environment == "kept" and sys.dont_write_bytecode and sys.pycache_prefix is None
    bytecode = _script(host, "..", "compiling.py") if lacks_bytecode else None
    with bytecode.written() if bytecode else contextlib.nullcontext():
        imported = backend == "-" or _script(host, "..", "ahead.py").import_all(backend.split(","), lifeline)
    if not imported:
        _start_anew([lifeline, number])
    os.close(lifeline)
    hook = _script(host, "..", "hook.py")
    asked = _serve(connection, hook)
    if asked is None:
        os._exit(0)
    hook.run(asked)
    if bytecode:
        bytecode.compile_the_rest()


def _set_inheritable(descriptors: list[int], inheritable: bool) -> None:
    for descriptor in descriptors:
        os.set_inheritable(descriptor, inheritable)


def _start_anew(descriptors: list[int]) -> NoReturn:
    """Replace this process by a host that imports no backend."""
    _set_inheritable(descriptors, True)
    try:
        # It is in its view already.
        os.execv(sys.executable, [*sys.orig_argv[:5], "-", "-", *map(str, descriptors)])
    except OSError:
        # The environment is being removed. The frontend finds the host ended.
        os._exit(1)


def _script(*parts: str) -> Any:
    """Load a script of lockbuild by its path. It is no module that a hook could find."""
    path = os.path.normpath(os.path.join(*parts))
    script = types.ModuleType(path)
    exec(importlib.machinery.SourceFileLoader(path, path).get_code(path), script.__dict__)  # type: ignore[arg-type]
    return script


def _enter_view(view: str, overlay: Any, connection: socket.socket) -> None:
    """Enter a private view of the tree, or say why that is not possible and end."""
    try:
        overlay.enter(json.loads(view))
    except overlay.RefusedError as error:
        _reply(connection, f"refused {json.dumps(str(error))}")
        os._exit(0)


def _serve(connection: socket.socket, hook: Any) -> _Request | None:
    """Serve requests until they end. Returns a request in the process that is to run it, None in the host."""
    # The host ends with the requests and not before: a signal to every process of a job (systemd, Slurm, Jenkins) would
    # else leave a hook that resists without its host.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # A parent that blocks this signal passes that on to us, and we would never hear of a hook's end.
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    try:
        wake_up, woken = os.pipe()
    except OSError as error:
        _reply(connection, f"failed {error.errno}")
        return None
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    # A handler has to be there for the wake-up to be written.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)

    nested: list[str] = []
    locks: list[int] = []
    group = _next_group()
    while received := _receive(connection):
        request: _Request = json.loads(received[0])
        # The frontend holds the locks while it asks. Those of the last hook may be freed now.
        for descriptor in locks:
            os.close(descriptor)
        streams, locks = received[1][: len(request["streams"])], received[1][len(request["streams"]) :]
        nested = request["nested"]
        try:
            hook.compiled(request["argv"][0])
            group = group or _make_group()
            process = os.fork()
        except OSError as error:
            _reply(connection, f"failed {error.errno}")
            break
        if process == 0:
            os.setpgid(0, group)
            # The hook says so itself. Where its host is killed, the frontend knows the group before the replies end.
            _reply(connection, f"started {group}")
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            connection.close()
            os.close(wake_up)
            os.close(woken)
            for stream, descriptor in zip(request["streams"], streams, strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            return request
        # Only the hook keeps its streams: their readers wait for their end.
        for descriptor in streams:
            os.close(descriptor)
        # Made while the hook runs, because the next one will be asked for as soon as it has ended.
        next_group = _next_group()
        status = _attend(process, connection, wake_up)
        if status:
            # What a hook has started may outlive its failure, or the SIGINT that ended it: a shell's background jobs
            # ignore that. It may not go on writing into the tree.
            _kill_group(group)
        _reply(connection, f"ended {status}")
        os.waitpid(group, 0)
        group = next_group
    _end_nesting(nested)
    return None


def _next_group() -> int:
    """Make the group of the next hook ahead. If the system refuses, return 0, and that hook will find out why."""
    try:
        return _make_group()
    except OSError:
        return 0


def _make_group() -> int:
    """
    Return a new process group. Its leader ends at once, and is waited for when the group is needed no more.

    A hook that led its group could not start a session, as it can under ``python -m build``.
    """
    leader = os.fork()
    if leader == 0:
        os.setpgid(0, 0)
        os._exit(0)
    with contextlib.suppress(OSError):
        # Both sides do it, so that the group exists from here on. The leader may have ended.
        os.setpgid(leader, leader)
    return leader


def _receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return a request and the open files that came with it; ``None`` at the end of the requests."""
    line, files = b"", []
    while not line.endswith(b"\n"):
        received, descriptors, _, _ = socket.recv_fds(connection, 65536, _MOST_FILES)
        if not received:
            return None
        _set_inheritable(descriptors, False)
        line += received
        files += descriptors
    return line, files


def _attend(hook: int, connection: socket.socket, wake_up: int) -> int:
    """Wait for the end of a hook; return its exit status. When the frontend goes first, the hook is killed."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLHUP)
    poll.register(wake_up, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if connection.fileno() in ready:
            # No request comes while a hook runs: this is their end. A hook that has moved to another process
            # group is still our child, and not yet waited for.
            os.kill(hook, signal.SIGKILL)
            os.waitpid(hook, 0)
            return -signal.SIGKILL
        os.read(wake_up, 4096)
        ended, status = os.waitpid(hook, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            _reply(connection, f"stopped {os.WSTOPSIG(status)}")
        elif ended:
            return os.waitstatus_to_exitcode(status)


def _reply(connection: socket.socket, line: str) -> None:
    # The frontend has ended. The end of the requests ends the host.
    with contextlib.suppress(ConnectionError):
        connection.sendall(line.encode() + b"\n")


def _kill_group(group: int) -> None:
    """Kill a hook's process group, and wait for a while until it has gone."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    while _group_runs(group) and time.monotonic() < deadline:
        time.sleep(0.005)


def _group_runs(group: int) -> bool:
    """Tell whether a process of the group still runs. A zombie, as the leader is, does not."""
    try:
        names = os.listdir("/proc/self") and os.listdir("/proc")
    except OSError:
        try:
            os.killpg(group, 0)
        except OSError:
            return False
        return True
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state not in (b"Z", b"X"):
                return True
    return False


def _end_nesting(nested: list[str]) -> None:
    """Let no more builds go on under the locks of our hooks, and wait for those that do."""
    for path in nested:
        # It may have been removed: no nested build can have begun since.
        with contextlib.suppress(OSError), open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # It may take its time. The readers of our output shall not wait for that.
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                fcntl.flock(file, fcntl.LOCK_EX)
            os.unlink(path)


if __name__ == "__main__":
    start()

"""The hook host: a script that runs in the build environment and forks a process for each hook.

It is started by `lockbuild.hooks.caller`, imports nothing of lockbuild, and never returns a hook's result: that goes
through files, as pyproject-hooks' own script writes it.

Arguments: HOST BACKEND PLACE REQUESTS REPLIES LOCK...
    The path of this file, as what executes it needs it; the name of a module to import before the first fork, or "-";
    and numbers of inherited descriptors: a file to close when that is imported, or 0; the pipe or socket to read
    requests from; the pipe to write replies to; and the open files that carry the locks under which hooks run.
Requests: a line of JSON each, one after the other
    {"argv": [SCRIPT, HOOK_NAME, CONTROL_DIR], "cwd": DIRECTORY, "environ": {NAME: VALUE, ...},
     "tree": [DEVICE, INODE] of the source tree that is locked, or null,
     "nested": [PATH, ...] of the lock files by which builds that the hook runs exclude each other}
        runs a hook.
    {"locks": NUMBER}
        lets go of the locks, and then takes others, whose open files come through the socket after the reply.
    The end of the pipe asks the host to end.
Replies: a line each
    "started PID"     the hook runs as process PID, which is also its process group
    "stopped SIGNAL"  a signal has stopped it (a terminal that it may not read, a debugger)
    "ended STATUS"    it has ended, with this exit status, negative for the signal that killed it
    "under NUMBER"    a hook would now run under so many locks: none, when it has let go of the former ones
    "busy 0"          it has not, because a build that is nested in a hook still runs

A hook process is what `python SCRIPT HOOK_NAME CONTROL_DIR` would be: sys.argv, sys.path, __main__ and the signal
handlers are as there, standard streams are inherited. The one difference is that BACKEND has been imported already. The
import is the largest part of a short hook and the same for all of them, so it is done once, while the frontend still
prepares. Where it cannot be shared (it fails, warns, or starts a thread), the host starts itself anew without it, and
each hook imports the backend as if there were no host.

The promise. The pipe of requests ends when the frontend has closed it or was killed, however that happened. The host
then kills the running hook's process group, waits for it, and ends. It holds copies of the locks' descriptors and so
does the hook, so that the locks stay taken until the last of them has gone; a program that the hook executes gets no
copy, or a daemon like sccache's, started by a build, would hold the lock as long as it lives.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import importlib.machinery
import io
import json
import os
import select
import signal
import sys
import time
import types
import warnings

# How long the host waits for the processes of a group that it has killed, in seconds. They can only be late in the
# kernel (a disk that does not answer); as long as one lives that inherited the locks, those stay taken anyway.
_PATIENCE = 2.0

# How often the host looks, while it imports a backend, whether the frontend is still there, in seconds.
_LOOK_SECONDS = 0.1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, NoReturn, NotRequired, TypedDict

    class _Request(TypedDict):
        argv: list[str]
        cwd: str
        environ: dict[str, str]
        tree: list[int] | None
        nested: list[str]
        locks: NotRequired[int]


# The files that keep to themselves what was written last.
_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)

# The code of scripts, by their paths.
_compiled: dict[str, types.CodeType] = {}

# The lock files of nested builds, as the last request named them.
nested: list[str] = []


def start() -> NoReturn:
    """Be the host, or after a fork a hook, until the end."""
    asked = serve()
    if asked is None:
        _end()
    _run(asked)


def serve() -> _Request | None:
    """Serve requests until the pipe ends. Returns a request in the process that is to run it, None in the host."""
    _, _, backend, *descriptors = sys.argv
    place, requests, replies, *locks = map(int, descriptors)
    inherited = [descriptor for descriptor in (place, requests, replies, *locks) if descriptor]
    for descriptor in inherited:
        os.set_inheritable(descriptor, False)
    del sys.argv[1:]
    if backend != "-" and not _import(backend, requests):
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [*sys.orig_argv[:4], "-", *descriptors])
    if place:
        os.close(place)

    # The host ends with the pipe and not before: who signals every process of a job (systemd, Slurm, Jenkins) would
    # else leave a hook that resists without its host.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # Whoever blocks this signal passes that on to us, and we would never hear of a hook's end.
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    wake_up, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    # A handler has to be there for the wake-up to be written.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)

    buffered = b""
    while True:
        while b"\n" not in buffered:
            received = os.read(requests, 65536)
            if not received:
                return None
            buffered += received
        line, _, buffered = buffered.partition(b"\n")
        request: _Request = json.loads(line)
        if "locks" in request:
            if _let_go(locks):
                _reply(replies, "under 0")
                if request["locks"]:
                    locks = _receive_locks(requests, request["locks"])
                    _reply(replies, f"under {len(locks)}")
            else:
                _reply(replies, "busy 0")
            continue
        nested[:] = request["nested"]
        _compile(request["argv"][0])
        hook = os.fork()
        if hook == 0:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for descriptor in (requests, replies, wake_up, woken):
                os.close(descriptor)
            return request
        try:
            # Both sides do it: whichever runs first, the group is there before anybody is told of it.
            os.setpgid(hook, hook)
        except OSError:
            # The child was first, and has gone on to end or to execute something else.
            pass
        _reply(replies, f"started {hook}")
        status = _wait(hook, requests, replies, wake_up)
        if status:
            # What a hook has started may outlive its failure, or the SIGINT that ended it: a shell's background jobs
            # ignore that. It may not go on writing into the tree.
            _kill_group(hook)
        _reply(replies, f"ended {status}")


def _import(backend: str, requests: int) -> bool:
    """Import the backend for all hooks; false when that has left traces that only one hook process may have."""
    poll = select.poll()
    poll.register(requests, 0)

    def end_with_the_pipe(*_: object) -> None:
        # Only the end of the pipe is told of without being asked for. No hook has been started yet.
        if poll.poll(0):
            os._exit(0)

    # However long the import takes: when the frontend is killed, nobody may keep its locks for that.
    on_alarm = signal.signal(signal.SIGALRM, end_with_the_pipe)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    # Of what is imported nothing is garbage.
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            importlib.import_module(backend)
    except BaseException:
        # The hook will fail at the same place, and say so to those who asked for it.
        return False
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, on_alarm)
    if any(issubclass(warning.category, UserWarning) for warning in caught):
        # pyproject-hooks' script passes these on from the hook that imports the backend.
        return False
    if _count_threads() > 1:
        return False
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()
    return True


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        # Elsewhere those that Python has started have to do.
        threading = sys.modules.get("threading")
        return threading.active_count() if threading is not None else 1


def _reply(replies: int, line: str) -> None:
    try:
        os.write(replies, line.encode() + b"\n")
    except BrokenPipeError:
        # The frontend is gone; the end of its other pipe says so too, and ends us.
        pass


def _wait(hook: int, requests: int, replies: int, wake_up: int) -> int:
    """Wait until the hook has ended. When the frontend goes first, end the hook and with it this process."""
    poll = select.poll()
    poll.register(requests, select.POLLIN | select.POLLHUP)
    poll.register(wake_up, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if requests in ready:
            # No request comes while a hook runs: this is the end of the pipe.
            _kill(hook)
            _end()
        os.read(wake_up, 4096)
        ended, status = os.waitpid(hook, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            _reply(replies, f"stopped {os.WSTOPSIG(status)}")
        elif ended:
            return os.waitstatus_to_exitcode(status)


def _kill(hook: int) -> None:
    """Kill the hook and its process group; wait for the hook."""
    # A hook that has made itself another process group is still our child, and not yet waited for.
    os.kill(hook, signal.SIGKILL)
    _kill_group(hook)
    os.waitpid(hook, 0)


def _kill_group(group: int) -> None:
    """Kill a hook's process group, and wait for a while until it has gone."""
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        # Nothing of the group is left, or the hook has left it.
        pass
    deadline = time.monotonic() + _PATIENCE
    while _group_runs(group) and time.monotonic() < deadline:
        time.sleep(0.005)


def _group_runs(group: int) -> bool:
    """Tell whether a process of the group has not ended. One that nobody has waited for yet has."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    # Not every init waits for its orphans, or does so soon.
    found = False
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
                except OSError:
                    continue
                if int(its_group) == group:
                    found = True
                    if state not in (b"Z", b"X"):
                        return True
    except OSError:
        return True
    return not found


def _end() -> NoReturn:
    """End this process, and with it the locks, when no build that is nested in its hooks runs any more."""
    _end_nesting(wait=True)
    os._exit(0)


def _let_go(locks: list[int]) -> bool:
    """Close the open files that carry the locks; false if a build that is nested in the hooks still needs them."""
    if not _end_nesting(wait=False):
        return False
    nested.clear()
    while locks:
        os.close(locks.pop())
    return True


def _end_nesting(wait: bool) -> bool:
    """Let no more builds go on under our locks. Those that do are waited for, or make it return false."""
    import fcntl

    descriptors = []
    try:
        for path in nested:
            try:
                descriptors.append(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
                try:
                    fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        return False
                    # It may take its time. Who reads our output shall not wait for that.
                    null = os.open(os.devnull, os.O_RDWR)
                    for descriptor in (0, 1, 2):
                        os.dup2(null, descriptor)
                    fcntl.flock(descriptors[-1], fcntl.LOCK_EX)
                os.unlink(path)
            except OSError:
                # Somebody has removed it: no nested build can have begun since.
                pass
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _receive_locks(requests: int, number: int) -> list[int]:
    """Receive the open files that carry the locks under which the next hooks run."""
    import socket

    channel = socket.socket(fileno=requests)
    try:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, number)
    finally:
        channel.detach()
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def _run(request: _Request) -> NoReturn:
    """Run pyproject-hooks' script in this process as if the interpreter had been started with it, and end."""
    status = 0
    try:
        os.environ.update(request["environ"])
        os.chdir(request["cwd"])
        here = os.stat(".")
        if request["tree"] not in (None, [here.st_dev, here.st_ino]):
            # The path now leads to a tree that another build may hold. From here on it cannot: we are in.
            sys.exit(f"{request['cwd']!r} was moved or replaced while it was built")
        _execute(request["argv"])
    except SystemExit as end:
        status = _status_of(end)
    except KeyboardInterrupt:
        # The frontend asked for the end, after its user did. What the backend cleans up it has cleaned up; a
        # traceback would only tell where it was.
        status = 130
    except BaseException as error:
        # The traceback a person sees begins with the script, as it does when that runs by itself.
        traceback = error.__traceback__
        while traceback and traceback.tb_frame.f_code.co_filename != request["argv"][0]:
            traceback = traceback.tb_next
        error.__traceback__ = traceback or error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    _exit(status)


def _execute(argv: list[str]) -> None:
    """Execute a script as ``__main__``."""
    sys.argv[:] = argv
    script = types.ModuleType("__main__")
    script.__dict__.update(__file__=argv[0], __builtins__=builtins)
    sys.modules["__main__"] = script
    exec(_compile(argv[0]), script.__dict__)


def _compile(path: str) -> types.CodeType:
    """Return the code of a script, once for all hooks; as Python keeps it compiled, where it does."""
    if path not in _compiled:
        # The script may lie in a folder for temporary files. Nothing is left there.
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            code = importlib.machinery.SourceFileLoader("__main__", path).get_code("__main__")
        finally:
            sys.dont_write_bytecode = writes
        assert code is not None
        _compiled[path] = code
    return _compiled[path]


def _status_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _exit(status: int) -> NoReturn:
    """
    End a hook process as Python ends a program, but for the last step, as `multiprocessing` ends those that it forks.

    That step would take apart, module by module, what the host has imported: as much work as a short hook's own.
    Threads are waited for and exit functions run. A file that was left open is written out, as that step would do it.
    """
    try:
        # What was never imported has nothing to do now.
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        for file in [found for found in gc.get_objects() if type(found) in _BUFFERED]:
            _flush(file)
        flushed = [_flush(sys.stdout), _flush(sys.stderr)]
        if not all(flushed):
            # The exit status that Python has for it.
            status = status or 120
    finally:
        os._exit(status)


def _flush(file: IO[Any] | None) -> bool:
    try:
        if file is not None and not file.closed:
            file.flush()
    except (AttributeError, OSError, ValueError):
        # The end of a program is too late to tell anybody.
        return False
    return True


if __name__ == "__main__":
    start()

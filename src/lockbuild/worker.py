"""A build in a process of its own, which an event loop starts, listens to, and can end at any moment.

The process is ``python -m lockbuild.worker SOURCE``. The protocol, all of it pickled, and each message preceded by its
length in eight bytes:

- on its standard input one message, the `BuildRequest`. The end of that pipe asks it to end, and comes also when the
  process that wants the build was killed;
- on its standard output ``("event", (METHOD, ARGUMENTS))`` for what its reporter hears, and at last
  ``("result", BuildResult)`` or ``("error", EXCEPTION)``.

What the hooks print goes to standard error, because standard output is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pickle
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn, cast

from lockbuild.errors import Interrupted, WorkerError, restored_exception
from lockbuild.events import Reporter
from lockbuild.interruption import interruptible

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from lockbuild.request import BuildRequest, BuildResult

_LENGTH = struct.Struct("!Q")

# How long a worker that was asked to end may take, in seconds. Its hook is killed after a fraction of a second; an
# installer takes a little longer. Then it is killed, and the host of its hooks ends these, as after any kill.
_END_SECONDS = 10.0


async def run_in_worker(request: BuildRequest, reporter: Reporter | None) -> BuildResult:
    """Run a build in a worker process. Raises what the build raises, and `WorkerError`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # Without the working directory on the path: it may well hold a build.py.
        "-P",
        "-m",
        "lockbuild.worker",
        request.source,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for this process, which decides what becomes of the build.
        start_new_session=True,
    )
    try:
        return await _converse(process, request, reporter or Reporter())
    finally:
        await _end(process)


async def _converse(process: Process, request: BuildRequest, reporter: Reporter) -> BuildResult:
    assert process.stdin is not None
    assert process.stdout is not None
    # A worker that has died already will be missed when it does not answer.
    with contextlib.suppress(ConnectionError):
        process.stdin.write(_message(request))
        await process.stdin.drain()
    while True:
        try:
            header = await process.stdout.readexactly(_LENGTH.size)
            kind, content = pickle.loads(await process.stdout.readexactly(*_LENGTH.unpack(header)))
        except asyncio.IncompleteReadError:
            raise WorkerError(await process.wait()) from None
        if kind == "result":
            return cast("BuildResult", content)
        if kind == "error":
            raise content
        method, arguments = content
        getattr(reporter, method)(*arguments)


async def _end(process: Process) -> None:
    """Have a worker end, and wait for it, however often this is cancelled meanwhile."""
    assert process.stdin is not None
    process.stdin.close()
    # To wait for the end alone would not do: it may want to write more than a pipe holds.
    ending = asyncio.ensure_future(process.communicate())
    cancelled = None
    while not ending.done():
        try:
            await asyncio.wait({ending}, timeout=_END_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
        else:
            if not ending.done():
                process.kill()
    if cancelled is not None:
        raise cancelled


def main() -> NoReturn:
    """Run the build that is asked for on standard input."""
    requests, messages = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    with open(requests, "rb", buffering=0, closefd=False) as stream:
        request = pickle.loads(_read(stream, *_LENGTH.unpack(_read(stream, _LENGTH.size))))
    try:
        with interruptible(), open(messages, "wb", buffering=0) as stream:
            threading.Thread(target=_end_with_the_pipe, args=(requests,), daemon=True).start()
            _write(stream, _outcome(request, lambda message: _write(stream, message)))
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)
    sys.exit(0)


def _outcome(request: BuildRequest, send: Callable[[bytes], None]) -> bytes:
    from lockbuild import frontend

    try:
        return _message(("result", frontend.build(request, cast("Reporter", _Messenger(send)))))
    except Exception as error:  # noqa: BLE001 - it is raised where the build is awaited
        return _message(("error", error))


class _Messenger:
    """Stands for the reporter on the other side: whatever method of it is called, a message is sent."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *arguments: self._send(_message(("event", (method, arguments))))


def _end_with_the_pipe(requests: int) -> None:
    """Interrupt the build when the pipe of requests ends. Runs in a thread of its own."""
    os.read(requests, 1)
    if sys.platform == "win32":
        os._exit(1)
    # To the main thread: its handler raises the interruption, and a system call that it waits in returns.
    signal.pthread_kill(cast("int", threading.main_thread().ident), signal.SIGTERM)


def _message(content: object) -> bytes:
    body = io.BytesIO()
    _Pickler(body).dump(content)
    return _LENGTH.pack(body.tell()) + body.getvalue()


def _read(stream: io.FileIO, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = stream.read(size - len(received))
        if not more:
            # Nobody wants the build any more.
            sys.exit(1)
        received += more
    return received


def _write(stream: io.FileIO, message: bytes) -> None:
    left = memoryview(message)
    while left:
        left = left[stream.write(left) :]


class _Pickler(pickle.Pickler):
    """Pickles also exceptions whose constructors take other arguments than they keep, as those of ``build`` do."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Exception) and type(value).__module__ != "builtins":
            return restored_exception, (type(value), value.args, value.__dict__)
        return NotImplemented


if __name__ == "__main__":
    main()

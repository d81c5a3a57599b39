"""A process that builds one request after the other for another process of lockbuild.

`lockbuild.build_process` is its other side. Its modules are imported once, and the hook host of one build goes on to
serve the next one, if that has the same build environment and backend.

Standard input has a line of JSON for each request (`lockbuild.event_lines.request_line`). The next one comes after the
last event of the build before. The end of standard input ends the process, and a build that runs. Standard output has
the events of each build, as `lockbuild.event_lines` describes them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from lockbuild import frontend
from lockbuild.errors import Interrupted
from lockbuild.event_lines import EventWriter, read_request
from lockbuild.files import take_standard_output
from lockbuild.garbage_collection import collect_once_a_day
from lockbuild.hooks.runner import HostKeeper
from lockbuild.interruption import interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockbuild.request import BuildRequest


def main() -> NoReturn:
    """Build what standard input asks for until it ends."""
    events = EventWriter(take_standard_output())
    try:
        with interruptible(), HostKeeper() as keeper:
            for line in _lines_of_stdin():
                _build(*read_request(line), events, keeper)
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)
    except BrokenPipeError:
        # The process that reads the events has gone.
        sys.exit(1)
    raise AssertionError("the end of standard input is an interruption")


def _lines_of_stdin() -> Iterator[bytes]:
    """
    Yield the lines of standard input, and interrupt this process, as SIGTERM does, when it ends.

    It is read at once, whatever is done with a line. A pipe also ends when the process at its other end is killed.
    Other readers find standard input empty.
    """
    source = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    lines: SimpleQueue[bytes] = SimpleQueue()
    main = threading.main_thread().ident
    threading.Thread(target=_read_to_the_end, args=(source, lines, main), daemon=True).start()
    while True:
        yield lines.get()


def _read_to_the_end(source: int, lines: SimpleQueue[bytes], thread: int) -> None:
    # Not through a file object: the end of the interpreter, in another thread, would wait for its lock.
    beginning = b""
    with contextlib.suppress(OSError):
        while received := os.read(source, 65536):
            *whole, beginning = (beginning + received).split(b"\n")
            for line in whole:
                lines.put(line)
    if sys.platform == "win32":
        os._exit(1)
    # To the main thread, whose handler raises `Interrupted`. A system call that blocks it returns.
    signal.pthread_kill(thread, signal.SIGTERM)


def _build(request: BuildRequest, output: str | None, events: EventWriter, keeper: HostKeeper) -> None:
    # A warning that an earlier build has given is given again.
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: events.warn(str(message))
        try:
            if output is not None:
                _write_to(output)
            result = frontend.build(request, events, owns_process=True, keeper=keeper)
            if request.use_cache:
                collect_once_a_day(request.cache_dir)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the request comes from
            events.failed(error)
        else:
            events.succeeded(result)


def _write_to(path: str) -> None:
    """Make a file the standard output and error of this process."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    main()

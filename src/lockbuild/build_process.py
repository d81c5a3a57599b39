"""A build in a process of its own, which an event loop starts, listens to, and can end at any moment.

The process is ``lockbuild --json --end-with-stdin`` in a session of its own. It ends with the pipe that is its standard
input, and so also when the process that awaits it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import WorkerError
from lockbuild.event_lines import read_event
from lockbuild.settings import variables_of, words_of

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from lockbuild.events import Reporter
    from lockbuild.request import BuildRequest, BuildResult

# How long a process that was asked to end may take, in seconds. Its hook is killed after a fraction of a second; an
# installer takes a little longer. Then it is killed, and the host of its hooks ends these, as after any kill.
_END_SECONDS = 10.0


async def build_in_process(request: BuildRequest, reporter: Reporter) -> BuildResult:
    """Run a build in a process of its own. Raises what the build raises, and `WorkerError`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # Without the working directory on the path: it may well hold a build.py.
        *("-P", "-m", "lockbuild", "--json", "--timings", "--end-with-stdin"),
        *words_of(request),
        env=os.environ | variables_of(request),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A message may be of any length.
        limit=sys.maxsize,
        # Ctrl-C is for this process, which decides what becomes of the build.
        start_new_session=True,
    )
    try:
        return await read_events(process, reporter)
    finally:
        await _end(process)


async def read_events(process: Process, reporter: Reporter) -> BuildResult:
    """Tell a reporter what a process writes; return the result. Raises the error, and `WorkerError` without either."""
    assert process.stdout is not None
    async for line in process.stdout:
        # A process that is killed leaves half a line.
        if line.endswith(b"\n") and (result := read_event(line, reporter)) is not None:
            return result
    raise WorkerError(await process.wait())


async def _end(process: Process) -> None:
    """Have a process end, and wait for it, however often this is cancelled meanwhile."""
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

"""Builds in a process of their own: an event loop starts it, reads its events, and can end it at any moment.

`lockbuild.commands.worker` is what the process runs, in a session of its own. It ends when its standard input, a pipe,
is closed, and so also when the process that awaits it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Self

from lockbuild.errors import WorkerError
from lockbuild.event_lines import read_event, request_line
from lockbuild.other_python import command_for

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping

    from lockbuild.events import Reporter
    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult

# How many seconds a process that was asked to end may take before it is killed. It kills its hook after a fraction of a
# second; an installer takes a little longer. After a kill, the hook host ends the hook.
_END_SECONDS = 10.0


class BuildProcess:
    """A process that builds one request after the other. It has to be ended, by `end`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._has_unread_events = False

    @classmethod
    async def start(cls, python: Python | None = None, variables: Mapping[str, str] | None = None) -> Self:
        """Start it, with another Python if one is given. ``variables`` are added to its environment."""
        return cls(
            await asyncio.create_subprocess_exec(
                *command_for(python, "lockbuild.commands.worker"),
                env={**os.environ, **(variables or {})},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # A line may have any length.
                limit=sys.maxsize,
                # Ctrl-C reaches this process alone, which decides whether to end the build.
                start_new_session=True,
            )
        )

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a request. The output of one that was killed has ended."""
        assert self._process.stdout is not None
        return not self._has_unread_events and not self._process.stdout.at_eof()

    async def build(self, request: BuildRequest, reporter: Reporter, output: str | None = None) -> BuildResult:
        """
        Build. Hooks write to the end of the file ``output``; by default to our standard error.

        Raises what the build raises, and `WorkerError`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request_line(request, output))
        self._has_unread_events = True
        with contextlib.suppress(ConnectionError):
            # If it was killed, its output ends.
            await self._process.stdin.drain()
        async for line in self._process.stdout:
            # A killed process may leave half a line.
            if line.endswith(b"\n"):
                fields = json.loads(line)
                self._has_unread_events = fields["event"] not in ("result", "error")
                if (result := read_event(fields, reporter)) is not None:
                    return result
        raise WorkerError(await self._process.wait())

    async def end(self) -> None:
        """End it, and a build that runs, and wait for it, however often this is cancelled meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        # Reads its output as well: it may write more than a pipe holds before it ends.
        ending = asyncio.ensure_future(self._process.communicate())
        cancelled = None
        while not ending.done():
            try:
                await asyncio.wait({ending}, timeout=_END_SECONDS)
            except asyncio.CancelledError as error:
                cancelled = error
            else:
                if not ending.done():
                    self._process.kill()
        if cancelled is not None:
            raise cancelled


async def build_in_process(request: BuildRequest, reporter: Reporter) -> BuildResult:
    """Run a build in a process of its own. Raises what the build raises, and `WorkerError`."""
    process = await BuildProcess.start()
    try:
        return await process.build(request, reporter)
    finally:
        await process.end()

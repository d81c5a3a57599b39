"""Where a build of a run takes place: in another process, which this process or an executor starts.

What goes to an executor and comes back can be pickled. An error comes back as data, as it does from every process of a
build: exceptions of the library ``build`` do not survive pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any, Self

from lockbuild.build_process import BuildProcess
from lockbuild.event_lines import error_fields, restored_error
from lockbuild.many.jobserver import slots
from lockbuild.many.log import BuildLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from concurrent.futures import Executor

    from lockbuild.many.jobserver import Slots
    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult


class Workers:
    """
    Processes for builds; a context manager, at whose end they end.

    One that has built goes on with the next build for the same Python. ``variables`` are added to their environment.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = variables
        self._waiting: list[tuple[Python | None, BuildProcess]] = []

    async def __aenter__(self) -> Self:
        """Begin without processes."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End those that wait for a build."""
        await asyncio.gather(*(process.end() for _, process in self._waiting))

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        with open(log, "ab", buffering=0) as file:
            reporter = BuildLog(file, request.verbosity, activity)
            try:
                async with self._process(python) as process:
                    return await process.build(request, reporter, os.path.abspath(log))
            except Exception as error:
                reporter.failed(error)
                raise

    @contextlib.asynccontextmanager
    async def _process(self, python: Python | None) -> AsyncGenerator[BuildProcess, None]:
        waiting = next((each for each in self._waiting if each[0] == python and each[1].is_ready), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            process = waiting[1]
        else:
            if self._waiting:
                # So there are never more than builds run at a time.
                await self._waiting.pop(0)[1].end()
            process = await BuildProcess.start(python, self._variables)
        try:
            yield process
        finally:
            if process.is_ready:
                self._waiting.append((python, process))
            else:
                await process.end()


class Processes:
    """Processes that this one starts, as many at a time as there are slots."""

    def __init__(self, jobs: int, free: Slots, workers: Workers) -> None:
        self.jobs = jobs
        self._free = free
        self._workers = workers

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        async with self._free.taken():
            return await self._workers.build(request, python, log, activity)


class OnExecutor:
    """Processes that an executor on this machine starts, as many at a time as it likes."""

    def __init__(self, jobs: int, executor: Executor) -> None:
        self.jobs = jobs
        self._executor = executor

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        activity("on an executor")
        work = functools.partial(_build, request, python, log)
        result = await asyncio.get_running_loop().run_in_executor(self._executor, work)
        if isinstance(result, dict):
            raise restored_error(result)
        return result


@contextlib.asynccontextmanager
async def on_this_machine(
    jobs: int | None = None, executor: Executor | None = None
) -> AsyncGenerator[Processes | OnExecutor, None]:
    """Yield a place for builds, ``jobs`` at a time; by default, as many as there are cores."""
    jobs = jobs or os.cpu_count() or 1
    if executor is not None:
        yield OnExecutor(jobs, executor)
        return
    with slots(jobs) as (free, variables):
        async with Workers(variables) as workers:
            yield Processes(jobs, free, workers)


async def build_logged(
    request: BuildRequest,
    python: Python | None,
    log: str,
    activity: Callable[[str], None],
    variables: Mapping[str, str] | None = None,
) -> BuildResult:
    """Run a build in a process that this one starts, and write a log. Raises what the build raises."""
    async with Workers(variables) as workers:
        return await workers.build(request, python, log, activity)


def _build(request: BuildRequest, python: Python | None, log: str) -> BuildResult | dict[str, Any]:
    """Run a build; return its result, or what is known of its error."""
    try:
        return asyncio.run(build_logged(request, python, log, lambda _: None))
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        return error_fields(error)

"""Where a build of a run takes place: in another process, which this process or an executor starts.

What goes to an executor and comes back can be pickled. An error comes back as data, as it does from every process of a
build: exceptions of the library ``build`` do not survive pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self

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

# After how many seconds without a build a process ends. Its memory is of use to others.
_IDLE_SECONDS = 10.0


class _Waiting(NamedTuple):
    """A process that waits for a build."""

    python: Python | None
    variables: Mapping[str, str]
    process: BuildProcess
    end: asyncio.TimerHandle
    """Ends it if no build comes."""


class Workers:
    """
    Processes for builds; a context manager, at whose end they end.

    One that has built goes on with the next build for the same Python, or ends after `_IDLE_SECONDS`.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Begin without processes."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End those that wait for a build."""
        for each in [*self._waiting]:
            self._end(each.process)
        await asyncio.gather(*self._ending)

    async def build(
        self,
        request: BuildRequest,
        python: Python | None,
        log: str,
        activity: Callable[[str], None],
        variables: Mapping[str, str],
    ) -> BuildResult:
        """
        Run a build that writes a log. Raises what the build raises.

        ``variables`` are added to the environment of its process.
        """
        with open(log, "ab", buffering=0) as file:
            reporter = BuildLog(file, request.verbosity, activity)
            try:
                async with self._process(python, variables) as process:
                    return await process.build(request, reporter, os.path.abspath(log))
            except Exception as error:
                reporter.failed(error)
                raise

    @contextlib.asynccontextmanager
    async def _process(self, python: Python | None, variables: Mapping[str, str]) -> AsyncGenerator[BuildProcess, None]:
        process = self._take(python, variables)
        if process is None:
            if self._waiting:
                # So there are never more than builds run at a time.
                self._end(self._waiting[0].process)
            process = await BuildProcess.start(python, variables)
        try:
            yield process
        finally:
            if process.is_ready:
                end = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end, process)
                self._waiting.append(_Waiting(python, variables, process, end))
            else:
                await process.end()

    def _take(self, python: Python | None, variables: Mapping[str, str]) -> BuildProcess | None:
        """Return a process that waits for such a build; the caller has to end it."""
        for each in self._waiting:
            if (each.python, each.variables) == (python, variables) and each.process.is_ready:
                each.end.cancel()
                self._waiting.remove(each)
                return each.process
        return None

    def _end(self, process: BuildProcess) -> None:
        """Begin to end a process that waits."""
        [waiting] = [each for each in self._waiting if each.process is process]
        waiting.end.cancel()
        self._waiting.remove(waiting)
        ending = asyncio.get_running_loop().create_task(process.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


class Processes:
    """Processes that this one starts, as many at a time as there are slots."""

    def __init__(self, jobs: int, free: Slots, variables: Mapping[str, str], workers: Workers) -> None:
        self.jobs = jobs
        self._free = free
        self._variables = variables
        self._workers = workers

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        async with self._free.taken():
            return await self._workers.build(request, python, log, activity, self._variables)


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
        async with Workers() as workers:
            yield Processes(jobs, free, variables, workers)


async def _build_alone(request: BuildRequest, python: Python | None, log: str) -> BuildResult:
    async with Workers() as workers:
        return await workers.build(request, python, log, lambda _: None, {})


def _build(request: BuildRequest, python: Python | None, log: str) -> BuildResult | dict[str, Any]:
    """Run a build; return its result, or what is known of its error."""
    try:
        return asyncio.run(_build_alone(request, python, log))
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        return error_fields(error)

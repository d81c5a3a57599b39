"""Where a build of a run takes place: in a process of its own, which this process or an executor starts.

What goes to an executor and comes back can be pickled. An error comes back as data, as it does from every process of a
build: exceptions of the library ``build`` do not survive pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from lockbuild.build_process import build_in_process
from lockbuild.event_lines import error_fields, restored_error
from lockbuild.many.jobserver import slots
from lockbuild.many.log import BuildLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from concurrent.futures import Executor

    from lockbuild.many.jobserver import Slots
    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult


class Processes:
    """Processes that this one starts, as many at a time as there are slots."""

    def __init__(self, jobs: int, free: Slots, variables: Mapping[str, str]) -> None:
        self.jobs = jobs
        self._free = free
        self._variables = variables

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        async with self._free.taken():
            return await build_logged(request, python, log, activity, self._variables)


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
        yield Processes(jobs, free, variables)


async def build_logged(
    request: BuildRequest,
    python: Python | None,
    log: str,
    activity: Callable[[str], None],
    variables: Mapping[str, str],
) -> BuildResult:
    """Run a build in a process that this one starts, and write a log. Raises what the build raises."""
    with open(log, "wb", buffering=0) as file:
        reporter = BuildLog(file, request.verbosity, activity)
        try:
            return await build_in_process(request, reporter, file.fileno(), python, variables)
        except Exception as error:
            reporter.failed(error)
            raise


def _build(request: BuildRequest, python: Python | None, log: str) -> BuildResult | dict[str, Any]:
    """Run a build; return its result, or what is known of its error."""
    try:
        return asyncio.run(build_logged(request, python, log, lambda _: None, {}))
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        return error_fields(error)

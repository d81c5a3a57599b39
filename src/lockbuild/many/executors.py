"""Where a build of a run takes place: in a process of its own, which this process or an executor starts.

What goes to an executor and comes back can be pickled. An error comes back as data, as it does from every process of a
build: exceptions of the library ``build`` do not survive pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from lockbuild.build_process import build_in_process
from lockbuild.event_lines import error_fields, restored_error
from lockbuild.many.jobserver import slots
from lockbuild.many.log import BuildLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor

    from lockbuild.many.jobserver import Slots
    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult


class Processes:
    """Processes that this one starts, as many at a time as there are slots."""

    def __init__(self, free: Slots, variables: Mapping[str, str]) -> None:
        self._free = free
        self._variables = variables

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises."""
        async with self._free.taken():
            return await _build_logged(request, python, log, activity, self._variables)


class OnExecutor:
    """Processes that an executor on this machine starts, as many at a time as it likes."""

    def __init__(self, executor: Executor) -> None:
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


@contextlib.contextmanager
def place_for_builds(jobs: int, executor: Executor | None) -> Iterator[Processes | OnExecutor]:
    """Yield the place where the builds of a run take place."""
    if executor is not None:
        yield OnExecutor(executor)
        return
    with slots(jobs) as (free, variables):
        yield Processes(free, variables)


async def _build_logged(
    request: BuildRequest,
    python: Python | None,
    log: str,
    activity: Callable[[str], None],
    variables: Mapping[str, str],
) -> BuildResult:
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
        return asyncio.run(_build_logged(request, python, log, lambda _: None, {}))
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        return error_fields(error)

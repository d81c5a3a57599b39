"""Where a build of a run takes place: in a process of its own, which this process or an executor starts.

What goes to an executor and comes back can be pickled. An error comes back as data, as it does from every process of a
build: exceptions of the library ``build`` do not survive pickling.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from lockbuild.build_process import build_in_process
from lockbuild.event_lines import error_fields, restored_error
from lockbuild.many.log import BuildLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult


async def build_logged(
    request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
) -> BuildResult:
    """Run a build that writes a log. Raises what the build raises."""
    with open(log, "wb", buffering=0) as file:
        reporter = BuildLog(file, request.verbosity, activity)
        try:
            return await build_in_process(request, reporter, file.fileno(), python)
        except Exception as error:
            reporter.failed(error)
            raise


async def build_on(executor: Executor, request: BuildRequest, python: Python | None, log: str) -> BuildResult:
    """Have an executor run a build as `build_logged` does."""
    work = functools.partial(_build, request, python, log)
    result = await asyncio.get_running_loop().run_in_executor(executor, work)
    if isinstance(result, dict):
        raise restored_error(result)
    return result


def _build(request: BuildRequest, python: Python | None, log: str) -> BuildResult | dict[str, Any]:
    """Run a build; return its result, or what is known of its error."""
    try:
        return asyncio.run(build_logged(request, python, log, lambda _: None))
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        return error_fields(error)

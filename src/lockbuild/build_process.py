"""A build in a process of its own: an event loop starts it, reads its events, and can end it at any moment.

The process is ``lockbuild --json --end-with-stdin`` in a session of its own. It ends when its standard input, a pipe,
is closed, and so also when the process that awaits it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import WorkerError
from lockbuild.event_lines import read_event
from lockbuild.other_python import command_for
from lockbuild.settings import INSTALLER_VARIABLE, PREIMPORT_VARIABLE

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping

    from lockbuild.events import Reporter
    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest, BuildResult

# How many seconds a process that was asked to end may take before it is killed. It kills its hook after a fraction of a
# second; an installer takes a little longer. After a kill, the hook host ends the hook.
_END_SECONDS = 10.0


async def build_in_process(
    request: BuildRequest,
    reporter: Reporter,
    output: int | None = None,
    python: Python | None = None,
    variables: Mapping[str, str] | None = None,
) -> BuildResult:
    """
    Run a build in a process of its own, with another Python if one is given.

    Its hooks write to ``output``, a descriptor; by default to standard error. ``variables`` are added to its
    environment.

    Raises what the build raises, and `WorkerError`.
    """
    process = await asyncio.create_subprocess_exec(
        *command_for(python),
        *("--json", "--timings", "--end-with-stdin"),
        *words_of(request),
        env={**os.environ, **(variables or {}), **variables_of(request)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=output,
        # A line may have any length.
        limit=sys.maxsize,
        # Ctrl-C reaches this process alone, which decides whether to end the build.
        start_new_session=True,
    )
    try:
        return await read_events(process, reporter)
    finally:
        await _end(process)


async def read_events(process: Process, reporter: Reporter) -> BuildResult:
    """Pass the events of a build's process to a reporter; return the result. Raises its error, or `WorkerError`."""
    assert process.stdout is not None
    async for line in process.stdout:
        # A killed process may leave half a line.
        if line.endswith(b"\n") and (result := read_event(line, reporter)) is not None:
            return result
    raise WorkerError(await process.wait())


async def _end(process: Process) -> None:
    """End a process and wait for it, however often this is cancelled meanwhile."""
    assert process.stdin is not None
    process.stdin.close()
    # Reads its output as well: it may write more than a pipe holds before it ends.
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


def words_of(request: BuildRequest) -> list[str]:
    """Return the arguments from which `make_request` makes this request, together with its `variables_of`."""
    words = [f"--{kind}" for kind in request.distributions]
    words.append(f"--link-mode={request.link_mode}")
    words.append(f"--tree={request.tree}")
    words.append(f"--lock-timeout={float('inf') if request.lock_timeout is None else request.lock_timeout}")
    words.append(f"--env-max-age={request.env_max_age}")
    words.append(f"--max-sdist-size={'none' if request.max_sdist_size == float('inf') else request.max_sdist_size}")
    words.append("--reuse" if request.reuse else "--no-reuse")
    words += ["--quiet" if request.verbosity < 0 else "--verbose"] * abs(request.verbosity)
    with_values = {
        "--outdir": request.out_dir,
        "--config-json": json.dumps(dict(request.config_settings)) if request.config_settings else None,
        "--dependency-constraints-txt": request.constraints_file,
        "--env-dir": request.env_dir,
        "--sdist-extract-dir": request.sdist_extract_dir,
        "--lock": request.lock,
        "--cache-dir": request.cache_dir,
    }
    words += [f"{option}={value}" for option, value in with_values.items() if value is not None]
    switches = {
        "--no-isolation": not request.isolation,
        "--skip-dependency-check": request.skip_dependency_check,
        "--no-cache": not request.use_cache,
        "--refresh": request.refresh,
        "--coalesce": request.coalesce,
        "--clear": request.clear,
    }
    words += [option for option, is_on in switches.items() if is_on]
    words += [f"--source={name}={wheel or ''}" for name, wheel in request.sources.items()]
    return [*words, "--", request.source]


def variables_of(request: BuildRequest) -> dict[str, str]:
    """Return variables for fields that have no option, or whose option excludes another of the request."""
    return {INSTALLER_VARIABLE: request.installer, PREIMPORT_VARIABLE: "1" if request.preimport else "0"}

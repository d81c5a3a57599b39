"""A build in a process of its own, which an event loop starts, listens to, and can end at any moment.

The process is ``lockbuild --json --end-with-stdin`` in a session of its own. It ends with the pipe that is its standard
input, and so also when the process that awaits it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import WorkerError
from lockbuild.event_lines import read_event
from lockbuild.settings import INSTALLER_VARIABLE, PREIMPORT_VARIABLE

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


def words_of(request: BuildRequest) -> list[str]:
    """Return the command line that `make_request` makes this request of, in an environment with `variables_of` it."""
    words = [f"--{kind}" for kind in request.distributions]
    words.append(f"--link-mode={request.link_mode}")
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
    return [*words, "--", request.source]


def variables_of(request: BuildRequest) -> dict[str, str]:
    """Return the variables for what no option says, or none together with the others of a request."""
    return {INSTALLER_VARIABLE: request.installer, PREIMPORT_VARIABLE: "1" if request.preimport else "0"}

"""Builds on other machines: the workers of a dask scheduler, with which this machine shares no file system.

A tree becomes an sdist here, under its lock. A worker gets the sdist's bytes, builds the wheel in a temporary folder,
and sends back the wheel and the log as bytes, or the error as data. It gets the wheel of another project of the run
only after its build has asked for it.

What this module sends to a worker of another version must be readable there, or the worker could not say so: it is one
dictionary of plain values.

Dask cannot cancel a task that runs. It tells the worker that the task is not wanted any more: if this process cancels
it, closes its connection, or is killed. The task sees that and ends its build. When the worker is killed, the standard
input of the build ends, and so does the build.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import sysconfig
import tempfile
from concurrent.futures import CancelledError
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from lockbuild import __version__
from lockbuild.artifacts import check_artifact, clear_older, describe, list_artifacts, make_out_dir, publish
from lockbuild.errors import ExecutorError, SourceNotBuiltError
from lockbuild.event_lines import error_fields, restored_error
from lockbuild.many.executors import Workers, on_this_machine
from lockbuild.many.log import BuildLog
from lockbuild.request import BuildRequest, BuildResult
from lockbuild.session import out_dir_of
from lockbuild.sources import is_sdist

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from distributed import Client, Worker

    from lockbuild.many.executors import OnExecutor, Processes
    from lockbuild.other_python import Python

_CONNECT_SECONDS = 10.0

# What a task evaluates. A worker that cannot unpickle a function of lockbuild, because it has none, would end.
_CALL = "__import__('lockbuild.many.remote', fromlist=['build_on_worker']).build_on_worker(job)"

# How often a build is started if the workers that run it are lost.
_ATTEMPTS = 3

# After how many seconds a task looks again whether it is still wanted.
_WATCH_SECONDS = 0.2

# The states of a dask task, and of a worker, in which a running build is of no use any more.
_UNWANTED = frozenset({"cancelled", "resumed"})
_CLOSING = frozenset({"closing", "closed", "failed"})

# The processes for builds of each worker of dask in this process.
_workers: WeakKeyDictionary[Worker, Workers] = WeakKeyDictionary()


class OnWorkers:
    """The workers of a dask scheduler. Sdists are built on this machine."""

    def __init__(
        self, client: Client, here: Processes | OnExecutor, folder: str, jobs: int, variables: dict[str, str]
    ) -> None:
        self.jobs = jobs
        self._client = client
        self._variables = variables
        self._here = here
        self._folder = folder
        self._sdists: dict[str, str] = {}
        """The sdists that were built here, by the paths of their trees."""

    async def build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        """Run a build that writes a log. Raises what the build raises, and `ExecutorError`."""
        with open(log, "wb", buffering=0) as file:
            try:
                return await self._build(request, python, log, activity)
            except ExecutorError as error:
                file.seek(0, os.SEEK_END)
                BuildLog(file, request.verbosity, activity).failed(error)
                raise

    async def _build(
        self, request: BuildRequest, python: Python | None, log: str, activity: Callable[[str], None]
    ) -> BuildResult:
        kinds = request.distributions or (("wheel",) if is_sdist(request.source) else ("sdist", "wheel"))
        if "editable" in kinds:
            raise ExecutorError("An editable wheel leads to a tree, which workers do not have; build it without them")
        if python is not None:
            raise ExecutorError("A worker builds with its own Python; start workers with the one that is wanted")
        out_dir = out_dir_of(request)
        before = list_artifacts(out_dir) if request.clear else {}
        artifacts = []
        if not is_sdist(request.source):
            sdist = await self._sdist(request, log, activity)
            # Like every sdist that is built here, it may have any size.
            request = request._replace(source=sdist, max_sdist_size=float("inf"))
        with tempfile.TemporaryDirectory(dir=self._folder) as staging:
            for kind in kinds:
                built = request.source if kind == "sdist" else await self._wheel(request, staging, log, activity)
                make_out_dir(out_dir)
                artifacts.append(describe(publish(*os.path.split(built), out_dir), kind))
        if request.clear:
            clear_older(out_dir, before, [artifact.name for artifact in artifacts])
        return BuildResult(tuple(artifacts))

    async def _sdist(self, request: BuildRequest, log: str, activity: Callable[[str], None]) -> str:
        """Return the path of a tree's sdist, alone in a folder. It is built once."""
        tree = request.source
        if tree not in self._sdists:
            folder = tempfile.mkdtemp(dir=self._folder)
            wanted = request._replace(distributions=("sdist",), out_dir=folder, clear=False)
            result = await self._here.build(wanted, None, log, activity)
            self._sdists[tree] = result.artifacts[0].path
        return self._sdists[tree]

    async def _wheel(self, request: BuildRequest, staging: str, log: str, activity: Callable[[str], None]) -> str:
        """Build a wheel on a worker; return its path in the staging folder."""
        needed: set[str] = set()
        while True:
            activity("on a worker")
            answer = await self._on_a_worker(request, needed)
            with open(log, "ab") as file:
                file.write(f"* Built on {answer['worker']}\n".encode() + answer["log"])
            if "error" not in answer:
                break
            error = restored_error(answer["error"])
            if not isinstance(error, SourceNotBuiltError) or not all(map(request.sources.get, error.names)):
                raise error
            needed.update(error.names)
        name = os.path.basename(answer["name"])
        Path(staging, name).write_bytes(answer["wheel"])
        return os.path.join(staging, check_artifact(staging, name, "wheel"))

    async def _on_a_worker(self, request: BuildRequest, needed: Iterable[str]) -> dict[str, Any]:
        """Return what `build_on_worker` returns. A build whose worker is lost is started again."""
        from distributed import KilledWorker

        for _ in range(_ATTEMPTS):
            # A list: dask would send the values of a dictionary apart. It is emptied, as many may wait for a worker.
            jobs = [_job(request, needed, self._variables)]
            try:
                if not await self._client.nthreads():
                    # Data cannot be sent before there is a worker. A task makes an adaptive cluster start one.
                    await self._client.submit(int, pure=False)
                # The workers keep what was sent as long as this name does.
                [sent] = await self._client.scatter(jobs, hash=False)
                jobs.clear()
                key = f"lockbuild-{uuid4().hex}"
                answer: dict[str, Any] = await self._client.submit(eval, _CALL, {"job": sent}, key=key)
            except CancelledError:
                # The job was on the lost worker alone.
                continue
            except KilledWorker:
                break
            except Exception as error:
                raise ExecutorError(
                    f"The workers cannot run the build: {' '.join(str(error).split())}; check that the scheduler runs, "
                    f"and that its workers have lockbuild {__version__}"
                ) from error
            return answer
        raise ExecutorError("All workers that ran the build were lost; look at their logs, then start the build again")


@contextlib.asynccontextmanager
async def on_workers(address: str, jobs: int | None, pass_env: Sequence[str]) -> AsyncGenerator[OnWorkers, None]:
    """
    Yield the workers of the dask scheduler at this address as a place for builds.

    ``jobs`` builds are under way at a time; by default, as many as the workers have threads and this machine has cores.
    Builds get the environment variables ``pass_env`` and SOURCE_DATE_EPOCH of this process. Raises `ExecutorError`.
    """
    if find_spec("distributed") is None:
        raise ExecutorError("--executor dask needs the library distributed; install lockbuild[dask]")
    from distributed import Client

    try:
        client = await Client(address, asynchronous=True, set_as_default=False, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"Cannot reach the dask scheduler at {address}: {' '.join(str(error).split())}; check that it runs"
        ) from error
    with tempfile.TemporaryDirectory(prefix="lockbuild-sdists-") as folder:
        async with client, on_this_machine() as here:
            jobs = jobs or sum((await client.nthreads()).values()) + here.jobs
            variables = {n: os.environ[n] for n in ("SOURCE_DATE_EPOCH", *pass_env) if n in os.environ}
            yield OnWorkers(client, here, folder, jobs, variables)


def _job(request: BuildRequest, needed: Iterable[str], variables: dict[str, str]) -> dict[str, Any]:
    """Return all that a worker needs to build the wheel of an sdist. Paths of files that are sent are their names."""
    files = {os.path.basename(request.source): Path(request.source).read_bytes()}
    sources: dict[str, str | None] = dict.fromkeys(request.sources)
    for name in needed:
        wheel = Path(request.sources[name] or "")
        files[wheel.name] = wheel.read_bytes()
        sources[name] = wheel.name
    constraints = None
    if request.constraints_file is not None:
        constraints = "constraints.txt"
        files[constraints] = Path(request.constraints_file).read_bytes()
    there = request._replace(
        source=os.path.basename(request.source),
        distributions=("wheel",),
        out_dir="dist",
        clear=False,
        constraints_file=constraints,
        cache_dir=None,
        sources=sources,
        coalesce=False,
    )
    about = {"lockbuild": __version__, "python": sys.version_info[:2]}
    return {**about, "request": there._asdict(), "files": files, "variables": variables}


def build_on_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Build the wheel of a job in this task of dask; return it and its log, or its error."""
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    about = f"lockbuild {__version__}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    answer: dict[str, Any] = {"worker": f"{worker.address} ({about}, {sysconfig.get_platform()})", "log": b""}
    try:
        if (job["lockbuild"], job["python"]) != (__version__, sys.version_info[:2]):
            raise ExecutorError(
                f"The worker {worker.address} has {about}, and this run lockbuild {job['lockbuild']}, Python "
                f"{'.'.join(map(str, job['python']))}; start the worker with the same"
            )
        with tempfile.TemporaryDirectory(prefix="lockbuild-worker-") as folder:
            log = os.path.join(folder, "log")
            for name, content in job["files"].items():
                Path(folder, name).write_bytes(content)
            request, task = _request(job["request"], folder), worker.get_current_task()
            try:
                # In the event loop of the worker, which lasts longer than a task and has the processes.
                result = sync(worker.loop, _build_while_wanted, request, log, job["variables"], worker, task)
                [wheel] = result.artifacts
                answer |= {"name": wheel.name, "wheel": Path(wheel.path).read_bytes()}
            finally:
                answer["log"] = Path(log).read_bytes()
    except Exception as error:  # noqa: BLE001 - it is raised where the run is
        answer["error"] = error_fields(error)
    return answer


def _request(fields: dict[str, Any], folder: str) -> BuildRequest:
    """Return the request of a job whose files are in this folder."""
    request = BuildRequest(**fields)
    constraints = request.constraints_file
    return request._replace(
        source=os.path.join(folder, request.source),
        out_dir=os.path.join(folder, "dist"),
        constraints_file=constraints and os.path.join(folder, constraints),
        sources={name: wheel and os.path.join(folder, wheel) for name, wheel in request.sources.items()},
    )


async def _build_while_wanted(
    request: BuildRequest, log: str, variables: dict[str, str], worker: Worker, key: Any
) -> BuildResult:
    """Build. Give up, and raise `ExecutorError`, when the task of dask with this key is not wanted any more."""
    workers = _workers.setdefault(worker, Workers())
    building = asyncio.ensure_future(workers.build(request, None, log, lambda _: None, variables))
    while not building.done():
        await asyncio.wait({building}, timeout=_WATCH_SECONDS)
        task = worker.state.tasks.get(key)
        if task is None or task.state in _UNWANTED or worker.status.name in _CLOSING:
            building.cancel()
            await asyncio.wait({building})
            raise ExecutorError("The build is not wanted any more")
    return building.result()

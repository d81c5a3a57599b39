"""A run of many builds: it starts each one when what it needs is there, and yields what has become of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from packaging.utils import parse_wheel_filename

from lockbuild.errors import ArtifactError, CircleError, NeededBuildFailedError, SourceNotBuiltError, shown
from lockbuild.many.executors import OnExecutor, Processes, place_for_builds
from lockbuild.many.queue import ReadyQueue

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator
    from concurrent.futures import Executor

    from lockbuild.many.plan import Plan, PlannedBuild
    from lockbuild.other_python import Python
    from lockbuild.request import BuildResult


class Outcome(NamedTuple):
    """What has become of a build of a run: it has either a result or an error."""

    build: PlannedBuild
    result: BuildResult | None = None
    error: Exception | None = None
    seconds: float = 0.0
    log: str | None = None
    """The path of its log; ``None`` for a build that was not started."""


class RunReporter:
    """Hears what the builds of a run do. The methods of this class do nothing; a subclass overrides them."""

    def started(self, build: PlannedBuild) -> None:
        """Called when a build is started."""

    def activity(self, build: PlannedBuild, words: str) -> None:
        """Called when a build begins something else, such as a hook or a wait for a lock."""

    def ended(self, build: PlannedBuild, *, is_over: bool) -> None:
        """Called when a build has ended; it is not over if it has to wait for another one and is started again."""


class Run:
    """
    A run of many builds, at most ``jobs`` at a time. Each writes a log into the folder ``logs``.

    An ``executor`` starts them in its own threads or processes. It must be on this machine.

    A provider that is not wanted is started only if another build needs it.
    """

    def __init__(self, plan: Plan, *, jobs: int, logs: str, executor: Executor | None = None) -> None:
        self._executor = executor
        self._providers = plan.providers
        self._jobs = jobs
        self._logs = logs
        self._queue: ReadyQueue[PlannedBuild] = ReadyQueue()
        self._wheels: dict[str, dict[Python | None, str]] = {name: {} for name in plan.providers}
        """By the names of projects, and by the Pythons that have built them."""
        self._written: dict[str, PlannedBuild] = {}
        """The builds of this run by the paths of their artifacts."""
        self._started = 0
        for build in plan.wanted:
            self._want(build)

    async def outcomes(self, reporter: RunReporter, *, fail_fast: bool = False) -> AsyncGenerator[Outcome, None]:
        """
        Yield what has become of each build, as they end. When the iterator is closed, running builds are ended.

        With ``fail_fast`` no build is started after one has failed.
        """
        running: set[asyncio.Task[Outcome | None]] = set()
        has_failed = False
        with place_for_builds(self._jobs, self._executor) as place:
            try:
                while True:
                    stops = has_failed and fail_fast
                    while len(running) < self._jobs and not stops and (build := self._queue.take()):
                        running.add(asyncio.create_task(self._build(build, place, reporter)))
                    for given_up in self._given_up(is_stuck=not running):
                        yield given_up
                    if not running and (stops or not self._queue):
                        return
                    if running:
                        ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                        for outcome in filter(None, (task.result() for task in ended)):
                            has_failed |= outcome.error is not None
                            yield outcome
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _want(self, build: PlannedBuild) -> None:
        """Queue a build and all that it is known to need."""
        if build not in self._queue:
            self._queue.add(build)
            self._need(build, build.needs)

    def _need(self, build: PlannedBuild, names: Iterable[str]) -> None:
        for name in sorted(names):
            # A project that needs itself gets a release of it.
            if name != build.name and (needed := self._providers.get(name)):
                if build.python is not None and self._wheels[name] and self._wheel(name, build.python) is None:
                    needed = needed.with_python(build.python)
                self._want(needed)
                self._queue.need(build, needed)

    def _wheel(self, name: str, python: Python | None) -> str | None:
        """Return the wheel of a project that serves a Python, if there is one yet."""
        for built_with, wheel in self._wheels[name].items():
            if built_with == python or (python is not None and serves(os.path.basename(wheel), python)):
                return wheel
        return None

    def _want_for_other_pythons(self, build: PlannedBuild, result: BuildResult | None) -> None:
        """Queue the builds with the other Pythons that the wheel of this one does not serve."""
        wheels = [artifact.name for artifact in result.artifacts if artifact.kind == "wheel"] if result else []
        sdists = [artifact.path for artifact in result.artifacts if artifact.kind == "sdist"] if result else []
        if result and not wheels:
            return
        for python in build.other_pythons:
            if not any(serves(wheel, python) for wheel in wheels):
                again = build.with_python(python)
                if sdists and not build.request.distributions:
                    # As the first wheel, the others are built from the sdist.
                    again = again._replace(request=again.request._replace(source=sdists[0]))
                self._want(again)

    def _given_up(self, *, is_stuck: bool) -> Iterator[Outcome]:
        """Yield the builds that need one that has failed, and, where nothing else is left, those that form circles."""
        while True:
            while pair := self._queue.hopeless():
                build, needed = pair
                self._queue.failed(build)
                yield Outcome(build, error=NeededBuildFailedError(needed.label))
            circle = self._queue.circle() if is_stuck else None
            if circle is None:
                return
            error = CircleError([build.label for build in circle])
            for build in circle:
                self._queue.failed(build)
                yield Outcome(build, error=error)

    async def _build(self, build: PlannedBuild, place: Processes | OnExecutor, reporter: RunReporter) -> Outcome | None:
        """Build; ``None`` if it turns out to need another build, after which it is started again."""
        self._started += 1
        log = os.path.join(self._logs, f"{self._started:03}-{os.path.basename(os.path.abspath(build.label))}.log")
        sources = {name: self._wheel(name, build.python) for name in self._wheels if name != build.name}
        began = time.monotonic()
        is_over = True
        reporter.started(build)
        request = build.request._replace(sources=sources if build.request.isolation else {})
        try:
            activity = functools.partial(reporter.activity, build)
            result = await place.build(request, build.python, log, activity)
            self._note_artifacts(build, result)
        except SourceNotBuiltError as error:
            os.unlink(log)
            is_over = False
            self._need(build, error.names)
            return None
        except Exception as error:  # noqa: BLE001 - the caller decides what a failed build means for the others
            self._queue.failed(build)
            self._want_for_other_pythons(build, None)
            return Outcome(build, error=error, seconds=time.monotonic() - began, log=log)
        finally:
            reporter.ended(build, is_over=is_over)
        self._queue.done(build)
        self._want_for_other_pythons(build, result)
        return Outcome(build, result, seconds=time.monotonic() - began, log=log)

    def _note_artifacts(self, build: PlannedBuild, result: BuildResult) -> None:
        """Note the artifacts of a build for those that need them. Raises `ArtifactError`."""
        for artifact in result.artifacts:
            path = os.path.realpath(artifact.path)
            if path in self._written:
                raise ArtifactError(
                    f"{shown(artifact.path)} was written by {shown(self._written[path].label)} as well; give one of "
                    "them another out-dir"
                )
            self._written[path] = build
            if artifact.kind == "wheel" and build.name in self._wheels:
                self._wheels[build.name][build.python] = path


def serves(wheel: str, python: Python) -> bool:
    """Tell whether a wheel, by its name, that was built with one Python serves a newer or older one as well."""
    for tag in parse_wheel_filename(wheel)[3]:
        kind, version = tag.interpreter[:2], tag.interpreter[2:]
        if (kind, tag.abi) in (("py", "none"), ("cp", "abi3")) and version.isdigit():
            oldest = (int(version[0]), int(version[1:] or 0))
            if oldest[0] == python.version[0] and oldest <= python.version:
                return True
    return False


def iterate(outcomes: AsyncGenerator[Outcome, None]) -> Iterator[Outcome]:
    """Yield outcomes as they come from an event loop in another thread. Closing this ends the builds that run."""
    found: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def collect() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                found.put(outcome)

    def work() -> None:
        end: BaseException | None = None
        try:
            asyncio.run(collect())
        except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
            end = error
            # Where not even an event loop could be made.
            started.cancel()
        found.put(end)

    thread = threading.Thread(target=work, name="lockbuild run")
    thread.start()
    try:
        while isinstance(outcome := found.get(), Outcome):
            yield outcome
        if outcome is not None:
            raise outcome
    finally:
        # The loop is closed if all has ended.
        with contextlib.suppress(CancelledError, RuntimeError):
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
        thread.join()

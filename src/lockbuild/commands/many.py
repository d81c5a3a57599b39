"""Many builds from one command line: words to requests, outcomes to a summary and an exit status.

The log of each build is printed in one piece when it ends; on a terminal, only if it has failed or with ``-v``. There,
the library rich shows what runs, if it is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

from lockbuild.artifacts import encoded, report, write_report
from lockbuild.commands.request import make_request
from lockbuild.console import Console, Place
from lockbuild.errors import LockTimeoutError, shown
from lockbuild.event_lines import error_fields
from lockbuild.interruption import interruptible
from lockbuild.many.executors import on_this_machine
from lockbuild.many.plan import make_plan
from lockbuild.many.remote import on_workers
from lockbuild.many.run import Outcome, Run, RunReporter
from lockbuild.many.run import Place as PlaceForBuilds
from lockbuild.many.show import shown_run
from lockbuild.many.workspace import find_workspace
from lockbuild.other_python import find_python
from lockbuild.paths import logs_folder
from lockbuild.request import BuildResult

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from lockbuild.event_lines import EventWriter
    from lockbuild.many.plan import Plan, PlannedBuild
    from lockbuild.other_python import Python
    from lockbuild.request import Artifact


def build_many(parsed: argparse.Namespace, output: Console | EventWriter) -> int:
    """Build all that a command line names; return the exit status. Raises what keeps the run from being started."""
    with interruptible():
        plan = _plan(parsed)
        logs = parsed.logs or logs_folder(parsed.cache_dir)
        os.makedirs(logs, exist_ok=True)
    outcomes: list[Outcome] = []
    run = Run(plan, _place_for_builds(parsed), logs=logs)
    audience = _People(output) if isinstance(output, Console) else _Programs(output)
    with audience.hearing(len(plan.wanted)) as reporter:

        async def collect() -> None:
            async with contextlib.aclosing(run.outcomes(reporter, fail_fast=parsed.fail_fast)) as found:
                async for outcome in found:
                    outcomes.append(outcome)
                    audience.built(outcome)

        interrupted_by = _until_interrupted(collect())
    failed = [each for each in outcomes if each.error is not None]
    audience.over(outcomes, len({*plan.wanted} - {each.build for each in outcomes}))
    if interrupted_by is not None:
        return 128 + interrupted_by
    if parsed.report is not None:
        write_report(parsed.report, encoded(_report(outcomes)))
    if not failed:
        if parsed.logs is None:
            shutil.rmtree(logs, ignore_errors=True)
        return 0
    return LockTimeoutError.exit_status if all(isinstance(each.error, LockTimeoutError) for each in failed) else 1


def _plan(parsed: argparse.Namespace) -> Plan:
    pythons = [find_python(each) for each in parsed.pythons or ()]
    trees, out_dir = [parsed.srcdir, *parsed.more_sources], parsed.outdir
    if parsed.all_packages or parsed.packages:
        workspace = find_workspace(parsed.srcdir)
        trees, out_dir = [*map(os.path.relpath, workspace.packages)], out_dir or os.path.join(workspace.root, "dist")
    requests = [make_request(parsed, tree)._replace(out_dir=out_dir) for tree in trees]
    plan = make_plan(requests, pythons, sources=not parsed.no_sources)
    return plan.only(parsed.packages) if parsed.packages else plan


def _place_for_builds(parsed: argparse.Namespace) -> AbstractAsyncContextManager[PlaceForBuilds]:
    if parsed.executor is None:
        return on_this_machine(parsed.jobs)
    return on_workers(parsed.executor, parsed.jobs, parsed.pass_env or ())


def _report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the report of all builds. Where Pythons were chosen, it says which one has built what."""
    built = _artifacts(outcomes)
    content = report([artifact for artifact, _ in built])
    for entry, (_, python) in zip(content["artifacts"], built, strict=True):
        if python is not None:
            entry["python"] = python.executable
    return content


def _until_interrupted(work: Coroutine[None, None, None]) -> int | None:
    """Do some work until it is done or a signal asks for an end; return the number of the signal."""
    received: list[int] = []

    async def work_on() -> None:
        task = asyncio.ensure_future(work)

        def end(number: int) -> None:
            if not received:
                received.append(number)
                task.cancel()

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Windows has no such handlers. There, Ctrl-C cancels the task of `asyncio.run`.
                with contextlib.suppress(NotImplementedError):
                    asyncio.get_running_loop().add_signal_handler(number, end, number)
        await task

    try:
        asyncio.run(work_on())
    except asyncio.CancelledError:
        return received[0]
    except KeyboardInterrupt:
        return signal.SIGINT
    return None


class _People:
    """Shows a run to people: a log when its build ends, and a line for each build at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def hearing(self, total: int) -> AbstractContextManager[RunReporter]:
        return shown_run(total)

    def built(self, outcome: Outcome) -> None:
        """Print what a build has told, unless it went well and a person watches the run."""
        line, is_verbose = self._console.line, outcome.build.request.verbosity > 0
        if outcome.log is None or (self._console.is_watched and outcome.error is None and not is_verbose):
            return
        on_github = os.environ.get("GITHUB_ACTIONS") == "true"
        line(f"{'::group::' if on_github else '* '}{_label(outcome.build)}", "bold")
        with open(outcome.log, encoding="utf-8", errors="backslashreplace") as file:
            line(file.read().rstrip("\n"))
        if on_github:
            line("::endgroup::")

    def over(self, outcomes: Sequence[Outcome], not_started: int) -> None:
        """Print how long each build took, and its artifacts, or its error and where its log is."""
        built = [(each, each.result) for each in outcomes if each.result is not None]
        width = max((len(_label(each.build)) for each, _ in built), default=0)
        for each, result in built:
            names = ", ".join(artifact.name for artifact in result.artifacts)
            self._console.line(f"{_label(each.build):{width}} {each.seconds:6.1f} s  {names}")
        for each in outcomes:
            if each.error is not None:
                self._console.error(
                    _failure(each, each.error), getattr(each.error, "__notes__", ()), _place(each.build)
                )
        if not_started:
            self._console.line(f"{not_started} more {'build was' if not_started == 1 else 'builds were'} not finished")
        elif all(each.error is None for each in outcomes):
            self._console.succeeded(BuildResult(tuple(artifact for artifact, _ in _artifacts(outcomes))))


class _Programs(RunReporter):
    """Tells programs of a run, in JSON lines."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    @contextlib.contextmanager
    def hearing(self, total: int) -> Iterator[RunReporter]:  # noqa: ARG002
        yield self

    def started(self, build: PlannedBuild) -> None:
        self._write("started", build)

    def activity(self, build: PlannedBuild, words: str) -> None:
        self._write("activity", build, activity=words)

    def built(self, outcome: Outcome) -> None:
        artifacts = report(outcome.result.artifacts)["artifacts"] if outcome.result else []
        error = error_fields(outcome.error) if outcome.error is not None else None
        fields = {"seconds": outcome.seconds, "log": outcome.log, "artifacts": artifacts, "error": error}
        self._write("built", outcome.build, **fields)

    def over(self, outcomes: Sequence[Outcome], not_started: int) -> None:
        failed = sum(each.error is not None for each in outcomes)
        self._writer.write("result", **_report(outcomes), failed=failed, not_started=not_started)

    def _write(self, event: str, build: PlannedBuild, **fields: object) -> None:
        python = None if build.python is None else build.python.executable
        self._writer.write(event, source=build.label, python=python, **fields)


def _failure(outcome: Outcome, error: Exception) -> str:
    """Return why a build has failed, after how long, and where its log is."""
    log = f" (after {outcome.seconds:.1f} s; log: {shown(outcome.log)})" if outcome.log else ""
    return f"{_label(outcome.build)}: {error}{log}"


def _place(build: PlannedBuild) -> Place | None:
    path = os.path.join(build.label, "pyproject.toml")
    return Place(path, 1) if os.path.isfile(path) else None


def _artifacts(outcomes: Sequence[Outcome]) -> list[tuple[Artifact, Python | None]]:
    return [(artifact, each.build.python) for each in outcomes if each.result for artifact in each.result.artifacts]


def _label(build: PlannedBuild) -> str:
    version = "" if build.python is None else f" ({'.'.join(map(str, build.python.version))})"
    return f"{shown(build.label)}{version}"

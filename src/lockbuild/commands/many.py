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
from lockbuild.errors import LockTimeoutError, shown
from lockbuild.interruption import interruptible
from lockbuild.many.plan import make_plan
from lockbuild.many.run import Outcome, Run
from lockbuild.many.show import shown_run
from lockbuild.many.workspace import find_workspace
from lockbuild.other_python import find_python
from lockbuild.paths import logs_folder
from lockbuild.request import BuildResult

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Sequence

    from lockbuild.console import Console
    from lockbuild.many.plan import Plan, PlannedBuild
    from lockbuild.request import BuildRequest


def build_many(parsed: argparse.Namespace, console: Console) -> int:
    """Build all that a command line names; return the exit status. Raises what keeps the run from being started."""
    with interruptible():
        request = make_request(parsed)
        plan = _plan(parsed, request)
        logs = parsed.logs or logs_folder(request.cache_dir)
        os.makedirs(logs, exist_ok=True)
    outcomes: list[Outcome] = []
    run = Run(plan, jobs=parsed.jobs or os.cpu_count() or 1, logs=logs)
    with shown_run(len(plan.wanted)) as reporter:

        async def collect() -> None:
            async with contextlib.aclosing(run.outcomes(reporter, fail_fast=parsed.fail_fast)) as found:
                async for outcome in found:
                    outcomes.append(outcome)
                    _print_log(outcome, console)

        interrupted_by = _until_interrupted(collect())
    failed = [each for each in outcomes if each.error is not None]
    _summarize(outcomes, console)
    if interrupted_by is not None:
        return 128 + interrupted_by
    result = BuildResult(tuple(artifact for each in outcomes if each.result for artifact in each.result.artifacts))
    if parsed.report is not None:
        write_report(parsed.report, encoded(_report(outcomes)))
    if not failed:
        if parsed.logs is None:
            shutil.rmtree(logs, ignore_errors=True)
        console.succeeded(result)
        return 0
    return LockTimeoutError.exit_status if all(isinstance(each.error, LockTimeoutError) for each in failed) else 1


def _plan(parsed: argparse.Namespace, request: BuildRequest) -> Plan:
    sources = not parsed.no_sources
    pythons = [find_python(each) for each in parsed.pythons or ()]
    if not (parsed.all_packages or parsed.packages):
        return make_plan(
            [request._replace(source=each) for each in (parsed.srcdir, *parsed.more_sources)], pythons, sources=sources
        )
    workspace = find_workspace(parsed.srcdir)
    request = request._replace(out_dir=request.out_dir or os.path.join(workspace.root, "dist"))
    plan = make_plan(
        [request._replace(source=os.path.relpath(each)) for each in workspace.packages], pythons, sources=sources
    )
    return plan.only(parsed.packages) if parsed.packages else plan


def _report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the report of all builds. Where Pythons were chosen, it says which one has built what."""
    built = [(artifact, each.build.python) for each in outcomes if each.result for artifact in each.result.artifacts]
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


def _print_log(outcome: Outcome, console: Console) -> None:
    """Print what a build has told, unless it went well and a person watches the run."""
    if outcome.log is None or (console.is_watched and outcome.error is None and outcome.build.request.verbosity <= 0):
        return
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    console.line(f"::group::{_label(outcome.build)}" if on_github else f"* {_label(outcome.build)}", "bold")
    with open(outcome.log, encoding="utf-8", errors="backslashreplace") as file:
        for line in file:
            console.line(line.rstrip("\n"))
    if on_github:
        console.line("::endgroup::")


def _summarize(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print a line for each build: how long it took, and its artifacts, or its error and where its log is."""
    labels = {id(each): _label(each.build) for each in outcomes}
    width = max(map(len, labels.values()), default=0)
    for each in sorted(outcomes, key=lambda outcome: outcome.error is not None):
        if each.result is not None:
            words, style = ", ".join(artifact.name for artifact in each.result.artifacts), None
        else:
            words, style = f"{each.error}{f' (log: {shown(each.log)})' if each.log else ''}", "red"
        console.line(f"{labels[id(each)]:{width}} {each.seconds:6.1f} s  {words}", style)


def _label(build: PlannedBuild) -> str:
    version = "" if build.python is None else f" ({'.'.join(map(str, build.python.version))})"
    return f"{shown(build.label)}{version}"

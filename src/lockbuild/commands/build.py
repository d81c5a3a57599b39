"""The command line of ``lockbuild``: that of ``build`` and a few more options.

This module imports only what reading the command line takes; `_run` imports the rest.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from lockbuild.commands.options import asks_for_many, parse, without_python
from lockbuild.errors import Interrupted, LockbuildError, SettingsError, shown
from lockbuild.files import take_standard_output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lockbuild.console import Console
    from lockbuild.event_lines import EventWriter


def main(arguments: Sequence[str] | None = None, prog: str = "lockbuild") -> NoReturn:
    """Run the command line and exit: 0 for success, 1 for a failed build, 2 for wrong usage, 75 for a lock timeout."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments, prog)
    for stream in (sys.stdout, sys.stderr):
        # Paths may contain bytes that are not text. They are shown as escapes.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _run(parsed)
    except BrokenPipeError:
        # The reader of our output has gone. At exit, Python would flush and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run(parsed: argparse.Namespace) -> int:
    from lockbuild.console import Console, Place
    from lockbuild.interruption import interruptible

    _prepare_windows_console()
    # With --quiet, lockbuild drops the output of hooks; with --metadata, it shows that only after a failure.
    output = (
        _event_writer()
        if parsed.json
        else Console(parsed.verbosity, hooks_write=parsed.verbosity >= 0 and not parsed.metadata)
    )
    try:
        if parsed.pythons and not asks_for_many(parsed):
            return _run_with_python(parsed)
        with interruptible():
            if asks_for_many(parsed):
                from lockbuild.commands.many import build_many

                return build_many(parsed, output)
            _build(parsed, output)
    except Interrupted as interruption:
        if isinstance(output, Console):
            output.interrupted()
        return interruption.exit_status
    except Exception as error:  # noqa: BLE001 - the user gets one line for any error
        pyproject = os.path.join(parsed.srcdir, "pyproject.toml")
        place = Place(pyproject, 1) if os.path.isfile(pyproject) else None
        if not isinstance(output, Console):
            output.failed(error)
        elif isinstance(error, LockbuildError):
            output.error(str(error), getattr(error, "__notes__", ()), place)
        else:
            from lockbuild.commands.failures import report_failure

            report_failure(error, parsed, output, place)
        return error.exit_status if isinstance(error, LockbuildError) else 1
    return 0


def _run_with_python(parsed: argparse.Namespace) -> int:
    """Run the same command line with another Python: on POSIX in place of this process."""
    from lockbuild.other_python import command_for, find_python

    command = [*command_for(find_python(parsed.pythons[0])), *without_python(parsed.words)]
    if os.name == "posix":
        os.execv(command[0], command)
    import subprocess

    return subprocess.run(command, check=False).returncode


def _event_writer() -> EventWriter:
    from lockbuild.event_lines import EventWriter

    return EventWriter(take_standard_output())


def _build(parsed: argparse.Namespace, output: Console | EventWriter) -> None:
    import time
    import warnings

    # The time that the interpreter and the imports have taken until now. They do not wait, so CPU time is enough.
    start = time.process_time()
    from lockbuild import frontend
    from lockbuild.commands.request import make_request
    from lockbuild.request import Timing

    warnings.showwarning = lambda message, *_, **__: output.warn(str(message))
    request = make_request(parsed)
    if parsed.metadata:
        from packaging.metadata import parse_email

        output.metadata(parse_email(frontend.metadata(request, output, owns_process=True))[0])
        return
    # Before the hook host starts, because it inherits our standard output.
    report_output = take_standard_output() if parsed.report == "-" else None
    result = frontend.build(request, output, owns_process=True)
    result = result._replace(timings=(Timing("start", start), *result.timings) if parsed.timings else ())
    if parsed.report is not None:
        from lockbuild.artifacts import encoded, report, write_report

        content = encoded(report(result.artifacts, result.timings))
        if report_output is None:
            try:
                write_report(parsed.report, content)
            except OSError as error:
                raise SettingsError(f"Cannot write the report {shown(parsed.report)}: {error.strerror}") from error
        else:
            with open(report_output, "wb") as stream:
                stream.write(content)
    if request.use_cache:
        from lockbuild.garbage_collection import collect_once_a_day

        # Before the last line, after which a program may end this process.
        collect_once_a_day(request.cache_dir)
    output.succeeded(result)


def _prepare_windows_console() -> None:
    if sys.platform == "win32":
        import colorama

        colorama.just_fix_windows_console()

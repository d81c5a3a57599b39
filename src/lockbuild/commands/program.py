"""The process of a console script: its beginning and its end."""

from __future__ import annotations

import gc
import os
import sys

from lockbuild.files import open_standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TextIO


def entrypoint(prog: str = "lockbuild") -> NoReturn:
    """Run the console script ``lockbuild``."""

    def run() -> NoReturn:
        from lockbuild.commands.build import main

        main(prog=prog)

    run_as_process(run)


def run_as_process(main: Callable[[], int]) -> NoReturn:
    """
    Run a command line as a process of its own, and end with its status.

    Python would collect garbage while it imports, and once more at the end. Both together take a tenth of a warm build.
    Exit functions run: one of them removes a temporary folder of which an interruption has left only the finalizer.
    """
    gc.disable()
    open_standard_streams()
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        from signal import SIGINT

        # Before the build began to handle signals.
        status = 128 + SIGINT
    except OSError as error:
        # A command reports its other errors itself.
        _report_unwritable(error)
        status = 1
    # The collection at the end passes over frozen objects.
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        if not _flush(stream):
            status = status or 1
    sys.exit(status)


def _flush(stream: TextIO) -> bool:
    """Write what is left in a stream, or drop it: Python would try again at the end, and change the exit status."""
    try:
        stream.flush()
    except OSError as error:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), stream.fileno())
        if stream is sys.stdout:
            _report_unwritable(error)
        return False
    return True


def _report_unwritable(error: OSError) -> None:
    """Report that a standard stream cannot be written, unless its reader has gone."""
    if not isinstance(error, BrokenPipeError):
        try:
            sys.stderr.write(f"ERROR Cannot write the output: {error.strerror}\n")
        except OSError:
            # It is standard error.
            return

"""The process of the console script ``lockbuild``: its beginning and its end."""

from __future__ import annotations

import gc
import os
import sys

from lockbuild.files import open_standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TextIO


def entrypoint(prog: str = "lockbuild") -> NoReturn:
    """
    Run the command line as a process of its own.

    Python would collect garbage while it imports, and once more at the end. Both together take a tenth of a warm build.
    Exit functions run: one of them removes a temporary folder of which an interruption has left only the finalizer.
    """
    gc.disable()
    open_standard_streams()
    status = 1
    try:
        from lockbuild.commands.build import main

        main(prog=prog)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        from signal import SIGINT

        # Before the build began to handle signals.
        status = 128 + SIGINT
    # The collection at the end passes over frozen objects.
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(status)


def _flush(stream: TextIO) -> None:
    """Write what is left in a stream, or drop it: Python would try again at the end, and change the exit status."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), stream.fileno())

"""The process of the console script ``lockbuild``: its beginning and its end."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

from lockbuild.files import open_standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def entrypoint(prog: str = "lockbuild") -> NoReturn:
    """
    Run the command line as a process of its own, which ends as soon as its output is written.

    Python would collect garbage while it imports, and take modules and objects apart at the end. Both together take a
    tenth of a warm build. No cleanup depends on a finalizer or an exit function: ``with`` statements do all of it.
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
    for stream in (sys.stdout, sys.stderr):
        # The build has reported what cannot be written.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)

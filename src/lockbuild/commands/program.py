"""The process of the console script ``lockbuild``: how it begins, and how it ends."""

from __future__ import annotations

import gc
import os
import sys

from lockbuild.files import open_standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def entrypoint(prog: str = "lockbuild") -> NoReturn:
    """
    Run the command line as a process of its own, which ends with its last word.

    Python would collect garbage while it imports, and at the end take apart every module and object; that is a tenth
    of a warm build. Nothing here waits for a finalizer: what has to be undone is undone by ``with``.
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

        # Before the build had begun: it handles its signals itself.
        status = 128 + SIGINT
    import atexit
    from contextlib import suppress

    # Of those who measure us, for example.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)

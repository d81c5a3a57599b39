"""Messages for failed builds: in the words of ``build`` where it has some, otherwise in one line.

A `LockbuildError` brings its own message. The others come from libraries, from the system, or from bugs in lockbuild.
"""

from __future__ import annotations

import subprocess
import traceback
from typing import TYPE_CHECKING

from build import BuildBackendException, BuildException, FailedProcessError

from lockbuild.errors import shown

if TYPE_CHECKING:
    import argparse

    from lockbuild.console import Console

_HELP_FOR_FAILED_BUILDS = "https://build.pypa.io/en/stable/how-to/troubleshooting.html#debug-a-failed-build"


def report_failure(error: Exception, parsed: argparse.Namespace, console: Console) -> None:
    """Print why a build has failed."""
    if isinstance(error, BuildBackendException):
        tips = [*getattr(error, "__notes__", ()), _hint(parsed)]
        if not isinstance(error.exception, subprocess.CalledProcessError):
            console.traceback("".join(traceback.format_exception(error.exception, limit=-1)).strip("\n"))
        console.error(str(error), tips)
    elif isinstance(error, (BuildException, FailedProcessError, subprocess.CalledProcessError)):
        console.error(str(error).replace(parsed.srcdir, shown(parsed.srcdir)))
    elif isinstance(error, BrokenPipeError):
        raise error
    elif isinstance(error, OSError):
        console.error(f"{error.strerror}: {error.filename!r}" if error.filename is not None else str(error))
    else:
        if parsed.verbosity > 0:
            console.traceback("".join(traceback.format_exception(error)).strip("\n"))
        console.error(f"{type(error).__name__}: {error} (this is a bug in lockbuild; -v shows where)")


def _hint(parsed: argparse.Namespace) -> str:
    named = ((parsed.env_dir, "the build environment"), (parsed.sdist_extract_dir, "the extracted sources"))
    kept = [f"{label} at {path}" for path, label in named if path is not None]
    action = (
        f"inspect {' and '.join(kept)}"
        if kept
        else "pass --env-dir and --sdist-extract-dir to keep the build environment and sources"
    )
    return f"{action}, then see {_HELP_FOR_FAILED_BUILDS} for help debugging a failed build"

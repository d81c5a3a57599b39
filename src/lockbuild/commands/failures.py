"""Messages for failed builds: in the words of ``build`` where it has some, otherwise in one line.

A `LockbuildError` brings its own message. The others come from libraries, from the system, or from bugs in lockbuild.
"""

from __future__ import annotations

import re
import subprocess
import traceback
from typing import TYPE_CHECKING

from build import BuildBackendException, BuildException, FailedProcessError

from lockbuild.errors import shown

if TYPE_CHECKING:
    import argparse

    from lockbuild.console import Console, Place

_HELP_FOR_FAILED_BUILDS = "https://build.pypa.io/en/stable/how-to/troubleshooting.html#debug-a-failed-build"

_SYNTAX_ERROR = re.compile(r"Failed to parse .*pyproject\.toml: .* \(at line (\d+), column (\d+)\)", re.DOTALL)

_EXCERPT_LENGTH = 70


def report_failure(error: Exception, parsed: argparse.Namespace, console: Console, place: Place | None) -> None:
    """Print why a build has failed. The reason is the last line. ``place`` is where a forge may show it."""
    if isinstance(error, BrokenPipeError):
        raise error
    tips = list(getattr(error, "__notes__", ()))
    if isinstance(error, BuildBackendException):
        tips.append(_hint(parsed))
        if not isinstance(error.exception, subprocess.CalledProcessError):
            console.traceback("".join(traceback.format_exception(error.exception, limit=-1)).strip("\n"))
    if place is not None and (named := _SYNTAX_ERROR.fullmatch(str(error))):
        place = place._replace(line=int(named[1]))
        console.log(_excerpt(*place, int(named[2])))
    console.error(_message(error, parsed, console), tips, place)


def _message(error: Exception, parsed: argparse.Namespace, console: Console) -> str:
    if isinstance(error, BuildBackendException):
        return str(error)
    if isinstance(error, (BuildException, FailedProcessError, subprocess.CalledProcessError)):
        # They may quote keys and paths with any characters.
        return shown(str(error))
    if isinstance(error, Warning):
        # PYTHONWARNINGS=error makes it one.
        return shown(str(error))
    if isinstance(error, OSError):
        if error.filename is not None:
            return f"{error.strerror}: {error.filename!r}"
        return error.strerror or str(error)
    if parsed.verbosity > 0:
        console.traceback("".join(traceback.format_exception(error)).strip("\n"))
    return f"{type(error).__name__}: {error} (this is a bug in lockbuild; -v shows where)"


def _excerpt(path: str, line: int, column: int) -> str:
    """Return the part of a line that is around a column, and a caret below it."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read().split("\n")[line - 1].replace("\t", " ")
    except (OSError, ValueError, IndexError):
        # It was changed meanwhile.
        return ""
    begin = max(0, column - _EXCERPT_LENGTH // 2)
    number = f"{line} | "
    return f"{number}{shown(text[begin : begin + _EXCERPT_LENGTH])}\n{'^':>{len(number) + column - begin}}"


def _hint(parsed: argparse.Namespace) -> str:
    named = ((parsed.env_dir, "the build environment"), (parsed.sdist_extract_dir, "the extracted sources"))
    kept = [f"{label} at {path}" for path, label in named if path is not None]
    action = (
        f"inspect {' and '.join(kept)}"
        if kept
        else "pass --env-dir and --sdist-extract-dir to keep the build environment and sources"
    )
    return f"{action}, then see {_HELP_FOR_FAILED_BUILDS} for help debugging a failed build"

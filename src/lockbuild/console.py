"""All output for people: steps and errors on standard error, results on standard output.

The words and colors of steps are those of ``python -m build``. lockbuild adds the wait for a lock. On a terminal, one
line counts its seconds; elsewhere there is a line when it begins, when the holder changes, and every 15 seconds. On a
terminal, other long steps have such a line as well (`live`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lockbuild.errors import shown
from lockbuild.events import LockWait, Reporter
from lockbuild.request import Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packaging.metadata import RawMetadata

    from lockbuild.live import LiveLine
    from lockbuild.request import BuildResult

_COLORS = {
    "red": "\33[91m",
    "green": "\33[92m",
    "yellow": "\33[93m",
    "bold": "\33[1m",
    "dim": "\33[2m",
    "underline": "\33[4m",
    "reset": "\33[0m",
}
_NO_COLORS = dict.fromkeys(_COLORS, "")

# How often to report the same wait again where lines stay, in seconds.
_REPEAT_SECONDS = 15.0

# The least of a command and of a path that are worth showing, in columns.
_COMMAND_WIDTH = 10
_PATH_WIDTH = 8

_UNSEEN = "a process that cannot be seen from here"

# Words for the steps in which no hook runs. `Console.waiting` reports the wait for a lock.
_STEPS = {
    "environment": "Making the build environment",
    "resolving": "Finding and fetching the build requirements",
    "filling": "Filling the build environment",
    "unpack": "Reading and unpacking the sdist",
    "publish": "Publishing",
}


class Place(NamedTuple):
    """A place in a file that an error is about."""

    file: str
    line: int


class Console(Reporter):
    """
    A reporter that prints. ``verbosity`` counts -v and -q as ``build`` does: below -1 only errors are printed.

    ``hooks_write`` says whether hooks write to the same terminal. If so, there is no live line while one runs.
    """

    def __init__(self, verbosity: int, *, hooks_write: bool = True) -> None:
        self._verbosity = verbosity
        self._hooks_write = hooks_write
        self._out = _colors(sys.stdout)
        self._err = _colors(sys.stderr)
        self._told_wait: LockWait | None = None
        self._warned: set[str] = set()
        if "NO_COLOR" in os.environ and "FORCE_COLOR" in os.environ:
            self.warn("Both NO_COLOR and FORCE_COLOR environment variables are set, disabling color")

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        """Print a message of ``build`` as its own command line does."""
        if self._verbosity < -1:
            return
        match kind:
            case ("step", *_):
                first, _, rest = message.partition("\n")
                self._print_error(self._fill(first, "* "), "bold")
                self._print_lines(rest, "  ")
            case ("subprocess", "cmd"):
                self._print_lines(message, "> ", "dim")
            case ("subprocess", _):
                self._print_lines(message, "< ", "dim")
            case _:
                self._print_lines(message, "  ")

    def detail(self, message: str) -> None:
        """Print a message only with -v."""
        if self._verbosity > 0:
            self.log(message)

    def warn(self, message: str) -> None:
        """Print a warning, once."""
        if self._verbosity >= -1 and message not in self._warned:
            self._warned.add(message)
            self._print_error(f"{self._err['yellow']}WARNING{self._err['reset']} {message}")

    def waiting(self, wait: LockWait) -> None:
        """Print which process the build waits for."""
        if self._verbosity < -1:
            return
        if self._live_line is not None:
            self._live_line.show(_line_of_wait(wait, self._width))
            return
        held_by = str(wait.holder) if wait.holder else _UNSEEN
        if wait.activity is None:
            text = f"Waiting for the lock on {shown(wait.subject)}, held by {held_by}"
        else:
            text = f"Waiting for {wait.holder.pid if wait.holder else held_by}, which is {shown(wait.activity)}"
        told = self._told_wait
        pid = wait.holder.pid if wait.holder else None
        told_pid = told.holder.pid if told and told.holder else None
        if told is None or pid != told_pid or wait.waited - told.waited >= _REPEAT_SECONDS:
            limit = ""
            if told is None:
                limit = (
                    "; waiting without a limit, --lock-timeout sets one"
                    if wait.timeout is None
                    else f"; waiting for up to {wait.timeout:g} s"
                )
            self._told_wait = wait
            self._print_error(f"* {text}{limit}", "bold")

    def got_lock(self, subject: str, waited: float) -> None:
        """Print that a wait is over."""
        self._told_wait = None
        if self._verbosity >= -1:
            self._print_error(f"* Got the lock on {shown(subject)} after {waited:.0f} s", "bold")

    def began(self, step: str) -> None:
        """Show on a terminal that a step has begun, if it lasts."""
        words = _STEPS.get(step)
        if words is None and step != "lock" and not self._hooks_write:
            words = f"Running {step}"
        if words is not None and self._verbosity >= -1 and self._live_line is not None:
            self._live_line.began(words)

    def progress(self, done: int, total: int) -> None:
        """Show on a terminal how much of the step is done."""
        if self._live_line is not None:
            self._live_line.progress(done, total)

    def ended(self, step: str, seconds: float) -> None:  # noqa: ARG002
        """Remove the line of the step."""
        if self._live_line is not None:
            self._live_line.ended()

    def interrupted(self) -> None:
        """Leave the line of a wait on the terminal: it says what the build that was interrupted has waited for."""
        if self._live_line is not None:
            self._live_line.leave()

    def error(self, message: str, tips: Sequence[str] = (), place: Place | None = None) -> None:
        """
        Print an error in one line, after tips that may help.

        GitHub Actions shows it at its ``place``.
        """
        for tip in tips:
            self._print_error(f"{self._err['yellow']}TIP{self._err['reset']} {tip}")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            self._print_error(_annotation(message, place))
        self._print_error(f"{self._err['red']}ERROR{self._err['reset']} {message}")

    @property
    def is_watched(self) -> bool:
        """Whether a person watches the standard error at a terminal."""
        return self._live_line is not None

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line on standard error that is not wrapped; not with -qq."""
        if self._verbosity >= -1:
            self._print_error(text, style)

    def traceback(self, text: str) -> None:
        """Print the traceback of a backend on standard output, as ``build`` does."""
        self._print(f"\n{self._out['dim']}{text}{self._out['reset']}\n", sys.stdout)

    def succeeded(self, result: BuildResult) -> None:
        """Print the last line of a build that has succeeded, after the timings in the result, if any."""
        if self._verbosity < -1:
            return
        if result.timings:
            self._print_timings(result.timings)
        out = self._out
        names = [artifact.name for artifact in result.artifacts]
        styled = [f"{out['underline']}{name}{out['reset']}{out['bold']}{out['green']}" for name in names]
        listed = styled[0] if len(styled) == 1 else f"{', '.join(styled[:-1])} and {styled[-1]}"
        self._print(f"{out['bold']}{out['green']}Successfully built {listed}{out['reset']}", sys.stdout)

    def metadata(self, fields: RawMetadata) -> None:
        """Print metadata as JSON on standard output."""
        import json

        self._print(json.dumps(fields, ensure_ascii=False, indent=2), sys.stdout)

    def _print_timings(self, timings: Sequence[Timing]) -> None:
        """Print timings in milliseconds."""
        total = Timing("total", sum(seconds for _, seconds in timings))
        width = max(len(step) for step, _ in timings)
        lines = [f"{step:{width}} {seconds * 1000:8.1f} ms" for step, seconds in (*timings, total)]
        self._print_error("* Timings:", "bold")
        for line in lines:
            self._print_error(f"  {line}")

    @functools.cached_property
    def _width(self) -> int:
        import shutil

        # Where standard output is no terminal, standard error may be one.
        fallback = os.get_terminal_size(sys.stderr.fileno()) if sys.stderr.isatty() else (80, 24)
        columns = shutil.get_terminal_size(fallback).columns - 2
        return columns if columns > 0 else 78

    def _fill(self, line: str, indent: str) -> str:
        """Wrap a line as `build` does, except in a log that has no width: there it can be searched and copied."""
        if not sys.stderr.isatty() and not os.environ.get("COLUMNS"):
            return indent + line
        import textwrap

        return textwrap.fill(line, initial_indent=indent, subsequent_indent="  ", width=self._width)

    def _print_lines(self, message: str, indent: str, style: str | None = None) -> None:
        for line in message.splitlines():
            self._print_error(self._fill(line, indent), style)

    def _print_error(self, text: str, style: str | None = None) -> None:
        if style is not None:
            text = f"{self._err[style]}{text}{self._err['reset']}"
        self._print(text, sys.stderr)

    def _print(self, text: str, stream: TextIO) -> None:
        with self._live_line.hidden() if self._live_line is not None else contextlib.nullcontext():
            print(text, file=stream, flush=True)

    @functools.cached_property
    def _live_line(self) -> LiveLine | None:
        if not sys.stderr.isatty():
            return None
        from lockbuild.live import LiveLine, can_be_live

        return LiveLine(sys.stderr, self._err) if can_be_live(sys.stderr) else None


def _line_of_wait(wait: LockWait, width: int) -> str:
    """Return a line for a terminal. What matters most stands first: a narrow terminal shows only the beginning."""
    line = f"* Waiting {wait.waited:.0f} s for {wait.holder.pid if wait.holder else _UNSEEN}"
    if wait.holder and wait.holder.others:
        line += f" and {len(wait.holder.others)} more"
    if wait.activity is not None:
        return f"{line}, which is {shown(wait.activity)}"[:width]
    if wait.holder and wait.holder.command:
        line += f" ({_cut(wait.holder.command, max(_COMMAND_WIDTH, width // 3))})"
    subject = shown(wait.subject)
    room = width - len(line) - 2
    if room < _PATH_WIDTH:
        return _cut(line, width)
    if len(subject) > room:
        # The end of a path says more than its beginning.
        subject = f"…{subject[1 - room :]}" if subject.startswith(os.sep) else _cut(subject, room)
    return f"{line}: {subject}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _annotation(message: str, place: Place | None) -> str:
    """Return an error as a command to GitHub Actions, in which some characters are escaped."""
    text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    if place is None:
        return f"::error::{text}"
    # A forge knows files by their paths in the repository.
    try:
        file = os.path.relpath(place.file, os.environ.get("GITHUB_WORKSPACE") or os.curdir)
    except ValueError:
        # On another drive of Windows.
        file = place.file
    file = file.replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::error file={shown(file)},line={place.line}::{text}"


def _colors(stream: TextIO) -> dict[str, str]:
    if "NO_COLOR" in os.environ:
        return _NO_COLORS
    return _COLORS if "FORCE_COLOR" in os.environ or stream.isatty() else _NO_COLORS

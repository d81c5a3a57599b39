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
from typing import TYPE_CHECKING, TextIO

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

# Words for the steps in which no hook runs. `Console.waiting` reports the wait for a lock.
_STEPS = {
    "environment": "Making the build environment",
    "resolving": "Finding and fetching the build requirements",
    "filling": "Filling the build environment",
    "publish": "Publishing",
}


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
        held_by = str(wait.holder) if wait.holder else "a process that cannot be seen from here"
        if wait.activity is None:
            text = f"Waiting for the lock on {shown(wait.subject)}, held by {held_by}"
        else:
            builder = wait.holder.pid if wait.holder else held_by
            text = f"Waiting for {builder}, which is {shown(wait.activity)}"
        if self._live_line is not None:
            # The seconds at the end have to be seen, so a long command line before them is cut.
            end = f", {wait.waited:.0f} s so far"
            line = f"* {text}"[: max(0, self._width - len(end))] + end
            self._live_line.show(line[: self._width])
            return
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

    def error(self, message: str, tips: Sequence[str] = ()) -> None:
        """Print an error in one line, after tips that may help."""
        for tip in tips:
            self._print_error(f"{self._err['yellow']}TIP{self._err['reset']} {tip}")
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

        columns = shutil.get_terminal_size().columns - 2
        return columns if columns > 0 else 78

    def _fill(self, line: str, indent: str) -> str:
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


def _colors(stream: TextIO) -> dict[str, str]:
    if "NO_COLOR" in os.environ:
        return _NO_COLORS
    return _COLORS if "FORCE_COLOR" in os.environ or stream.isatty() else _NO_COLORS

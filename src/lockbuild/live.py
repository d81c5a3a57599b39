"""The live line at the bottom of a terminal: shows the current step and its seconds, and vanishes with the step.

Short steps have no line. A thread draws the line, because the thread that builds waits for a lock, an installer or a
hook. All other output of lockbuild goes through `hidden`, which removes the line first. Hooks write to the terminal
directly, so there is no line while a hook may write.

A live line takes a carriage return and "erase to the end of the line". A library for that would be installed into the
build environment of every project that uses `lockbuild.backend`.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# How long a step lasts before it gets a line, and how often the line is drawn again, in seconds.
_DELAY_SECONDS = 0.4
_REDRAW_SECONDS = 0.1

_BAR_WIDTH = 24

_ERASE = "\r\33[K"


def can_be_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can erase a line and that a person watches."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and not in_ci and os.environ.get("TERM") != "dumb"


class LiveLine:
    """The live line of a stream that `can_be_live`. ``colors`` are escape sequences by name, or empty strings."""

    def __init__(self, stream: TextIO, colors: Mapping[str, str]) -> None:
        self._stream = stream
        self._colors = colors
        self._lock = threading.RLock()
        """Held by the thread that writes to the terminal."""
        self._has_step = threading.Event()
        self._step: tuple[str, float] | None = None
        self._progress: tuple[int, int] | None = None
        self._is_shown = False
        self._is_given = False
        """Whether the line is a text given to `show`, which stays until other output is written."""
        self._thread: threading.Thread | None = None

    def began(self, words: str) -> None:
        """Show a step in these words, unless it ends soon."""
        self._step, self._progress = (words, time.monotonic()), None
        self._has_step.set()
        if self._thread is None:
            # A daemon: it writes only during a step, and the process does not end within one.
            self._thread = threading.Thread(target=self._draw, name="live line", daemon=True)
            self._thread.start()

    def progress(self, done: int, total: int) -> None:
        """Show how much of the step is done."""
        self._progress = (done, total)

    def ended(self) -> None:
        """Remove the line of the step, but not a text given to `show`."""
        self._step = None
        self._has_step.clear()
        with self._lock:
            if not self._is_given:
                self._erase()

    def leave(self) -> None:
        """Leave a text given to `show` on the terminal, and go on in the next line."""
        with self._lock:
            if self._is_given:
                self._is_shown = self._is_given = False
                self._stream.write("\n")
                self._stream.flush()

    def show(self, text: str) -> None:
        """Show a text now, until other output is written."""
        with self._lock:
            self._is_given = True
            self._write(text)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the line, and keep it away while other output is written."""
        with self._lock:
            self._erase()
            yield

    def _erase(self) -> None:
        if self._is_shown:
            self._is_shown = self._is_given = False
            self._stream.write(_ERASE)
            self._stream.flush()

    def _draw(self) -> None:
        while True:
            self._has_step.wait()
            time.sleep(_REDRAW_SECONDS)
            with self._lock:
                # The step may have ended during the sleep, and its line may be gone already.
                step, progress = self._step, self._progress
                if step is None or self._is_given or not self._is_in_foreground():
                    continue
                words, began = step
                seconds = time.monotonic() - began
                if seconds >= _DELAY_SECONDS:
                    self._write(*self._describe(words, progress, seconds))

    def _describe(self, words: str, progress: tuple[int, int] | None, seconds: float) -> tuple[str, str, str]:
        """Return the line in three parts, the second of which is colored."""
        if progress is None or not progress[1]:
            return f"* {words}, {seconds:.0f} s", "", ""
        done, total = progress
        filled = _BAR_WIDTH * done // total
        return f"* {words} ", "#" * filled, f"{'-' * (_BAR_WIDTH - filled)} {done}/{total}, {seconds:.0f} s"

    def _write(self, before: str, colored: str = "", after: str = "") -> None:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            columns = 80
        # The last column stays free: some terminals wrap when something is written there.
        room = columns - 1
        before = before[:room]
        colored = colored[: room - len(before)]
        after = after[: room - len(before) - len(colored)]
        if colored:
            colored = f"{self._colors['green']}{colored}{self._colors['reset']}"
        self._is_shown = True
        self._stream.write(f"\r{before}{colored}{after}\33[K")
        self._stream.flush()

    def _is_in_foreground(self) -> bool:
        """Return whether this process is in the foreground. A shell's background job shows no line."""
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except (OSError, AttributeError):
            # The stream is not the controlling terminal of this process, or this is Windows.
            return True

"""The output of hooks, passed on as it comes and written down for others to read.

Hooks of a build that nobody shares inherit our standard output and error. Those of a shared one write to a file that
is read while they write, and what comes goes on to where ours goes: no thread, and nothing that a daemon could be left
to write to without a reader. Where ours goes to a terminal, they write to a terminal of their own, so that they see
one (`isatty`, colors, progress bars), and its lines are passed on as they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK = 1 << 16


class Tee:
    """The output of the hooks of one build. ``kept`` is written in the order in which it comes."""

    def __init__(self, kept: IO[bytes], is_passed_on: bool) -> None:
        self._kept = kept
        self._is_passed_on = is_passed_on
        self._streams: list[_FileStream | _TerminalStream] = []

    @property
    def writers(self) -> tuple[int, int]:
        """The descriptors for a hook's standard output and error, opened when they are first asked for."""
        if not self._streams:
            # Where both of ours go to one place, they stay in the order in which they were written.
            self._streams = [_open(1)] if _is_same(1, 2) else [_open(1), _open(2)]
        return self._streams[0].writer, self._streams[-1].writer

    @property
    def readers(self) -> Sequence[int]:
        """The descriptors that can be polled for output; files cannot."""
        return [stream.reader for stream in self._streams if isinstance(stream, _TerminalStream)]

    def pass_on(self) -> None:
        """Pass on and write down what has come since."""
        for stream in self._streams:
            while chunk := stream.read():
                self._kept.write(chunk)
                if self._is_passed_on:
                    _write(stream.target, chunk)

    def close(self) -> None:
        """Pass on what is left, and close what was opened."""
        try:
            self.pass_on()
        finally:
            while self._streams:
                self._streams.pop().close()


class _FileStream:
    def __init__(self, target: int) -> None:
        self.target = target
        self.writer, self._path = tempfile.mkstemp(prefix="lockbuild-output-")
        # Opened a second time: hooks write at the position of the first one.
        self._reader = open(self._path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`

    def read(self) -> bytes:
        return self._reader.read(_CHUNK)

    def close(self) -> None:
        self._reader.close()
        os.close(self.writer)
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class _TerminalStream:
    def __init__(self, target: int) -> None:
        import termios

        self.target = target
        self.reader, self.writer = os.openpty()
        os.set_blocking(self.reader, False)
        attributes = termios.tcgetattr(target)
        # The real terminal adds the carriage returns.
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.writer, termios.TCSANOW, attributes)
        with contextlib.suppress(AttributeError):
            termios.tcsetwinsize(self.writer, termios.tcgetwinsize(target))

    def read(self) -> bytes:
        try:
            return os.read(self.reader, _CHUNK)
        except OSError:
            # Nothing there, or on macOS: nobody has the other end.
            return b""

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def _open(target: int) -> _FileStream | _TerminalStream:
    if os.name == "posix" and os.isatty(target):
        return _TerminalStream(target)
    return _FileStream(target)


def _is_same(first: int, second: int) -> bool:
    try:
        return os.path.samestat(os.fstat(first), os.fstat(second))
    except OSError:
        return False


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:
            # Whoever started us has made it so. A hook that inherited it would have had to see for itself.
            select.select([], [target], [])

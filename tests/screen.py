"""A terminal as a test has it: what a program writes to it, and what a person would see there."""

from __future__ import annotations

import os
import pty
import re
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, list[bytes]]]:
    """Yield a terminal's descriptor for a program's standard error, and what is written to it, as it comes."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    received: list[bytes] = []

    def collect() -> None:
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:
                # EIO: nobody has the other end open any more.
                return
            if not chunk:
                return
            received.append(chunk)

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        yield theirs, received
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def on_screen(written: bytes) -> list[str]:
    """Return what a terminal shows after this: carriage return and "erase to the end of the line" are all we use."""
    lines, column = [""], 0
    text = re.sub(r"\x1b\[\d*m", "", written.decode())
    for token in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
        elif token == "\33[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + token + lines[-1][column + 1 :]
            column += 1
    return lines

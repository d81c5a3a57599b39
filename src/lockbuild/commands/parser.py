"""The argument parser of all commands: wrong usage is one line after a hint, and the help is a line for an option."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NoReturn

# The column in which the help of an option begins. What is left of 80 columns is enough for a short sentence.
_HELP_COLUMN = 38


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose options cannot be abbreviated, and whose errors are short."""

    def __init__(self, **options: Any) -> None:
        if sys.version_info >= (3, 14):
            options["suggest_on_error"] = True
        super().__init__(**{"allow_abbrev": False, "formatter_class": Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print a hint, and in the last line what is wrong; exit with status 2."""
        self.exit(2, f"TIP {self._hint(message)}\n{self.prog}: error: {message}\n")

    def _hint(self, message: str) -> str:
        where = f"{self.prog} --help lists all options"
        if unknown := re.match("unrecognized arguments: ([^ =]+)", message):
            import difflib

            if similar := difflib.get_close_matches(unknown[1], self._option_string_actions, n=1):
                return f"did you mean {similar[0]}? {where}"
        return where


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that writes ``-o, --outdir PATH``, as argparse does from Python 3.13 on."""

    def __init__(self, prog: str) -> None:
        # Without a width, argparse imports `shutil` to find one. It makes a formatter for each option.
        super().__init__(prog, max_help_position=_HELP_COLUMN, width=_width())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        if len(action.option_strings) < 2:
            return text
        *_, last = text.split(", ")
        _, space, value = last.partition(" ")
        return f"{', '.join(sorted(action.option_strings, key=len))}{space}{value}"


@functools.cache
def _width() -> int:
    """Return the width of the help as argparse computes it: ``COLUMNS`` or the terminal's width, less two columns."""
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
    except (ValueError, OSError):
        columns = 80
    return (columns or 80) - 2

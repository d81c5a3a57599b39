"""Parsers for the values of options and environment variables, and the names of those variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from lockbuild.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LOCK_TIMEOUT_VARIABLE = "LOCKBUILD_LOCK_TIMEOUT"
ENV_MAX_AGE_VARIABLE = "LOCKBUILD_ENV_MAX_AGE"
INSTALLER_VARIABLE = "LOCKBUILD_INSTALLER"
LINK_MODE_VARIABLE = "LOCKBUILD_LINK_MODE"
PREIMPORT_VARIABLE = "LOCKBUILD_PREIMPORT"
TREE_VARIABLE = "LOCKBUILD_TREE"
REUSE_VARIABLE = "LOCKBUILD_REUSE"

DEFAULT_MAX_SDIST_SIZE = 4 * 1024.0**3


def seconds(text: str) -> float:
    """Parse a number of seconds, which may not be negative. Raises `ValueError`."""
    value = float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """Parse a time: seconds, or a number followed by ``s``, ``m``, ``h`` or ``d``. Raises `ValueError`."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * unit


def size(text: str) -> float:
    """Parse a size: bytes, or a number followed by ``K``, ``M``, ``G`` or ``T``, or ``none``. Raises `ValueError`."""
    if text.lower() == "none":
        return float("inf")
    unit = {"k": 1, "m": 2, "g": 3, "t": 4}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * 1024.0**unit


def switch(text: str) -> bool:
    """Parse ``1`` or ``0``. Raises `ValueError`."""
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


# argparse puts these names into its message for an invalid value.
seconds.__name__ = "number of seconds"
duration.__name__ = "time"
size.__name__ = "size"


def from_environment(variable: str, parse: Callable[[str], T], meaning: str) -> T | None:
    """Return the value of an environment variable; ``None`` when it is unset or empty. Raises `SettingsError`."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"{variable} must be {meaning}, not {text!r}") from error

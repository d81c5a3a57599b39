"""Settings as people write them: values of options and of environment variables, where an option wins."""

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
REUSE_VARIABLE = "LOCKBUILD_REUSE"

DEFAULT_ENV_MAX_AGE = 24 * 3600.0
DEFAULT_MAX_SDIST_SIZE = 4 * 1024.0**3


def seconds(text: str) -> float:
    """Read a number of seconds, not negative. Raises `ValueError`."""
    value = float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """Read a time: seconds, or a number with ``s``, ``m``, ``h`` or ``d`` behind it. Raises `ValueError`."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * unit


def size(text: str) -> float:
    """Read a size in bytes, or with ``K``, ``M``, ``G`` or ``T`` behind a number; ``none`` is infinite."""
    if text.lower() == "none":
        return float("inf")
    unit = {"k": 1, "m": 2, "g": 3, "t": 4}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * 1024.0**unit


def switch(text: str) -> bool:
    """Read ``1`` or ``0``. Raises `ValueError`."""
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


# What argparse calls a value that is none of these.
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

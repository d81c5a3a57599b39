"""What a build environment is wanted for: its requirements, and the build whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lockbuild.errors import SettingsError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lockbuild.events import Reporter
    from lockbuild.locks import InheritableLock
    from lockbuild.request import BuildRequest


class EnvironmentRequest(NamedTuple):
    """Everything that decides which environment a build gets."""

    requirements: Collection[str]
    """PEP 508 strings."""
    constraints: str
    """The text of a constraints file, empty for none."""
    build: BuildRequest
    """That of the build: its installer, its cache, how long it waits for locks."""
    oldest: float
    """A kept environment that was made before is not used but made again. Seconds since the epoch."""
    outer_locks: Sequence[InheritableLock]
    """The locks that the build holds. An installer tells the builds that it runs about them."""
    reporter: Reporter


def read_constraints(path: str | None) -> str:
    """Return the text of a constraints file, empty for none. Raises `OSError`, and `SettingsError` if it is no text."""
    if path is None:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise SettingsError(f"The constraints file {shown(path)} is not text in UTF-8: {error}") from error

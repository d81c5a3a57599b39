"""What a build environment is wanted for: its requirements, and the build whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from lockbuild.errors import SettingsError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

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
    staging: Callable[[], str]
    """Returns the staging folder of the build, and makes it the first time."""
    wheels: Mapping[str, str] = {}
    """The wheels of projects of the same run that it needs, by their normalized names."""

    def with_wheels_for(self, requirements: Collection[str]) -> Self:
        """Return a request with the wheels that these requirements need. Raises `SourceNotBuiltError`."""
        if not self.build.sources:
            return self
        from lockbuild.environments.source_wheels import needed_wheels

        return self._replace(wheels=needed_wheels(requirements, self.build.sources))

    def constraints_for_installer(self) -> str:
        """Return the text of the constraints file that the installer is given, empty for none."""
        if not self.wheels:
            return self.constraints
        from lockbuild.environments.source_wheels import as_constraints

        return f"{self.constraints}\n{as_constraints(self.wheels)}"


def read_constraints(path: str | None) -> str:
    """Return the text of a constraints file, empty for none. Raises `OSError`, and `SettingsError` if it is no text."""
    if path is None:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise SettingsError(f"The constraints file {shown(path)} is not text in UTF-8: {error}") from error

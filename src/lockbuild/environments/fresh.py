"""A build environment that is made for one build and removed after it, as ``python -m build`` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from build.env import DefaultIsolatedEnv

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from lockbuild.request import Installer


class FreshEnvironment:
    """A context manager around `build`'s own isolated environment, with the constraints file that goes with it."""

    def __init__(self, installer: Installer, path: str | None, constraints_file: str | None) -> None:
        self._environment = DefaultIsolatedEnv(installer=installer, path=path)
        self._constraints_file = constraints_file

    def __enter__(self) -> Self:
        """Create the environment; it is still empty."""
        self._environment.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it. One at a path that the user named is kept for inspection after a failure."""
        self._environment.__exit__(kind, error, traceback)

    @property
    def python_executable(self) -> str:
        """The interpreter of the environment."""
        return self._environment.python_executable

    def make_extra_environ(self) -> dict[str, str]:
        """Return the variables that keep the environment isolated."""
        return self._environment.make_extra_environ()

    def install(self, requirements: Collection[str], *, fresh: bool = False) -> None:
        """Install requirements under the constraints."""
        self._environment.install(requirements, self._constraints(), _fresh=fresh)

    def installed_versions(self, names: Collection[str]) -> dict[str, str]:
        """Return the installed versions of the named distributions."""
        return self._environment.installed_versions(names)

    def _constraints(self) -> tuple[str, ...]:
        if self._constraints_file is None:
            return ()
        with open(self._constraints_file, encoding="utf-8") as file:
            text = file.read()
        # One element, not lines: a requirement and its --hash continuation lines belong together.
        return (text,) if text.strip() else ()

"""The environments in which hooks run: one made for the build, or the one that lockbuild itself runs in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lockbuild.request import BuildRequest


class BuildEnvironment(Protocol):
    """A place for hooks to run in. It is what ``build.ProjectBuilder.from_isolated_env`` takes, and more."""

    @property
    def python_executable(self) -> str:
        """The interpreter to run hooks with."""

    def make_extra_environ(self) -> Mapping[str, str] | None:
        """Return the environment variables that a hook gets beside those of the frontend."""

    def install(self, requirements: Collection[str], *, fresh: bool = False) -> None:
        """Install requirements; ``fresh`` is for the first ones in an empty environment."""

    def installed_versions(self, names: Collection[str]) -> dict[str, str]:
        """Return the versions of those of the named distributions that are installed, by normalised name."""


@contextmanager
def build_environment(request: BuildRequest) -> Iterator[BuildEnvironment | None]:
    """Yield a new environment for a build, or ``None`` when it is to run in ours. It is removed afterwards."""
    if not request.isolation:
        yield None
        return
    from lockbuild.environments.fresh import FreshEnvironment

    with FreshEnvironment(request.installer, request.env_dir, request.constraints_file) as environment:
        yield environment

"""The environments in which hooks run: one from the store, one made for this build, or the one that runs lockbuild."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from lockbuild.environments.kept import handed_over, kept_environments
from lockbuild.environments.key import environment_key
from lockbuild.errors import CacheFolderError, shown
from lockbuild.hooks import HookEnvironment
from lockbuild.paths import environment_folder, wheel_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping
    from types import TracebackType

    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.environments.store import Generation
    from lockbuild.locks import InheritableLock


class BuildEnvironment(HookEnvironment, Protocol):
    """A place for hooks to run in; a context manager that ends its use. `build` calls this an isolated environment."""

    locks: tuple[InheritableLock, ...]
    """What hooks have to inherit, so that no process removes the environment under them."""

    @property
    def generation(self) -> Generation | None:
        """Where it is kept; ``None`` for one that is made for one build."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What was asked for when it was made."""

    def required_versions(self) -> Mapping[str, str]:
        """Return the installed versions of the distributions that the requirements name, by normalized name."""

    def has(self, name: str) -> bool:
        """Tell whether a distribution is installed, by its normalized name."""

    def install(self, requirements: Collection[str]) -> bool:
        """Install more requirements; false for an environment that is kept, which never changes."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """End the use."""


def candidate_environments(wanted: EnvironmentRequest) -> Generator[BuildEnvironment, None, None]:
    """
    Yield environments that may be the one in which the wanted requirements are installed. The last one is.

    The caller can use the time in which the next step of this looks at the one that it was given: backends may be
    imported there already, but no hook may run. The use of the last one is the caller's to end.

    It comes from the store, unless the user or the requirements forbid it, or the store cannot be used; then it is made
    for this build alone.
    """
    requirements = {*wanted.requirements}
    while True:
        with_wheels = wanted.with_wheels_for(requirements)
        environment = None
        with contextlib.closing(_candidates(with_wheels)) as candidates:
            for environment in candidates:
                yield environment
        assert environment is not None
        # A distribution from an index may require a project of this run, too. Only now that is known.
        indirect = [name for name in wanted.build.sources if name not in with_wheels.wheels and environment.has(name)]
        if not indirect:
            return
        environment.__exit__(None, None, None)
        requirements.update(indirect)


def _candidates(wanted: EnvironmentRequest) -> Generator[BuildEnvironment, None, None]:
    request = wanted.build
    if request.use_cache and request.env_dir is None:
        try:
            store = environment_folder(request.cache_dir)
            if request.installer == "pip":
                # Wheels come from there.
                wheel_folder(request.cache_dir)
        except CacheFolderError as error:
            wanted.reporter.warn(f"Not keeping the build environment: {error}")
        else:
            if key := environment_key(
                wanted.requirements, wanted.constraints, request.installer, _digests_of(wanted.wheels)
            ):
                try:
                    yield from kept_environments(store, key, wanted)
                    return
                except OSError as error:
                    # For example, its disk or inode table is full. There may be room for one in another place.
                    wanted.reporter.warn(
                        f"Not keeping the build environment: {shown(error.filename or store)} cannot be used: "
                        f"{error.strerror}"
                    )
    from lockbuild.environments.fresh import FreshEnvironment

    yield from handed_over(FreshEnvironment(wanted).__enter__())


def _digests_of(wheels: Mapping[str, str]) -> Mapping[str, str]:
    if not wheels:
        return {}
    from lockbuild.environments.source_wheels import digests_of

    return digests_of(wheels)

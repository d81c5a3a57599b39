"""The environments in which hooks run: one from the store, one made for this build, or the one that runs lockbuild."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from lockbuild.errors import CacheFolderError
from lockbuild.hooks import HookEnvironment
from lockbuild.paths import environment_folder, wheel_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from lockbuild.environments.store import Generation
    from lockbuild.events import Reporter
    from lockbuild.locks import InheritableLock
    from lockbuild.request import BuildRequest


class BuildEnvironment(HookEnvironment, Protocol):
    """A place for hooks to run in. It is what ``build.ProjectBuilder.from_isolated_env`` takes, and more."""

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


@contextmanager
def build_environment(
    requirements: Collection[str],
    request: BuildRequest,
    outer_locks: Sequence[InheritableLock],
    reporter: Reporter,
    oldest: float,
    on_candidate: Callable[[BuildEnvironment], object] = lambda _: None,
) -> Iterator[BuildEnvironment]:
    """
    Yield an isolated environment in which these requirements are installed.

    ``outer_locks`` are held around this: an installer tells them to what it runs.
    One from the store that was made before ``oldest``, in seconds since the epoch, is not used but made again.
    ``on_candidate`` may use the time in which one from the store is looked at: it is told which one that is.

    It comes from the store, unless the user or the requirements forbid it, or there is no place for a store; then it
    is made for this build and removed after it.
    """
    constraints = read_constraints(request.constraints_file)
    if request.use_cache and request.env_dir is None:
        from lockbuild.environments.kept import kept_environment
        from lockbuild.environments.key import environment_key

        try:
            store = environment_folder(request.cache_dir)
            if request.installer == "pip":
                # It would be filled from there.
                wheel_folder(request.cache_dir)
        except CacheFolderError as error:
            reporter.warn(f"Not keeping the build environment: {error}")
        else:
            if key := environment_key(requirements, constraints, request.installer):
                with kept_environment(
                    store, key, requirements, constraints, request, outer_locks, reporter, oldest, on_candidate
                ) as kept:
                    yield kept
                return
    from lockbuild.build_library import forward_log
    from lockbuild.environments.fresh import FreshEnvironment

    with (
        forward_log(reporter, request.verbosity),
        FreshEnvironment(request.installer, request.env_dir, requirements, constraints) as fresh,
    ):
        yield fresh


@contextmanager
def extended(
    environment: BuildEnvironment,
    requirements: Collection[str],
    request: BuildRequest,
    outer_locks: Sequence[InheritableLock],
    reporter: Reporter,
    oldest: float,
) -> Iterator[BuildEnvironment]:
    """
    Yield an environment that has more requirements than a given one.

    Nothing is installed into an environment from the store: there the larger one is another one.
    """
    if not requirements:
        yield environment
        return
    from lockbuild.environments.fresh import FreshEnvironment

    if isinstance(environment, FreshEnvironment):
        environment.install(requirements)
        yield environment
    else:
        both = {*environment.requirements, *requirements}
        with build_environment(both, request, outer_locks, reporter, oldest) as larger:
            yield larger


def read_constraints(path: str | None) -> str:
    """Return the text of a constraints file, empty for none. Raises `OSError`."""
    if path is None:
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()

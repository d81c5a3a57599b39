"""A build environment that is made for one build and removed after it, as ``python -m build`` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from lockbuild.build_library import forward_log
from lockbuild.installers import install_with_pip, install_with_uv, isolated_environment, log_requirements, written
from lockbuild.interruption import killing_descendants

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.environments.store import Generation
    from lockbuild.locks import InheritableLock


class FreshEnvironment:
    """A context manager around `build`'s own isolated environment, with the constraints file that goes with it."""

    locks: tuple[InheritableLock, ...] = ()
    """It is removed at the end of the build; there is nothing that a hook could keep."""
    generation: Generation | None = None
    is_kept = False
    revision = 0

    def __init__(self, wanted: EnvironmentRequest) -> None:
        self._environment = isolated_environment(wanted.build.installer, wanted.build.env_dir)
        self._wanted = wanted
        self._requirements = tuple(wanted.requirements)
        self._log = (wanted.reporter, wanted.build.verbosity)

    def __enter__(self) -> Self:
        """Create the environment and install the requirements."""
        # Where this process runs for one build, `build` makes its folder in there.
        self._wanted.staging()
        with forward_log(*self._log):
            self._environment.__enter__()
            try:
                self._install(self._requirements, fresh=True)
            except BaseException as error:
                self._environment.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it. One at a path that the user named is kept for inspection after a failure."""
        with forward_log(*self._log):
            self._environment.__exit__(kind, error, traceback)

    def _install(self, requirements: Collection[str], *, fresh: bool) -> None:
        if not requirements:
            return
        log_requirements(requirements)
        constraints, staging = self._wanted.constraints_for_installer(), self._wanted.staging()
        with killing_descendants():
            if self._environment.installer == "uv":
                install_with_uv(self._environment, [*requirements, *written((), constraints, staging)], {})
            else:
                files = written(requirements, constraints, staging)
                install_with_pip(self._environment, files, {"TMPDIR": staging}, fresh=fresh)

    @property
    def requirements(self) -> tuple[str, ...]:
        """What was installed."""
        return self._requirements

    @property
    def python_executable(self) -> str:
        """The interpreter of the environment."""
        return self._environment.python_executable

    def make_extra_environ(self) -> dict[str, str]:
        """Return the variables that keep the environment isolated."""
        return self._environment.make_extra_environ()

    def install(self, requirements: Collection[str]) -> bool:
        """Install more requirements under the constraints."""
        self._requirements = (*self._requirements, *requirements)
        self._wanted = self._wanted.with_wheels_for(self._requirements)
        with forward_log(*self._log):
            self._install(requirements, fresh=False)
        return True

    def required_versions(self) -> dict[str, str]:
        """Return the installed versions of the distributions that the requirements name."""
        return dict(sorted(self._environment.installed_versions(self._requirements).items()))

    def has(self, name: str) -> bool:
        """Tell whether a distribution is installed."""
        return bool(self._environment.installed_versions([name]))

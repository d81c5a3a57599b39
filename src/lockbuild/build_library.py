"""What lockbuild takes from the library ``build`` beyond its public API, in one place.

- ``_ctx.LOGGER`` and ``_ctx.VERBOSITY``. `build` reports its steps to a function in the first context variable. The
  second one says whether it also reports what installers print. Only its own command line is to set them. By default
  `build` hands each message to `logging`, without its kind, and to one logger for all threads. No upstream issue asks
  for more, as far as we know. pyodide-build sets the same variables (pyodide/pyodide-build#363).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from build import _ctx, check_dependency
from packaging.requirements import InvalidRequirement, Requirement

from lockbuild.errors import UnmetDependenciesError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lockbuild.events import Reporter


@contextmanager
def forward_log(reporter: Reporter, verbosity: int) -> Iterator[None]:
    """Hand a reporter what `build` and `log` say in this thread or task, and installers' output from verbosity 1 on."""

    def hear(message: str, *, kind: tuple[str, ...] | None = None) -> None:
        reporter.log(message, kind)

    logger = _ctx.LOGGER.set(hear)
    level = _ctx.VERBOSITY.set(verbosity)
    try:
        yield
    finally:
        _ctx.VERBOSITY.reset(level)
        _ctx.LOGGER.reset(logger)


def log(message: str, *kind: str) -> None:
    """Say something as `build` does. ``kind`` is ``"step"``, or ``"subprocess"`` and the name of a stream."""
    _ctx.LOGGER.get()(message, kind=kind)


def verbosity() -> int:
    """Return the verbosity within `forward_log`."""
    return _ctx.VERBOSITY.get()


def check_dependencies(requirements: Collection[str]) -> None:
    """Check that requirements are installed where this runs. Raises `UnmetDependenciesError`, in `build`'s words."""
    if missing := {chain for requirement in requirements for chain in _missing(requirement)}:
        described = "".join(map(_describe, sorted(missing)))
        raise UnmetDependenciesError(f"Unmet dependencies (checked against {sys.executable}):{described}")


def _missing(requirement: str) -> Iterator[tuple[str, ...]]:
    """Yield the chains of requirements from this one to those that are not met."""
    try:
        yield from check_dependency(requirement)
    except InvalidRequirement as error:
        problem = str(error).partition("\n")[0]
        raise UnmetDependenciesError(f"{requirement!r} is not a requirement: {problem}") from error


def _describe(chain: tuple[str, ...]) -> str:
    missing = Requirement(chain[-1])
    try:
        found = version(missing.name)
    except PackageNotFoundError:
        found = "not installed"
    # Without the markers: they apply.
    path = " -> ".join(requirement.partition(";")[0].strip() for requirement in chain)
    return f"\n\t{path}\n\t\twanted: {missing.specifier or 'any'}\n\t\tfound: {found}"

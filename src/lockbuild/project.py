"""Reads what a frontend needs to know about a source tree, and decides whether its hooks need the lock.

The library ``build`` validates ``[build-system]`` in all but plain cases. This module reads the backend there, and
lockbuild's own table, ``[tool.lockbuild]``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

from lockbuild.errors import SettingsError, shown
from lockbuild.tool_table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lockbuild.request import LockPolicy

SETUPTOOLS_BACKEND = "setuptools.build_meta"

# The requirements that ``build`` assumes for a tree without ``[build-system]``; a test compares the two.
LEGACY_REQUIRES = ("setuptools >= 40.8.0",)

# Backends that run setuptools although the project need not require it, according to the metadata and source of their
# releases on PyPI in autumn 2026.
BRINGS_SETUPTOOLS = {
    "pbr.build": "pbr requires setuptools and calls its build_meta",
    "jupyter_packaging.build_api": "jupyter-packaging requires setuptools and wraps its build_meta",
    "lockbuild.backend": "it runs setuptools' hooks",
    "scikit_build_core.setuptools.build_meta": "it wraps setuptools' build_meta",
    "sipbuild.api": "sip requires setuptools and compiles with it",
}

# Backends that write into the tree without setuptools, so that two builds at once break each other. They stay unlocked
# under "auto"; when a build with one of them fails, a note names the possible reason.
SHARES_THE_TREE = {"pdm.backend": ".pdm-build/"}

# Backends that may be imported once for all hooks, before the tree is locked, with modules that each of their hooks
# would import. These imports do not look at the working directory, and leave nothing behind that a fork does not copy.
# A test watches each of them. scikit_build_core.build is not among them: it reads pyproject.toml.
#
IMPORTED_AHEAD: Mapping[str, tuple[str, ...]] = {
    "flit_core.buildapi": (),
    "hatchling.build": (),
    "maturin": (),
    "mesonpy": (),
    "pdm.backend": (),
    "poetry.core.masonry.api": (),
    SETUPTOOLS_BACKEND: ("email.generator", "tarfile", "unicodedata"),
    "uv_build": (),
}

# What setuptools' hooks import if pyproject.toml describes the project. Of its other modules none is imported ahead:
# a setup.py may replace classes in them before they are imported.
_SETUPTOOLS_VALIDATION = ("tomllib", "setuptools.config._validate_pyproject")


class Project(NamedTuple):
    """A source tree, its backend, and its settings for lockbuild."""

    tree: str
    """An absolute path."""
    backend: str
    backend_path: tuple[str, ...]
    """Folders in the tree from which an in-tree backend is imported."""
    requires: tuple[str, ...]
    lock: LockPolicy
    """From ``[tool.lockbuild]``; ``auto`` by default."""
    has_project_table: bool = False
    """Whether pyproject.toml has a ``[project]`` table (PEP 621)."""
    requires_python: str | None = None
    """From ``[project]``, if it stands there."""

    @property
    def imported_ahead(self) -> tuple[str, ...]:
        """The modules to import once for all hooks, the backend first; empty if each hook has to import its own."""
        if self.backend_path or self.backend_module not in IMPORTED_AHEAD:
            return ()
        is_validated = self.backend_module == SETUPTOOLS_BACKEND and self.has_project_table
        validation = _SETUPTOOLS_VALIDATION if is_validated else ()
        return (self.backend_module, *IMPORTED_AHEAD[self.backend_module], *validation)

    @property
    def backend_module(self) -> str:
        """The module that a hook process imports."""
        return self.backend.partition(":")[0]


class LockDecision(NamedTuple):
    """Whether to lock a tree, and the reason, in words for a message."""

    locked: bool
    reason: str
    final: bool = False
    """Whether a setting has decided, so that nothing learned later changes the decision."""


def read_project(tree: str) -> Project:
    """
    Read a source tree.

    Raises what ``build.ProjectBuilder`` raises for an invalid tree, and `SettingsError` for an invalid
    ``[tool.lockbuild]``.
    """
    path = os.path.join(tree, "pyproject.toml")
    pyproject: dict[str, Any]
    try:
        with open(path, "rb") as file:
            pyproject = tomllib.load(file)
    except FileNotFoundError:
        pyproject = {}
    except RecursionError as error:
        # `build` would end with a traceback.
        raise SettingsError(f"{shown(path)} is nested too deeply to be read") from error
    except (OSError, ValueError):
        # `build` finds out what is wrong, and reports it.
        _validated_by_build(tree)
        raise
    build_system: dict[str, Any] = pyproject.get("build-system", {})
    if "build-system" not in pyproject and _is_plainly_legacy(pyproject, tree):
        build_system = {"requires": LEGACY_REQUIRES}
    elif not _is_plainly_valid(build_system, tree):
        build_system = _validated_by_build(tree) | build_system
    backend = build_system.get("build-backend", f"{SETUPTOOLS_BACKEND}:__legacy__")
    if "\0" in backend:
        raise SettingsError(f"build-backend in {shown(path)} contains a NUL character")
    return Project(
        tree=os.path.abspath(tree),
        backend=backend,
        backend_path=tuple(build_system.get("backend-path", ())),
        requires=tuple(build_system["requires"]),
        lock=read_table(pyproject, path).get("lock", "auto"),
        has_project_table="project" in pyproject,
        requires_python=_read_requires_python(pyproject),
    )


def warning_of_python(project: Project) -> str | None:
    """Return a warning for a project that says it does not run on this Python. `build` builds it all the same."""
    wanted, version = project.requires_python, sys.version_info[:3]
    if wanted is None:
        return None
    running = ".".join(map(str, version))
    if plain := re.fullmatch(r">= *(\d+)\.(\d+)", wanted):
        is_supported = version >= (int(plain[1]), int(plain[2]))
    else:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            is_supported = SpecifierSet(wanted).contains(running, prereleases=True)
        except InvalidSpecifier:
            # The backend reports it.
            return None
    return None if is_supported else f"The project requires Python {shown(wanted)}, and is built with Python {running}"


def _read_requires_python(pyproject: Mapping[str, Any]) -> str | None:
    table = pyproject.get("project")
    wanted = table.get("requires-python") if isinstance(table, dict) else None
    return wanted if isinstance(wanted, str) else None


def _is_plainly_legacy(pyproject: Mapping[str, Any], tree: str) -> bool:
    """Return whether a tree predates PEP 518. An unknown table could be a misspelled ``[build-system]``."""
    return pyproject.keys() <= {"project", "tool"} and os.path.isfile(os.path.join(tree, "setup.py"))


def _is_plainly_valid(build_system: Any, tree: str) -> bool:
    """Return whether a ``[build-system]`` table is valid without doubt, so that ``build`` need not validate it."""
    match build_system:
        case {"requires": [*requires], "build-backend": str(), **others} if all(isinstance(r, str) for r in requires):
            folders = others.pop("backend-path", [])
            return not others and isinstance(folders, list) and all(_is_inside(folder, tree) for folder in folders)
    return False


def _is_inside(folder: Any, tree: str) -> bool:
    """Tell whether a folder of ``backend-path`` plainly is one in the tree."""
    return (
        isinstance(folder, str)
        and os.pardir not in folder
        and not os.path.isabs(folder)
        and os.path.isdir(os.path.join(tree, folder))
    )


def _validated_by_build(tree: str) -> dict[str, Any]:
    """Let ``build`` validate a tree; return the requirements that it finds."""
    from build import ProjectBuilder

    try:
        return {"requires": sorted(ProjectBuilder(tree).build_system_requires)}
    except ValueError as error:
        # Text that is not UTF-8, a number of too many digits, or a ``backend-path`` that leaves the tree.
        path = os.path.join(tree, "pyproject.toml")
        raise SettingsError(f"Failed to read {shown(path)}: {error}") from error


def decide_lock(
    project: Project,
    requested: LockPolicy | None,
    extra_requires: Iterable[str] | None,
    is_installed: Callable[[str], bool] | None,
) -> LockDecision:
    """
    Decide whether a hook of the project may run setuptools, and so needs the tree for itself.

    A hook can run setuptools only if it is installed. ``is_installed`` returns whether a distribution is in the build
    environment. Without isolation it is ``None``: setuptools may be installed there for other reasons, so the
    requirements of the project and its hooks decide.
    """
    policy = requested or project.lock
    if policy != "auto":
        origin = "--lock" if requested else "tool.lockbuild.lock in pyproject.toml"
        return LockDecision(policy == "always", f"{origin} is {policy}", final=True)
    if project.backend_module == SETUPTOOLS_BACKEND:
        return LockDecision(True, f"its backend is {project.backend}")
    if is_installed is not None:
        if is_installed("setuptools"):
            return LockDecision(True, "setuptools is in its build environment")
        return LockDecision(False, f"its backend is {project.backend}, and its build environment has no setuptools")
    if _bring_setuptools((*project.requires, *(extra_requires or ()))):
        return LockDecision(True, "it requires setuptools")
    if reason := BRINGS_SETUPTOOLS.get(project.backend_module):
        return LockDecision(True, f"its backend is {project.backend}: {reason}")
    return LockDecision(False, f"its backend is {project.backend}, and it does not require setuptools")


def is_installed_here(name: str) -> bool:
    """Return whether a distribution, by its normalized name, is installed in this interpreter's environment."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def hint_at_shared_tree(project: Project, decision: LockDecision) -> Iterator[None]:
    """When a hook of an unlocked backend in `SHARES_THE_TREE` fails, add a note about that to the error."""
    try:
        yield
    except Exception as error:
        shared = SHARES_THE_TREE.get(project.backend_module)
        if shared and not decision.locked:
            error.add_note(
                f"{project.backend} writes to {shared} in the source tree; if another build of it ran at the "
                "same time, use --lock always, or --tree private"
            )
        raise


def _bring_setuptools(requirements: Iterable[str]) -> bool:
    """Return whether requirements include setuptools, directly or through installed distributions."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    waiting = [(requirement, frozenset({""})) for requirement in requirements]
    seen = set()
    while waiting:
        text, extras = waiting.pop()
        if (text, extras) in seen:
            continue
        seen.add((text, extras))
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            # The installer, or the check of the requirements, will report it.
            continue
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if canonicalize_name(requirement.name) == "setuptools":
            return True
        try:
            needed = requires(requirement.name) or ()
        except PackageNotFoundError:
            continue
        waiting += [(each, frozenset({"", *requirement.extras})) for each in needed]
    return False

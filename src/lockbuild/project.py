"""A source tree as far as a frontend must know it, and whether its hooks have to be locked out of each other's way.

The library ``build`` parses and validates ``[build-system]``; what is read here beside it is which backend that names
and our own table, ``[tool.lockbuild]``.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lockbuild.errors import SettingsError
from lockbuild.request import LOCK_POLICIES, LockPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SETUPTOOLS_BACKEND = "setuptools.build_meta"

# Backends that run setuptools in the tree and bring it along as their own requirement, so that the project need not
# name it. Each was read in the metadata and source of its current release on PyPI (autumn 2026).
BRINGS_SETUPTOOLS = {
    "pbr.build": "pbr requires setuptools and calls its build_meta",
    "jupyter_packaging.build_api": "jupyter-packaging requires setuptools and wraps its build_meta",
    "scikit_build_core.setuptools.build_meta": "it wraps setuptools' build_meta",
    "sipbuild.api": "sip requires setuptools and builds extension modules with it",
}

# Backends that write into the tree without setuptools, and break when two builds do. They stay unlocked under "auto";
# a person whose build with one of them fails is told what may be the reason.
SHARES_THE_TREE = {"pdm.backend": ".pdm-build/"}


@dataclass(frozen=True)
class Project:
    """A source tree, its backend, and its own wishes for lockbuild."""

    tree: str
    backend: str
    requires: frozenset[str]
    lock: LockPolicy
    """From ``[tool.lockbuild]``; ``auto`` where that is silent."""


@dataclass(frozen=True)
class LockDecision:
    """Whether a tree is locked, and why, in words for a person."""

    locked: bool
    reason: str


def read_project(tree: str) -> Project:
    """
    Read a source tree that ``build.ProjectBuilder`` has accepted.

    Raises `SettingsError` when ``[tool.lockbuild]`` says something that lockbuild does not know.
    """
    pyproject: dict[str, Any] = {}
    path = os.path.join(tree, "pyproject.toml")
    if os.path.exists(path):
        with open(path, "rb") as file:
            pyproject = tomllib.load(file)
    build_system = pyproject.get("build-system", {})
    return Project(
        tree=tree,
        backend=build_system.get("build-backend", f"{SETUPTOOLS_BACKEND}:__legacy__"),
        requires=frozenset(build_system.get("requires", ["setuptools"])),
        lock=_read_lock_policy(pyproject.get("tool", {}), path),
    )


def _read_lock_policy(tool: Any, path: str) -> LockPolicy:
    settings = tool.get("lockbuild", {}) if isinstance(tool, dict) else {}
    if not isinstance(settings, dict):
        raise SettingsError(f"tool.lockbuild in {path} must be a table")
    for key in settings:
        if key != "lock":
            raise SettingsError(f"Unknown key tool.lockbuild.{key} in {path}; there is only tool.lockbuild.lock")
    wanted = settings.get("lock", "auto")
    for policy in LOCK_POLICIES:
        if wanted == policy:
            return policy
    allowed = ", ".join(f'"{policy}"' for policy in LOCK_POLICIES)
    raise SettingsError(f"tool.lockbuild.lock in {path} must be one of {allowed}, not {wanted!r}")


def decide_lock(
    project: Project,
    requested: LockPolicy | None,
    extra_requires: Iterable[str],
    is_installed: Callable[[str], bool] | None,
) -> LockDecision:
    """
    Decide whether a hook of the project may run setuptools, and so has to have the tree for itself.

    A hook can run setuptools only where setuptools is. ``is_installed`` tells whether a distribution is in the build
    environment; without isolation it is ``None``, because there setuptools may be installed for other reasons, and
    what the project and its hooks require decides.
    """
    policy = requested or project.lock
    if policy != "auto":
        origin = "--lock" if requested else "tool.lockbuild.lock in pyproject.toml"
        return LockDecision(policy == "always", f"{origin} is {policy}")
    if project.backend.partition(":")[0] == SETUPTOOLS_BACKEND:
        return LockDecision(True, f"its backend is {project.backend}")
    if is_installed is not None:
        if is_installed("setuptools"):
            return LockDecision(True, "setuptools is in its build environment")
        return LockDecision(False, f"its backend is {project.backend}, and its build environment has no setuptools")
    if any(_names_setuptools(requirement) for requirement in (*project.requires, *extra_requires)):
        return LockDecision(True, "it requires setuptools")
    if reason := BRINGS_SETUPTOOLS.get(project.backend.partition(":")[0]):
        return LockDecision(True, f"its backend is {project.backend}: {reason}")
    return LockDecision(False, f"its backend is {project.backend}, and it does not require setuptools")


def _names_setuptools(requirement: str) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        return canonicalize_name(Requirement(requirement).name) == "setuptools"
    except InvalidRequirement:
        # The installer, or the check of the requirements, will say what is wrong with it.
        return False

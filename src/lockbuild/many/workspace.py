"""The packages of a workspace: a folder whose pyproject.toml lists the folders of its packages.

The table is ``[tool.uv.workspace]`` with ``members`` and ``exclude``, as uv has it, or ``[tool.lockbuild]`` with
``packages`` and ``exclude``. Each is a list of glob patterns, relative to the folder.
"""

from __future__ import annotations

import glob
import os
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

from lockbuild.errors import PlanError, shown
from lockbuild.tool_table import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROJECT_FILES = ("pyproject.toml", "setup.py")


class Workspace(NamedTuple):
    """A workspace."""

    root: str
    """The folder, an absolute path."""
    packages: tuple[str, ...]
    """The paths of its packages, in the order of their names."""


def find_workspace(folder: str) -> Workspace:
    """Return the workspace that a folder is in: its own, or that of the nearest folder above. Raises `PlanError`."""
    start = root = os.path.abspath(folder)
    while True:
        path = os.path.join(root, "pyproject.toml")
        if (packages := _packages(root, _read(path), path)) is not None:
            if not packages:
                raise PlanError(f"The workspace in {shown(path)} has no packages; correct the patterns that list them")
            return Workspace(root, packages)
        root, below = os.path.dirname(root), root
        if root == below:
            raise PlanError(
                f"{shown(start)} is in no workspace; list the packages in pyproject.toml: [tool.lockbuild] "
                'packages = ["packages/*"]'
            )


def _packages(root: str, pyproject: dict[str, Any], path: str) -> tuple[str, ...] | None:
    """Return the packages that a pyproject.toml lists; ``None`` if it lists none."""
    ours = read_table(pyproject, path)
    uvs: Any = pyproject
    for key in ("tool", "uv", "workspace"):
        uvs = uvs.get(key) if isinstance(uvs, dict) else None
    if "packages" in ours:
        members, excluded, includes_root = ours["packages"], ours.get("exclude", ()), False
    elif isinstance(uvs, dict):
        # For uv, the root is a member if it is a project.
        members, excluded, includes_root = uvs.get("members", []), uvs.get("exclude", []), "project" in pyproject
    else:
        return None
    for patterns in (members, excluded):
        if not isinstance(patterns, (list, tuple)) or not all(isinstance(each, str) for each in patterns):
            raise PlanError(f"The members of the workspace in {shown(path)} must be lists of patterns")
    found = _matches(root, members) - _matches(root, excluded)
    if includes_root:
        found.add(root)
    return tuple(sorted(each for each in found if any(os.path.isfile(os.path.join(each, f)) for f in _PROJECT_FILES)))


def _matches(root: str, patterns: Sequence[str]) -> set[str]:
    return {
        os.path.normpath(os.path.join(root, each))
        for pattern in patterns
        for each in glob.glob(pattern, root_dir=root, recursive=True)
    }


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise PlanError(f"Failed to read {shown(path)}: {error}") from error

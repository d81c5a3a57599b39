"""Private views: the source tree as the hooks of one build see it, which may write to it without writing to the tree.

`overlay` enters a view and is its specification. This module chooses what a view of a build is made of. A build with a
view only reads the tree, so it shares the lock on it with others.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import NamedTuple

from lockbuild.errors import TreeViewError
from lockbuild.paths import cache_folder, temporary_folder

OVERLAY = os.path.join(os.path.dirname(__file__), "overlay.py")
"""The script that enters a view."""

# What may lie in an out-dir that is in the tree. A view shows it as an empty folder.
_ARTIFACTS = (".whl", ".tar.gz")


class View(NamedTuple):
    """A private view of a tree; `overlay` describes the fields."""

    tree: str
    scratch: str
    real: tuple[str, ...]
    hidden: tuple[str, ...]
    missing: tuple[str, ...]
    clean: bool

    def to_json(self) -> str:
        """Return it as `overlay` reads it."""
        return json.dumps(self._asdict())

    def command(self) -> list[str]:
        """Return the words that, before those of a command, run it in this view."""
        return [sys.executable, "-IS", OVERLAY, self.to_json()]


class Folders(NamedTuple):
    """The folders of a build that may lie in its source tree."""

    cache_dir: str | None
    out_dir: str | None
    others: tuple[str, ...] = ()
    """Folders that hooks and the frontend both use."""


def view_of(tree: str, scratch: str, folders: Folders, *, clean: bool) -> View:
    """
    Return the view of a tree; its changes go to ``scratch``, an empty folder of this build.

    Raises `TreeViewError` if the out-dir is such that there can be no view.
    """
    tree = os.path.realpath(tree)
    shared = (cache_folder(folders.cache_dir), temporary_folder(), sys.prefix, *folders.others)
    real = {path for path in map(os.path.realpath, filter(None, shared)) if _is_below(path, tree)}
    out_dir = os.path.realpath(folders.out_dir) if folders.out_dir else os.sep
    hidden: tuple[str, ...] = ()
    if out_dir == tree or _is_below(out_dir, tree):
        if out_dir == tree or not _holds_only_artifacts(out_dir):
            raise TreeViewError(tree, f"the out-dir {out_dir} holds other files than artifacts; choose another one")
        if not any(out_dir == path or _is_below(out_dir, path) for path in real):
            hidden = (out_dir,)
    # Other builds publish there while this one runs.
    dist = os.path.join(tree, "dist")
    is_missing = _holds_only_artifacts(dist) and not any(_is_below(f"{path}/", dist) for path in (*real, out_dir))
    for path in real:
        # Made later, it would be made outside the view.
        with contextlib.suppress(OSError):
            os.makedirs(path, exist_ok=True)
    return View(tree, scratch, tuple(sorted(filter(os.path.isdir, real))), hidden, (dist,) * is_missing, clean)


def check(view: View) -> None:
    """Enter a view in another process. Raises `TreeViewError` if this machine cannot have it."""
    ended = subprocess.run(view.command(), cwd=view.tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if ended.returncode:
        raise TreeViewError(view.tree, (ended.stderr.decode(errors="replace").splitlines() or ["it was killed"])[-1])


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _holds_only_artifacts(folder: str) -> bool:
    """Return whether a folder holds only artifacts and hidden files, or does not exist."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return all(name.startswith(".") or name.endswith(_ARTIFACTS) for name in names)

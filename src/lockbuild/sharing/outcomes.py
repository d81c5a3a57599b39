"""The outcomes of builds, as files.

In the folder of a key:

    <name>/               a build that has begun; each has a random name of its own
    <name>/artifacts/     the files that its backend has made
    <name>/outcome.json   `Outcome`; gets this name last, so a build without it is not complete

Writing and removing needs the lock of the key. Reading needs it only if the files have to stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.environments.store import Generation, generations
from lockbuild.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUTCOME = "outcome.json"


class Outcome(NamedTuple):
    """The outcome of a successful build."""

    builder: int
    """The process that built it."""
    made: float
    """When it was complete, in seconds since the epoch. Only people use this."""
    artifact: str
    """The artifact's name in the folder of artifacts."""
    sha256: str
    """That of the artifact, in hexadecimal."""
    environments: tuple[Generation, ...]
    """The build environments that it was built in."""
    is_of_tree: bool
    """Whether it was built from a tree; then only the processes that wait for it may take it."""


def artifacts_folder(build: str) -> str:
    """Return the folder of a build's artifacts."""
    return os.path.join(build, "artifacts")


def all_builds(folder: str) -> list[str]:
    """Return the folders of all builds that have begun under a key, complete or not."""
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_complete(build: str) -> bool:
    """Tell whether a build is complete, even if its outcome cannot be read."""
    return os.path.lexists(os.path.join(build, _OUTCOME))


def complete_builds(folder: str) -> Iterator[tuple[str, Outcome]]:
    """Yield the folders of the complete builds under a key with their outcomes. Unreadable outcomes are left out."""
    for build in all_builds(folder):
        if outcome := _read_outcome(build):
            yield build, outcome


def begin_build(folder: str) -> str:
    """Make the folder of a build that begins now. Raises `OSError`."""
    # The user may have removed the whole cache meanwhile, which frees no lock.
    os.makedirs(folder, exist_ok=True)
    build = os.path.join(folder, os.urandom(8).hex())
    os.mkdir(build, 0o700)
    return build


def complete_build(build: str, outcome: Outcome) -> None:
    """
    Complete a build whose artifacts are in place; remove all others of its key. Raises `OSError`.

    The builders of the others have ended, because we hold the lock. Builds that are not complete are of killed ones.
    """
    content = outcome._asdict() | {"environments": [[each.folder, each.name] for each in outcome.environments]}
    write_json(os.path.join(build, _OUTCOME), content)
    for other in all_builds(os.path.dirname(build)):
        if other != build:
            remove_build(other)


def remove_build(build: str) -> None:
    """Remove a build. If this process is killed meanwhile, the build is not complete any more."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(build, _OUTCOME))
    shutil.rmtree(build, ignore_errors=True)


def copy_files(source: str, target: str) -> None:
    """Copy a folder. Unlike `shutil.copytree`, this does not make missing parents. Raises `OSError`."""
    os.mkdir(target)
    for entry in os.scandir(source):
        path = os.path.join(target, entry.name)
        if entry.is_dir():
            copy_files(entry.path, path)
        else:
            shutil.copy2(entry.path, path)


def last_used(build: str) -> float:
    """Return the time when an outcome was made or last taken, in seconds since the epoch."""
    return os.stat(os.path.join(build, _OUTCOME)).st_mtime


def note_use(build: str) -> None:
    """Note that an outcome is taken now."""
    os.utime(os.path.join(build, _OUTCOME))


def remove_unused(folder: str, oldest: float) -> int:
    """
    Remove builds last used before ``oldest``, in seconds since the epoch, and those that no process will take.

    No process takes a build of a tree later, nor one whose environment has a successor. Returns how many complete
    builds were removed.
    """
    complete = dict(complete_builds(folder))
    removed = 0
    for build in all_builds(folder):
        outcome = complete.get(build)
        if outcome is None or outcome.is_of_tree or last_used(build) <= oldest or not _is_current(outcome):
            remove_build(build)
            removed += outcome is not None
    with contextlib.suppress(OSError):
        # If it is empty now.
        os.rmdir(folder)
    return removed


def _read_outcome(build: str) -> Outcome | None:
    """Return the outcome of a build; ``None`` if it is not complete, damaged, or of another version of lockbuild."""
    try:
        content = read_json(os.path.join(build, _OUTCOME))
        environments = tuple(Generation(*map(_text, each)) for each in content.pop("environments"))
        outcome = Outcome(**content, environments=environments)
        outcome = outcome._replace(made=float(outcome.made), sha256=_text(outcome.sha256))
        is_name = os.path.basename(_text(outcome.artifact)) == outcome.artifact not in ("", os.curdir, os.pardir)
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError):
        return None
    return outcome if is_name and environments else None


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    return value


def _is_current(outcome: Outcome) -> bool:
    return all(each in generations(each.folder)[:1] for each in outcome.environments)

"""What an environment consists of, as far as that can be seen without reading its files."""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Contents(NamedTuple):
    """What was seen of an environment."""

    digest: str
    """Of the paths, sizes, times of change and permissions of all files but bytecode, and of links. The times of
    folders do not count: they change when Python writes bytecode."""
    bytecode: Mapping[str, list[int]]
    """Size and time of change of each file of bytecode, by its path in the environment."""
    folders: Mapping[str, int]
    """The times of change of all folders, by their paths, from before their files were looked at."""


def look_at(path: str) -> Contents:
    """Look at the files of an environment. Raises `OSError`."""
    bytecode: dict[str, list[int]] = {}
    folders = {path: os.stat(path).st_mtime_ns}
    digest = sha256()
    for line in _describe(path, "", bytecode, folders):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return Contents(digest.hexdigest(), bytecode, folders)


def has_new_files(folders: Mapping[str, int]) -> bool:
    """Tell whether a file may have been made in one of these folders since they were looked at."""
    try:
        return any(os.stat(path).st_mtime_ns != changed for path, changed in folders.items())
    except OSError:
        return True


def _describe(path: str, relative: str, bytecode: dict[str, list[int]], folders: dict[str, int]) -> Iterator[str]:
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{relative}/{entry.name}"
        if entry.is_symlink():
            yield f"{name}>{os.readlink(entry.path)}\n"
            continue
        status = entry.stat()
        if not entry.is_dir():
            yield f"{name} {status.st_size} {status.st_mtime_ns} {status.st_mode:o}\n"
            continue
        folders[entry.path] = status.st_mtime_ns
        if entry.name == "__pycache__":
            _find_bytecode(entry.path, name, bytecode)
        else:
            yield f"{name}/\n"
            yield from _describe(entry.path, name, bytecode, folders)


def _find_bytecode(path: str, relative: str, bytecode: dict[str, list[int]]) -> None:
    # Other builds write there: a file may be renamed between the listing and the look at it. Before that it has another
    # ending, and is not read by Python.
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".pyc"):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    bytecode[f"{relative}/{entry.name}"] = [status.st_size, status.st_mtime_ns]

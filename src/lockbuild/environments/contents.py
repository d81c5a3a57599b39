"""What an environment consists of: a quick look, and a thorough comparison for one that came out of an archive.

A look reads no file: it trusts sizes and times of change. Archives and copies keep the contents and lose fractions of
seconds, whole times, or permissions. So where a look finds a difference, the contents decide.
"""

from __future__ import annotations

import contextlib
import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.files import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Contents(NamedTuple):
    """What was seen of an environment without reading its files."""

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
    digest = _digest(_walk(path, "", bytecode, folders), _describe)
    return Contents(digest, bytecode, folders)


def digest_of_contents(path: str) -> str:
    """
    Read all files of an environment but bytecode, and digest what an archive keeps.

    That is the paths and bytes of files, which of them their owner may execute, links and folders. Raises `OSError`.
    """
    return _digest(_walk(path, "", {}, {}), _read)


def has_new_files(folders: Mapping[str, int]) -> bool:
    """Tell whether a file may have been made in one of these folders since they were looked at."""
    try:
        return any(os.stat(path).st_mtime_ns != changed for path, changed in folders.items())
    except OSError:
        return True


def _digest(found: Iterator[tuple[str, os.DirEntry[str]]], describe: Callable[[os.DirEntry[str]], str]) -> str:
    digest = sha256()
    for name, entry in found:
        digest.update(f"{name}{describe(entry)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _describe(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f">{os.readlink(entry.path)}"
    if entry.is_dir():
        return "/"
    status = entry.stat()
    return f" {status.st_size} {status.st_mtime_ns} {status.st_mode:o}"


def _read(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink() or entry.is_dir():
        return _describe(entry)
    mode = entry.stat().st_mode
    if not stat.S_ISREG(mode):
        return f" {mode:o}"
    return f" {digest_of_file(entry.path)} {mode & stat.S_IXUSR:o}"


def _walk(
    path: str, relative: str, bytecode: dict[str, list[int]], folders: dict[str, int]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{relative}/{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder:
            folders[entry.path] = entry.stat().st_mtime_ns
        if is_folder and entry.name == "__pycache__":
            _find_bytecode(entry.path, name, bytecode)
            continue
        yield name, entry
        if is_folder:
            yield from _walk(entry.path, name, bytecode, folders)


def _find_bytecode(path: str, relative: str, bytecode: dict[str, list[int]]) -> None:
    # Other builds write there: a file may be renamed between the listing and the look at it. Before that it has another
    # ending, and is not read by Python.
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".pyc"):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    bytecode[f"{relative}/{entry.name}"] = [status.st_size, status.st_mtime_ns]

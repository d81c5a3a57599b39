"""The local files and folders that settings name, described so that a change of what an installer finds is seen.

A wheel that was rebuilt under its old name is another wheel. Archives may be of any size, so they are not read: their
size, inode and times of change tell them apart. A folder that was copied back looks different, which costs a build the
time to make an environment and is never wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from lockbuild.digest import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# What an installer takes for a distribution, by the ending of its name.
ARCHIVES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tlz", ".tar.lz")

# Pages of links count as well, in a folder of distributions as in an index.
_FOUND_IN_FOLDERS = (*ARCHIVES, ".tar.zst", ".html", ".htm")

# Larger files are no lists of requirements.
_LARGE = 1 << 20


def describe_files(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """Return the files and folders that texts name, seen from the working directory, with what tells of a change."""
    return describe({path for text in texts for path in named_paths(text)})


def named_paths(text: str, folder: str = "") -> set[str]:
    """Return the absolute paths of what exists and a text names, relative to the working directory or to a folder."""
    words = {*re.split(r"""[\s=,"'\[\]]+""", text), *text.split(), *re.findall(r"""["']([^"'\n]+)["']""", text)} - {""}
    # A relative path names something else in another working directory.
    paths = {os.path.abspath(os.path.join(base, path)) for path in map(_path, words) for base in {"", folder}}
    return {path for path in paths if os.path.exists(path)}


def _path(word: str) -> str:
    """Return the path that a word of a setting is: a plain one, one below a home, or a ``file:`` URL."""
    # NUL ends no path that exists.
    word = word.replace("\0", "")
    if word[:5].lower() != "file:":
        return os.path.expanduser(word)
    path = re.sub(r"^(//(localhost(?=/))?)?", "", word[5:], flags=re.IGNORECASE)
    if "%" in path:
        from urllib.parse import unquote

        path = unquote(path).replace("\0", "")
    return path.lstrip("/") if os.name == "nt" else path


def describe(paths: Iterable[str], projects: Collection[str] = ()) -> list[tuple[str, Any]]:
    """
    Describe files by digest, archives by identity, and folders by the archives and pages that an installer finds there.

    ``projects`` are the normalized names of those that are required: see `_describe_folder`. Lists of requirements may
    name further files.
    """
    found: dict[str, Any] = {}
    waiting = [*paths]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        # What vanishes or cannot be read has no description.
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                found[path] = _describe_folder(path, projects)
            elif path.lower().endswith(ARCHIVES):
                found[path] = _identity(status)
            elif stat.S_ISREG(status.st_mode):
                found[path] = digest_of_file(path)
                if status.st_size < _LARGE:
                    waiting += _named_by_requirements(path)
    return sorted(found.items())


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _describe_folder(folder: str, projects: Collection[str]) -> list[Any]:
    """
    Describe a folder of distributions, or an index with a page for each project in a folder of its own.

    An index may have thousands of projects: their pages are looked at, and the files behind the links only of those
    that are required.
    """
    found: list[Any] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # A broken link, or a folder that is no project.
            with contextlib.suppress(OSError):
                if entry.name.lower().endswith(_FOUND_IN_FOLDERS):
                    found.append([entry.name, *_identity(entry.stat())])
                elif entry.is_dir():
                    page = f"{entry.path}{os.sep}index.html"
                    found.append([entry.name, *_identity(os.stat(page))])
                    # PEP 503 has the folders of an index named by the normalized names.
                    if entry.name in projects:
                        found += _describe_links(page)
    return sorted(found)


def _describe_links(page: str) -> list[Any]:
    with open(page, encoding="utf-8", errors="surrogateescape") as file:
        links = re.findall(r"""href\s*=\s*["']?([^"'#?\s>]+)""", file.read(), re.IGNORECASE)
    found: list[Any] = []
    for path in {_path(link) if link[:5].lower() == "file:" else _path(f"file:{link}") for link in links}:
        with contextlib.suppress(OSError):
            found.append([path, *_identity(os.stat(os.path.join(os.path.dirname(page), path)))])
    return found


def _named_by_requirements(path: str) -> set[str]:
    """Return what a list of requirements names in its options and URLs; other lines name no files."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = {line for line in file if line.lstrip().startswith("-") or "@" in line or "file:" in line}
    return named_paths("".join(lines), os.path.dirname(path))


def canonical(name: str) -> str:
    """Return the normalized name of a project, as `packaging.utils.canonicalize_name` does."""
    return re.sub(r"[-_.]+", "-", name).lower()

"""The local files and folders that settings name, described so that a build notices when they change.

Files such as lists of requirements are part of an environment's key, by their contents. Local distributions are not:
a folder may hold thousands. The manifest of an environment describes those of the projects that are installed in it,
and each build compares this description with the folder. Other projects do not matter: an installer takes another one
only if a distribution of an installed project has changed.

A wheel that was rebuilt under its old name is another wheel. Archives may be of any size, so lockbuild does not read
them: it compares size, inode and times of change. A folder that was copied and copied back looks different. Then a
build makes an environment again, which costs time and is never wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lockbuild.files import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# What an installer takes for a distribution, by the ending of its name.
ARCHIVES = (
    ".whl",
    ".zip",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz",
    ".tar.xz",
    ".txz",
    ".tlz",
    ".tar.lz",
    ".tar.zst",
)

# Pages of links, in a folder of distributions and in an index.
_PAGES = (".html", ".htm")

# Larger files are no lists of requirements.
_LARGE = 1 << 20


def describe_files(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """Return the files, archives and folders that texts name, with all that tells of a change."""
    files, sources = describe({path for text in texts for path in named_paths(text)})
    return sorted([*files, *((source, describe_source(source)) for source in sources)])


def named_paths(text: str, folder: str = "") -> set[str]:
    """Return the absolute paths of existing files that a text names, relative to the working directory or a folder."""
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


def describe(paths: Iterable[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """
    Return files with their digests, and the paths of the sources among these paths: archives, and folders.

    Lists of requirements may name further ones.
    """
    files: dict[str, str | None] = {}
    sources = set()
    waiting = [*paths]
    while waiting:
        path = waiting.pop()
        if path in files or path in sources:
            continue
        # What vanishes or cannot be read has no digest.
        files[path] = None
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode) or path.lower().endswith(ARCHIVES):
                sources.add(path)
                del files[path]
            elif stat.S_ISREG(status.st_mode):
                files[path] = digest_of_file(path)
                if status.st_size < _LARGE:
                    waiting += _named_by_requirements(path)
    return sorted(files.items()), sorted(sources)


def digest_of_sources(sources: Iterable[str], projects: Collection[str], made: float = math.inf) -> str:
    """
    Digest the distributions of these projects, by their normalized names, that are in local sources.

    It is empty, and equal to no other one, if one of them was changed after ``made``, in seconds since the epoch.
    """
    found = [each for source in sources for each in describe_source(source, projects)]
    if any(changed >= made * 1e9 for *_, changed in found):
        return ""
    return sha256(json.dumps(found).encode("utf-8", "surrogateescape")).hexdigest()


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def describe_source(source: str, projects: Collection[str] | None = None) -> list[list[Any]]:
    """
    Describe an archive, a folder of archives, or an index with a page for each project in a folder of its own.

    An index may have thousands of projects. With ``projects`` only the archives and pages of these are looked at, and
    the files behind the links of their pages.
    """
    beginnings = "" if projects is None else tuple(f"{project}-" for project in projects)
    found: list[list[Any]] = []
    # What vanishes or cannot be read is not there.
    with contextlib.suppress(OSError):
        if not os.path.isdir(source):
            return _describe(source)
        with os.scandir(source) as entries:
            for entry in entries:
                name = canonical(entry.name)
                if entry.name.lower().endswith(_PAGES):
                    found += _describe(entry.path)
                elif entry.name.lower().endswith(ARCHIVES):
                    found += _describe(entry.path) if name.startswith(beginnings) else []
                elif projects is None or name in projects:
                    # PEP 503 has the folders of an index named by the normalized names.
                    found += _describe_page(os.path.join(entry.path, "index.html"))
    return sorted(found)


def _describe(path: str) -> list[list[Any]]:
    with contextlib.suppress(OSError):
        return [[path, *_identity(os.stat(path))]]
    return []


def _describe_page(page: str) -> list[list[Any]]:
    with contextlib.suppress(OSError):
        return [*_describe(page), *_describe_links(page)]
    return []


def _describe_links(page: str) -> list[list[Any]]:
    with open(page, encoding="utf-8", errors="surrogateescape") as file:
        links = re.findall(r"""href\s*=\s*["']?([^"'#?\s>]+)""", file.read(), re.IGNORECASE)
    paths = {_path(link) if link[:5].lower() == "file:" else _path(f"file:{link}") for link in links}
    return [each for path in paths for each in _describe(os.path.join(os.path.dirname(page), path))]


def _named_by_requirements(path: str) -> set[str]:
    """Return what a list of requirements names in its options and URLs; other lines name no files."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = {line for line in file if line.lstrip().startswith("-") or "@" in line or "file:" in line}
    return named_paths("".join(lines), os.path.dirname(path))


def canonical(name: str) -> str:
    """Return the normalized name of a project, as `packaging.utils.canonicalize_name` does."""
    return re.sub(r"[-_.]+", "-", name).lower()

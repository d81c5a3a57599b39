"""The key of a build environment: everything that decides what is in it, and nothing else.

Two builds whose keys are equal may share an environment (invariant: a reused thing equals a fresh one). So the key has
the interpreter, the requirements, the constraints, the installer and all that the installer would read. It does not
have the project, its path, or the time: an environment that has become old is resolved again under the same key.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Any, NamedTuple

from lockbuild.environments.local import ARCHIVES, canonical, describe, named_paths
from lockbuild.paths import configuration_folders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lockbuild.request import Installer

# Variables that do not begin with PIP_ or UV_ and yet decide what is installed: where pip's and uv's configuration
# files are, and what a compiler is told when a requirement has no wheel.
_VARIABLES = (
    "XDG_CONFIG_HOME",
    "XDG_CONFIG_DIRS",
    "ARCHFLAGS",
    "CC",
    "CFLAGS",
    "CPPFLAGS",
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "_PYTHON_HOST_PLATFORM",
    "MACOSX_DEPLOYMENT_TARGET",
    "NETRC",
)

# Variables of pip and uv that only change how they talk, where they cache and take notes, and how long they wait.
WITHOUT_EFFECT = frozenset(
    {
        "PIP_BUILD_TRACKER",
        "PIP_CACHE_DIR",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_DISABLE_PIP_VERSION_CHECK",
        "PIP_LOG",
        "PIP_NO_COLOR",
        "PIP_NO_INPUT",
        "PIP_PROGRESS_BAR",
        "PIP_QUIET",
        "PIP_RETRIES",
        "PIP_TIMEOUT",
        "PIP_VERBOSE",
        "UV_CACHE_DIR",
        "UV_HTTP_TIMEOUT",
        "UV_INTERNAL__BUILD_DIR",
        "UV_LINK_MODE",
        "UV_LOCK_TIMEOUT",
        "UV_NO_PROGRESS",
    }
)

# The format of what is stored under a key. Another format is another key.
_FORMAT = 4

# Nearly every requirement: a name, extras, versions and a marker, in which nothing but versions and names is quoted.
# `packaging` understands the others; its import takes longer than all the rest of this.
_TOKEN = re.compile(r"""'[\w.+-]*'|"[\w.+-]*"|[a-z_]++|[<>=!~]++|[()]""", re.ASCII)
_PLAIN = re.compile(
    rf"""[ ]*([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)[ ]*(?:\[([\w., -]*)\])?[ ]*"""
    rf"""((?:(?:===?|~=|!=|<=?|>=?)[ ]*[\w.*+!-]++[ ]*(?:,[ ]*|(?=;|$)))*+)(?:;((?:[ ]|{_TOKEN.pattern})++))?""",
    re.ASCII,
)


class EnvironmentKey(NamedTuple):
    """What an environment is kept under."""

    digest: str
    requirements: tuple[str, ...]
    """Normalized, for messages."""
    sources: tuple[str, ...]
    """The local folders and archives that settings name. Each build compares what is in them."""


def environment_key(
    requirements: Collection[str], constraints: str, installer: Installer, wheels: Mapping[str, str]
) -> EnvironmentKey | None:
    """
    Return the key for requirements (PEP 508 strings), the text of a constraints file, and an installer.

    ``wheels`` are digests of wheels that are installed where an index may have others: see `source_wheels`.

    ``None`` where no key can cover what would be installed: for a requirement that names a local file or folder, which
    may change at any time, or that cannot be parsed.
    """
    lines = [line.strip() for line in constraints.splitlines() if line.strip()]
    spelled = {_normalize(requirement) for requirement in requirements}
    if None in spelled or any(map(_names_a_file, lines)):
        return None
    normalized = sorted(filter(None, spelled))
    variables = _variables(installer)
    configuration = [(path, text) for path in configuration_files(installer) if (text := _read(path)) is not None]
    paths = {path for text in (*variables.values(), *lines) for path in named_paths(text)}
    for path, text in configuration:
        paths |= named_paths(text, os.path.dirname(path))
    files, sources = describe(paths)
    content = {
        "format": _FORMAT,
        "interpreter": _interpreter(),
        "requirements": normalized,
        "constraints": lines,
        "installer": installer,
        "variables": variables,
        "configuration": [text for _, text in configuration],
        "files": files,
        "sources": sources,
        "wheels": wheels,
    }
    digest = sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return EnvironmentKey(digest, tuple(normalized), tuple(sources))


def _normalize(requirement: str) -> str | None:
    """Spell a requirement in one way; ``None`` if what it names may change."""
    if plain := _PLAIN.fullmatch(requirement):
        name, extras, versions, marker = plain.groups("")
        if name.lower().endswith(ARCHIVES):
            # An installer takes a file of that name in the working directory.
            return None
        extra = ",".join(sorted({canonical(each.strip()) for each in extras.split(",")}))
        version = ",".join(sorted({re.sub(r"\s+", "", each) for each in versions.split(",")} - {""}))
        tokens = " ".join(_TOKEN.findall(marker)).replace("'", '"')
        return f"{canonical(name)}{f'[{extra}]' if extra else ''}{version}{f'; {tokens}' if tokens else ''}"
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return None
    if parsed.url is not None and not parsed.url.startswith(("https:", "http:", "git+https:", "git+ssh:")):
        return None
    parsed.name = canonical(parsed.name)
    parsed.extras = {canonical(extra) for extra in parsed.extras}
    return str(parsed)


def _names_a_file(line: str) -> bool:
    """Tell whether a line of a constraints file names another file, which may change at any time."""
    _, separator, url = line.partition(" @ ")
    named = line.startswith(("-c", "-r", "-e", "--constraint", "--requirement", "--editable", "/", "."))
    return named or "file:" in line or (bool(separator) and "://" not in url)


def _interpreter() -> list[Any]:
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [
        # A virtual environment has links to it. The file's size and times do not matter: a layer of another image, or
        # an archive, has the same interpreter with other times.
        executable,
        # An upgrade in place changes this: it has the moment of the build and the compiler.
        sys.version,
        sys.implementation.name,
        EXTENSION_SUFFIXES[0],
        # What `sysconfig.get_platform` is made of, without reading the Makefile's variables for it.
        sys.platform,
        os.uname().machine if hasattr(os, "uname") else "",
        os.path.realpath(sys.base_prefix),
    ]


def _variables(installer: Installer) -> dict[str, str]:
    # pip reads UV_* never, uv reads no PIP_*. What compilers read counts where there is no wheel.
    prefix = "PIP_" if installer == "pip" else "UV_"
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(prefix) or name in _VARIABLES) and name not in WITHOUT_EFFECT
    }


def configuration_files(installer: Installer) -> Iterator[str]:
    """Yield the paths of the configuration files that an installer may read, those that override others last."""
    common, users = configuration_folders(installer)
    if installer == "pip":
        # pip's own order, from its documentation: global, user (new and old place), the environment's, PIP_CONFIG_FILE.
        name = "pip.ini" if os.name == "nt" else "pip.conf"
        for folder in common:
            yield os.path.join(folder, name)
        yield f"/etc/{name}"
        if users is not None:
            yield os.path.join(users, name)
        yield os.path.join(os.path.expanduser("~"), "pip" if os.name == "nt" else ".pip", name)
        yield os.path.join(sys.prefix, name)
        if path := os.environ.get("PIP_CONFIG_FILE"):
            yield path
    else:
        for folder in common:
            yield os.path.join(folder, "uv.toml")
        yield "/etc/uv/uv.toml"
        if users is not None:
            yield os.path.join(users, "uv.toml")
        yield os.path.join(os.path.expanduser("~"), ".config", "uv", "uv.toml")
        if path := os.environ.get("UV_CONFIG_FILE"):
            yield path
        # uv looks for a project's settings from the working directory upwards.
        folder = os.getcwd()
        while True:
            yield os.path.join(folder, "uv.toml")
            yield os.path.join(folder, "pyproject.toml")
            parent = os.path.dirname(folder)
            if parent == folder:
                break
            folder = parent


def _read(path: str) -> str | None:
    """Return what an installer may read from a file, if anything: its text, or the table in a pyproject.toml."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    if os.path.basename(path) != "pyproject.toml":
        return content.decode("utf-8", "surrogateescape")
    try:
        table = tomllib.loads(content.decode()).get("tool", {}).get("uv")
    except (ValueError, AttributeError, RecursionError):
        return None
    return None if table is None else repr(table)

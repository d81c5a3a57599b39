"""The key of a build environment: everything that decides what is in it, and nothing else.

Two builds whose keys are equal may share an environment (invariant: a reused thing equals a fresh one). So the key has
the interpreter, the requirements, the constraints, the installer and all that the installer would read. It does not
have the project, its path, or the time: an environment that has become old is resolved again under the same key.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Any, NamedTuple

from lockbuild.digest import digest_of_file, sha256
from lockbuild.user_folders import configuration_folders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

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

# The form of what is stored under a key. Another form is another key.
_FORMAT = 1


class EnvironmentKey(NamedTuple):
    """What an environment is kept under."""

    digest: str
    requirements: tuple[str, ...]
    """As they were normalized: for a person who looks into the store."""


def environment_key(
    requirements: Collection[str], constraints: str, installer: Installer, memory: str | None = None
) -> EnvironmentKey | None:
    """
    Return the key for requirements (PEP 508 strings), the text of a constraints file, and an installer.

    It has the requirements in the spelling of `packaging`, whose import takes longer than all the rest of this. So
    ``memory``, a folder that only this user can write, remembers what each spelling came to.

    ``None`` where no key could cover what would be installed: a requirement that names a local file or folder, which
    may change at any time, or one that is not understood.
    """
    lines = [line.strip() for line in constraints.splitlines() if line.strip()]
    if any(map(_names_a_file, lines)):
        return None
    content = _content(lines, installer)
    normalized = _remember(memory, _digest(content, sorted(set(requirements)))) if memory else None
    if normalized is None:
        normalized = _normalize_all(requirements)
        if normalized is None:
            return None
        if memory:
            _memorize(memory, _digest(content, sorted(set(requirements))), normalized)
    return EnvironmentKey(_digest(content, normalized), tuple(normalized))


def _remember(memory: str, spelling: str) -> list[str] | None:
    try:
        with open(os.path.join(memory, spelling), encoding="utf-8") as file:
            return [str(requirement) for requirement in json.load(file)]
    except (OSError, ValueError, TypeError):
        return None


def _memorize(memory: str, spelling: str, normalized: list[str]) -> None:
    # What cannot be remembered is found out again.
    with contextlib.suppress(OSError):
        hidden = os.path.join(memory, f"{spelling}.{os.urandom(4).hex()}")
        with open(hidden, "x", encoding="utf-8") as file:
            json.dump(normalized, file)
        os.replace(hidden, os.path.join(memory, spelling))


def _content(constraints: list[str], installer: Installer) -> dict[str, Any]:
    variables = _variables(installer)
    configuration = [text for path in configuration_files(installer) if (text := _read(path)) is not None]
    return {
        "format": _FORMAT,
        "interpreter": _interpreter(),
        "constraints": constraints,
        "installer": installer,
        "variables": variables,
        "configuration": configuration,
        "files": describe_files([*variables.values(), *configuration]),
    }


def _digest(content: Mapping[str, Any], requirements: Sequence[str]) -> str:
    text = json.dumps({**content, "requirements": requirements}, sort_keys=True)
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _normalize_all(requirements: Collection[str]) -> list[str] | None:
    normalized = set()
    for requirement in requirements:
        spelled = _normalize(requirement)
        if spelled is None:
            return None
        normalized.add(spelled)
    return sorted(normalized)


def _normalize(requirement: str) -> str | None:
    """Spell a requirement in the one way that `packaging` has for it; ``None`` if what it names may change."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return None
    if parsed.url is not None and not parsed.url.startswith(("https:", "http:", "git+https:", "git+ssh:")):
        return None
    parsed.name = canonicalize_name(parsed.name)
    parsed.extras = {canonicalize_name(extra) for extra in parsed.extras}
    return str(parsed)


def _names_a_file(line: str) -> bool:
    """Tell whether a line of a constraints file names another file, which may change at any time."""
    _, separator, url = line.partition(" @ ")
    named = line.startswith(("-c", "-r", "-e", "--constraint", "--requirement", "--editable", "/", "."))
    return named or "file:" in line or (bool(separator) and "://" not in url)


def describe_files(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the files and folders that settings name, with digests of the files: constraints, for one."""
    found = set()
    for text in texts:
        for word in re.split(r"""[\s=,"'\[\]]+""", text):
            if word and os.path.exists(word):
                digest = ""
                if os.path.isfile(word):
                    with contextlib.suppress(OSError):
                        digest = digest_of_file(word)
                # A relative path names something else in another working directory.
                found.add((os.path.abspath(word), digest))
    return sorted(found)


def _interpreter() -> list[Any]:
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    status = os.stat(executable)
    return [
        executable,
        # An upgrade in place keeps the path.
        status.st_size,
        status.st_mtime_ns,
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
    import tomllib

    try:
        table = tomllib.loads(content.decode()).get("tool", {}).get("uv")
    except (ValueError, AttributeError):
        return None
    return None if table is None else repr(table)

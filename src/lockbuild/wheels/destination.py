"""Where wheels are installed: the folders of an environment's schemes, and which paths below them a wheel may write."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockbuild.errors import EnvironmentFolderError, WheelError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# Asks an interpreter where its environment has what. Isolated from the working directory and from PYTHONPATH.
_QUESTION = "import json, sys, sysconfig; print(json.dumps([sysconfig.get_paths(), '%d.%d' % sys.version_info[:2]]))"

SCHEMES = ("purelib", "platlib", "headers", "scripts", "data")

# What an environment's interpreter consists of, beside it or in the environment's own folder. Letters of either case,
# because file systems of macOS and Windows do not tell them apart.
_INTERPRETER = re.compile(
    r"(python|pypy|graalpy)[\d.]*t?w?(_d)?(\.exe|\.dll|\._pth)?|pyvenv\.cfg", re.IGNORECASE | re.ASCII
)

# The longest name that common file systems have, in bytes.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Destination:
    """The folders into which wheels are installed."""

    schemes: Mapping[str, str]
    """The absolute paths of `SCHEMES`; of ``headers`` the folder in which each distribution has one. ``data`` is the
    environment itself."""
    python_executable: str
    """What the scripts are run with."""

    def folder_for(self, wheel: str, scheme: str, parts: Sequence[str], names: Collection[str]) -> str:
        """
        Return the real path of the folder below a scheme's in which a wheel's files of these names are to be written.

        Every path that an installation writes is asked for here before the first one is written. Raises `WheelError`,
        with ``wheel`` as the path of the wheel file, for a path that leaves its scheme's folder or, through a symbolic
        link, the environment; that is part of the interpreter; or where a folder and a file would have one name.
        """
        for part in (*parts, *names):
            if not is_plain(part):
                raise WheelError(wheel, f"{part!r} is not a name that it may give to a file")
        environment = os.path.realpath(self.schemes["data"])
        folder = os.path.realpath(os.path.join(self.schemes[scheme], *parts))
        if folder != environment and not folder.startswith(os.path.join(environment, "")):
            raise WheelError(wheel, f"{'/'.join(parts)!r} leads to {folder}, which is outside of {environment}")
        existing = folder
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise WheelError(wheel, f"it needs a folder {existing}, and a file has that name")
        replaced = _replaced(folder, names)
        for path in filter(os.path.isdir, replaced):
            raise WheelError(wheel, f"it has a file {path}, and a folder has that name")
        if any(_is_same(folder, place) for place in (environment, self.schemes["scripts"])):
            interpreters = {name for name in names if _INTERPRETER.fullmatch(name.rstrip(" ."))}
            interpreters |= {os.path.basename(path) for path in replaced if _is_same(path, self.python_executable)}
            for name in sorted(interpreters):
                raise WheelError(wheel, f"its {name!r} would replace the interpreter in {folder}")
        return folder


def is_plain(name: str) -> bool:
    """Tell whether a name is that of one file or folder wherever it is written, and shows as it is."""
    return (
        name not in {"", ".", ".."}
        and not any(character in "/\\\x7f" or character < " " for character in name)
        and not (os.name == "nt" and ":" in name)
        and len(os.fsencode(name)) <= _LONGEST_NAME
    )


def virtual_environment(path: str, python_executable: str | None = None) -> Destination:
    """
    Return the destination that a virtual environment is, as its own interpreter tells.

    Raises `EnvironmentFolderError` where there is no interpreter.
    """
    import json
    import subprocess

    path = os.path.abspath(path)
    python = python_executable or os.path.join(
        path, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python"))
    )
    try:
        answer = subprocess.run([python, "-Ic", _QUESTION], capture_output=True, check=True, text=True)
        paths, version = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise EnvironmentFolderError(
            f"{shown(path)} is not a virtual environment: its interpreter {shown(python)} cannot be asked where "
            "packages belong"
        ) from error
    return Destination(with_headers(paths, path, version), python)


def with_headers(paths: Mapping[str, str], prefix: str, version: str) -> dict[str, str]:
    """Return the schemes of wheels, of ``sysconfig``'s paths in a virtual environment: pip's place for headers."""
    schemes = {name: paths[name] for name in ("purelib", "platlib", "scripts", "data")}
    return {**schemes, "headers": os.path.join(prefix, "include", "site", f"python{version}")}


def _replaced(folder: str, names: Collection[str]) -> list[str]:
    """Return the paths of what has these names in a folder already."""
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder) if name in names]
    except FileNotFoundError:
        return []


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False

"""The destination of an installation: an environment's scheme folders, and the paths that wheels may write there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockbuild.errors import EnvironmentFolderError, WheelError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# Asks an interpreter for the folders of its environment. Runs isolated from the working directory and PYTHONPATH.
_QUESTION = "import json, sys, sysconfig; print(json.dumps([sysconfig.get_paths(), '%d.%d' % sys.version_info[:2]]))"

SCHEMES = ("purelib", "platlib", "headers", "scripts", "data")

# Files that belong to an environment's interpreter, in its folder or the environment's. Upper and lower case are the
# same to file systems of macOS and Windows.
_INTERPRETER = re.compile(
    r"(python|pypy|graalpy)[\d.]*t?w?(_d)?(\.exe|\.dll|\._pth)?|pyvenv\.cfg", re.IGNORECASE | re.ASCII
)

# The longest name that common file systems allow, in bytes.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Destination:
    """The folders into which wheels are installed."""

    schemes: Mapping[str, str]
    """The absolute paths of `SCHEMES`. ``data`` is the environment itself; in ``headers`` each distribution has a
    folder of its own."""
    python_executable: str
    """The interpreter that runs the scripts."""

    def folder_for(self, wheel: str, scheme: str, parts: Sequence[str], names: Collection[str]) -> str:
        """
        Return the real path of the folder for a wheel's files with these names: ``parts`` below a scheme's folder.

        An installation asks for every path here before it writes the first one. Raises `WheelError` for the wheel file
        ``wheel`` when a path leaves its scheme's folder; when a symbolic link leads it out of the environment; when it
        is part of the interpreter; or when a folder and a file would have the same name.
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
    """Tell whether a name stands for one file or folder on every platform, and has no control characters."""
    return (
        name not in {"", ".", ".."}
        and not any(character in "/\\\x7f" or character < " " for character in name)
        and not (os.name == "nt" and ":" in name)
        and len(os.fsencode(name)) <= _LONGEST_NAME
    )


def virtual_environment(path: str) -> Destination:
    """
    Ask the interpreter of a virtual environment for its folders.

    Raises `EnvironmentFolderError` where there is no interpreter.
    """
    path = os.path.abspath(path)
    python = os.path.join(path, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
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
    """Return the folders of `SCHEMES`, given ``sysconfig``'s paths; that of headers is the one that pip uses."""
    schemes = {name: paths[name] for name in ("purelib", "platlib", "scripts", "data")}
    return {**schemes, "headers": os.path.join(prefix, "include", "site", f"python{version}")}


def _replaced(folder: str, names: Collection[str]) -> list[str]:
    """Return the paths in a folder that already have these names."""
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder) if name in names]
    except FileNotFoundError:
        return []


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False

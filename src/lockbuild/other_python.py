"""Other Pythons than the one that runs lockbuild: how one is found, and how lockbuild is run with it.

lockbuild and its dependencies are pure Python. So another Python runs them from where they are, as pip does for its own
option ``--python``; they need not be installed there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

from lockbuild.errors import PythonNotFoundError

OLDEST = (3, 11)

_PROBE = "import sys; print(*sys.version_info[:2], sys.executable)"

_PACKAGES = ("lockbuild", "build", "filelock", "installer", "packaging", "platformdirs", "pyproject_hooks", "uv", "pip")


class Python(NamedTuple):
    """A Python."""

    executable: str
    """An absolute path."""
    version: tuple[int, int]


def find_python(wanted: str) -> Python:
    """
    Find a Python by its path, by a command such as ``python3.12``, or by a version such as ``3.12``.

    A version needs the library python-discovery. Raises `PythonNotFoundError`.
    """
    if os.sep in wanted or (path := shutil.which(wanted)) is None:
        path = wanted if os.path.isfile(wanted) else _discovered(wanted)
    answer = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, check=False)
    if answer.returncode:
        # The first line: pyenv adds a few lines of advice.
        reason = answer.stderr.strip() or "no reason given"
        raise PythonNotFoundError(wanted, f"{path} does not run: {reason.splitlines()[0]}")
    found = re.fullmatch(r"(\d+) (\d+) (.+)\n", answer.stdout)
    if found is None:
        raise PythonNotFoundError(wanted, f"{path} is no Python: it does not tell its version")
    executable = found[3]
    python = Python(executable, (int(found[1]), int(found[2])))
    if python.version < OLDEST:
        raise PythonNotFoundError(
            wanted, f"{executable} is Python {found[1]}.{found[2]}, and lockbuild runs with 3.11 or newer"
        )
    return python


def _discovered(wanted: str) -> str:
    if find_spec("python_discovery") is None:
        raise PythonNotFoundError(wanted, "name its path, or install python-discovery, which finds versions")
    from python_discovery import get_interpreter

    # A shim of a version manager whose version is not there ends in an error, and is none.
    found = get_interpreter(wanted)
    if found is None:
        raise PythonNotFoundError(wanted, "there is none on PATH; name the path of one")
    return str(found.executable)


def command_for(python: Python | None, module: str = "lockbuild") -> list[str]:
    """Return the command that runs a module of lockbuild with a Python; ``None`` is our own."""
    # -P: the working directory, which may contain a build.py, is not on the path.
    return [sys.executable, "-P", "-m", module] if python is None else run_elsewhere(python.executable, module)


def run_elsewhere(python: str, module: str) -> list[str]:
    """Return the command that runs a module of lockbuild with a Python, whether or not lockbuild is installed there."""
    found = (find_spec(name) for name in _PACKAGES)
    folders = dict.fromkeys(os.path.dirname(os.path.dirname(each.origin)) for each in found if each and each.origin)
    script = os.path.join(os.path.dirname(__file__), "commands", "elsewhere.py")
    return [python, "-P", script, os.pathsep.join(folders), module]

"""What lockbuild takes from pip beyond its documented command line, in one place.

- ``pip/__pip-runner__.py`` and ``_PIP_RUNNING_IN_SUBPROCESS``. The public way is ``pip --python PYTHON``, which starts
  pip twice: the first pip finds the option, and starts this script under the other interpreter with this variable set
  (pypa/pip#11320). That costs a quarter of a second or more, a fifth of a build that makes its environment.
  pypa/pip#4768 asks for a faster start.
- A line of a traceback. A pip before 23.2 fails when it reads ``origin.json`` in its cache while another pip writes it
  (pypa/pip#11985, fixed by pypa/pip#12060). Only the traceback says so. Debian 12 and Python 3.11.4 come with such a
  pip.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution

_HALF_WRITTEN = "DirectUrl.from_json(origin_path"


def pip_for(python: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs this Python's pip under another one, and the variables that it needs."""
    if runner := _pip_runner():
        return [python, runner], {"_PIP_RUNNING_IN_SUBPROCESS": "1"}
    return [sys.executable, "-m", "pip", "--python", python], {}


def was_disturbed(output: str) -> bool:
    """Tell from its output whether a pip has failed because another one was writing to the same cache."""
    return _HALF_WRITTEN in output


def _pip_runner() -> str | None:
    try:
        # Not by an import: the finder of setuptools looks for imports of pip, and then withdraws its distutils.
        runner = os.path.realpath(str(distribution("pip").locate_file("pip/__pip-runner__.py")))
    except PackageNotFoundError:
        return None
    return runner if os.path.isfile(runner) else None

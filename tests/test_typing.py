"""What type checkers say of the Python API: the examples of its page are right, and an unknown name is an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
EXAMPLES = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))

MISTAKES = """\
import lockbuild
from lockbuild import no_such_name
lockbuild.no_such_name
lockbuild.build(".", installer="conda")
lockbuild.build(".", no_such_option=True)
lockbuild.build(".").no_such_attribute
"""


def _mypy(folder: Path, code: str) -> list[int]:
    """Return the numbers of the lines with errors."""
    (folder / "code.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder), "code.py"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    lines = re.findall(r"^code\.py:(\d+): error", checked.stdout, re.MULTILINE)
    assert bool(lines) == bool(checked.returncode), checked.stdout + checked.stderr
    return sorted({int(number) for number in lines})


def _pyright(folder: Path, code: str) -> list[int]:
    (folder / "code.py").write_text(code)
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "include": ["code.py"]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = json.loads(checked.stdout)["generalDiagnostics"]
    return sorted({each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"})


CHECKERS = [
    pytest.param(check, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"), id=name)
    for name, check in (("mypy", _mypy), ("pyright", _pyright))
]


@pytest.mark.parametrize("check", CHECKERS)
def test_the_examples_of_the_page_pass(check, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "lockbuild.build_many(" in EXAMPLES
    assert check(tmp_path, EXAMPLES) == []


@pytest.mark.parametrize("check", CHECKERS)
def test_mistakes_are_errors(check, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert check(tmp_path, MISTAKES) == [2, 3, 4, 5, 6]

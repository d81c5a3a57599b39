"""How the command of a process is shown."""

from __future__ import annotations

import pytest

from lockbuild.processes import words_of_command


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/srv/env/bin/python3.11", "-m", "lockbuild", "--wheel"], "lockbuild --wheel"),
        (["/srv/env/bin/python", "-P", "-W", "error", "-Im", "lockbuild"], "lockbuild"),
        (["/srv/env/bin/python", "/srv/env/bin/lockbuild", "-w", "a b"], "lockbuild -w 'a b'"),
        (["/usr/bin/uv", "build"], "uv build"),
        (["python3", "setup.py", "build"], "setup.py build"),
        (["/usr/bin/python3", "-c", "print()"], "python3 -c 'print()'"),
        (["C:/Python/pythonw.exe", "-m", "x"], "x"),
        (["/usr/bin/python3"], "python3"),
        (["/usr/bin/python3", "-m"], "python3 -m"),
        (["/bin/python-config", "-m", "x"], "python-config -m x"),
        (["a\nb"], "'a?b'"),
        ([], ""),
    ],
)
def test_a_command_is_shown_without_the_interpreter_and_its_path(words: list[str], shown: str) -> None:
    assert words_of_command(words) == shown

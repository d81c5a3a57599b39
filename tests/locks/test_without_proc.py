"""Where the kernel does not tell who holds a lock: a wait goes on and says what it can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lockbuild.locks import SourceTreeLock

# What Windows' Python lacks is taken away before lockbuild is imported.
WAITER = """
import os, sys
del os.major, os.minor
from lockbuild.console import Console
from lockbuild.locks import SourceTreeLock
with SourceTreeLock(sys.argv[1], timeout=60, reporter=Console(0)):
    print("got it")
"""


def test_a_wait_of_over_half_a_second_needs_no_device_numbers(tmp_path: Path) -> None:
    with SourceTreeLock(tmp_path):
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiter.stderr is not None
        line = waiter.stderr.readline()
        assert line.startswith(f"* Waiting for the lock on {tmp_path}, held by "), line + waiter.stderr.read()
    out, error = waiter.communicate(timeout=60)
    assert (waiter.returncode, out) == (0, "got it\n"), error

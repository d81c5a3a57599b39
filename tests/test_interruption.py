"""Signals that come at moments which are hard to hit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from machine import linux_only
from witness import WitnessTree

# Sends this process a signal when it begins to remove its folder for temporary files.
_IN_CLEANUP = """
import os, runpy, signal, sys
def interrupt(event, arguments):
    if event == "shutil.rmtree" and os.path.basename(arguments[0]).startswith("lockbuild-"):
        signal.raise_signal(signal.SIGINT)
sys.addaudithook(interrupt)
runpy.run_module("lockbuild", run_name="__main__", alter_sys=True)
"""

# Sends this process a signal when it has begun to import an encoding.
_IN_IMPORT = """
import signal, sys
from lockbuild.errors import Interrupted
from lockbuild.interruption import interruptible
def interrupt(event, arguments):
    if event == "exec" and arguments[0].co_filename.endswith("ascii.py"):
        signal.raise_signal(signal.SIGINT)
sys.addaudithook(interrupt)
try:
    with interruptible():
        open("/dev/null", encoding="ascii")
except Interrupted:
    print("interrupted")
"""


def test_an_interrupted_cleanup_leaves_no_temporary_files(witness_tree: WitnessTree) -> None:
    build = witness_tree.start(command=(sys.executable, "-c", _IN_CLEANUP))
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 128 + signal.SIGINT, error
    assert [name for name in os.listdir(os.environ["TMPDIR"]) if name.startswith("lockbuild-")] == []


@linux_only
def test_an_interruption_in_the_middle_of_an_import_is_one() -> None:
    """The handler looks for descendants, and reads files of /proc for that, in some encoding."""
    done = subprocess.run([sys.executable, "-c", _IN_IMPORT], capture_output=True, text=True, check=False)
    assert done.stdout == "interrupted\n", done.stderr

"""Signals that come at moments which are hard to hit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from lockbuild.session import Session
from machine import linux_only
from witness import WitnessTree

# Sends this process a signal when it begins to remove a folder that has a file of this name, or that has it itself.
_IN_CLEANUP = """
import fnmatch, os, runpy, signal, sys
def interrupt(event, arguments):
    if event == "shutil.rmtree" and os.path.isdir(arguments[0]):
        if fnmatch.filter([os.path.basename(arguments[0]), *os.listdir(arguments[0])], os.environ["NAME"]):
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

# Writes down whether the hook still runs when the folder is removed by whose files it talks with pyproject-hooks.
_AT_REMOVAL = """
import os, runpy, sys
def look(event, arguments):
    if event == "shutil.rmtree" and os.path.exists(os.path.join(arguments[0], "input.json")):
        folder = os.environ["FOLDER"]
        if os.path.exists(os.path.join(folder, "hook")):
            with open(os.path.join(folder, "hook")) as hook, open(os.path.join(folder, "seen"), "w") as seen:
                seen.write("running" if os.path.exists(f"/proc/{hook.read()}") else "ended")
sys.addaudithook(look)
runpy.run_module("lockbuild", run_name="__main__", alter_sys=True)
"""


@linux_only
def test_the_files_of_an_interrupted_hook_are_there_until_it_has_ended(witness_tree: WitnessTree) -> None:
    """One that runs on would say that its input is missing, or have its output meet the removal of their folder."""
    witness_tree.use_hook("signal.signal(signal.SIGINT, signal.SIG_IGN)\ntell('deaf', '')\ntime.sleep(1000)")
    folder = {"FOLDER": str(witness_tree.control)}
    build = witness_tree.start(command=(sys.executable, "-c", _AT_REMOVAL), env=folder)
    witness_tree.told("deaf")
    build.send_signal(signal.SIGINT)
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 128 + signal.SIGINT, error
    assert witness_tree.told("seen") == "ended"


@pytest.mark.parametrize("name", ["lockbuild-*", "input.json"], ids=["the staging folder", "that of a hook's files"])
@pytest.mark.parametrize("option", ["--wheel", "--metadata"])
def test_an_interrupted_cleanup_leaves_no_temporary_files(witness_tree: WitnessTree, name: str, option: str) -> None:
    build = witness_tree.start(option, command=(sys.executable, "-c", _IN_CLEANUP), env={"NAME": name})
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 128 + signal.SIGINT, error
    assert [each for each in os.listdir(os.environ["TMPDIR"]) if not each.startswith("uv-setuptools-")] == []


@linux_only
def test_an_interruption_in_the_middle_of_an_import_is_one() -> None:
    """The handler looks for descendants, and reads files of /proc for that, in some encoding."""
    done = subprocess.run([sys.executable, "-c", _IN_IMPORT], capture_output=True, text=True, check=False)
    assert done.stdout == "interrupted\n", done.stderr


def test_an_interruption_while_the_staging_folder_is_made_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def interrupted(*arguments: Any, **options: Any) -> None:
        make(*arguments, **options)
        raise KeyboardInterrupt

    temporary = Path(tempfile.gettempdir())
    with Session(BuildRequest("."), Reporter()) as session:
        monkeypatch.setattr(os, "mkdir", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.folder()
    assert list(temporary.iterdir()) == []

"""Of the builds that wait for one tree, some at a time get ready; none of them can hold up the others for long."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.hooks.starting import PLACES
from machine import wait_until_it_waits
from wheelhouse import ProbeTree, end_all, make_probe_tree
from witness import complete_lines, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no hook host elsewhere")

# A backend that writes down when its import begins and ends.
_BACKEND = """
import os, time
from probe_backend import *

def _note(word):
    descriptor = os.open(os.environ["IMPORT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{word} {os.getpid()}\\n".encode())
    os.close(descriptor)

_note("begin")
if "IMPORT_GATE" in os.environ:
    with open(os.environ["IMPORT_GATE"]) as file:
        file.read()
time.sleep(0.1)
_note("end")
"""


# Under the second name it stands in for a backend whose host is started on a guess.
@pytest.fixture(params=["noting_backend", "mesonpy"])
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ProbeTree]:
    tree = make_probe_tree(tmp_path / "probe")
    tree.wheelhouse.add_wheel("noting-backend", files={f"{request.param}.py": _BACKEND}, requires=["probe-backend"])
    (tree.path / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["noting-backend"]\nbuild-backend = "{request.param}"\n'
        '[tool.lockbuild]\nlock = "always"\n'
    )
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    monkeypatch.setenv("IMPORT_LOG", str(tree.control / "imports.log"))
    yield tree
    end_all(tree)


def imports(tree: ProbeTree, word: str) -> list[int]:
    """Return the processes that have noted a word, in order."""
    log = tree.control / "imports.log"
    lines = [line.split() for line in complete_lines(log)]
    return [int(pid) for noted, pid in lines if noted == word]


def most_at_once(tree: ProbeTree) -> int:
    most = now = 0
    for line in (tree.control / "imports.log").read_text().splitlines():
        now += 1 if line.startswith("begin") else -1
        most = max(most, now)
    return most


def test_waiting_builds_get_ready_a_few_at_a_time(tree: ProbeTree) -> None:
    tree.build()
    gate = tree.make_gate()
    first = tree.start(env={"PROBE_GATE": str(gate.path)})
    tree.wait_for_hook(2)
    done = len(imports(tree, "end"))
    others = [tree.start() for _ in range(6)]
    # All of them do get ready, while the lock is held.
    wait_until(lambda: len(imports(tree, "end")) >= done + len(others), "the import by everybody who waits")
    gate.open()
    tree.finish(first, *others)
    # The sleep in the import is long enough for more to overlap, if they may.
    assert most_at_once(tree) <= PLACES
    # Nobody has imported twice: what got ready was used.
    assert len(imports(tree, "end")) == done + len(others)


def test_a_free_lock_is_taken_although_those_who_get_ready_were_stopped(tree: ProbeTree) -> None:
    tree.build()
    gate, import_gate = tree.make_gate(), tree.make_gate("import-gate")
    first = tree.start(env={"PROBE_GATE": str(gate.path)})
    tree.wait_for_hook(2)
    begun = len(imports(tree, "begin"))
    getting_ready = [tree.start(env={"IMPORT_GATE": str(import_gate.path)}) for _ in range(PLACES)]
    wait_until(lambda: len(imports(tree, "begin")) == begun + PLACES, "the import by all who may")
    for process in getting_ready:
        os.kill(process.pid, signal.SIGSTOP)
    last = tree.start()
    wait_until_it_waits(last)
    # All places are taken.
    assert len(imports(tree, "begin")) == begun + PLACES
    gate.open()
    tree.finish(first, last)

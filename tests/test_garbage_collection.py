"""The removal of what is unused, which builds start themselves, once a day."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lockbuild.garbage_collection import prune_environments, prune_left_behind
from lockbuild.paths import logs_folder
from machine import is_running
from wheelhouse import ProbeTree, a_made_up_environment, make_unused
from witness import wait_until


def _stamp(tree: ProbeTree) -> Path:
    return tree.store / "pruned"


def _let_a_day_pass(tree: ProbeTree) -> None:
    moment = time.time() - 86401
    os.utime(_stamp(tree), (moment, moment))


@pytest.mark.skipif(os.name == "nt", reason="makes FIFOs")
def test_a_removal_takes_what_killed_builds_have_left_in_an_environment_that_stays(tree: ProbeTree) -> None:
    killed = tree.start(env={"PROBE_GATE": str(tree.make_gate().path)})
    hook = tree.wait_for_hook()
    killed.kill()
    killed.wait()
    wait_until(lambda: not is_running(hook["pid"]) and not is_running(hook["ppid"]), "the end of host and hook")
    [environment] = tree.environments()
    make_unused(environment, 20)
    before = Path(f"{environment}.users").stat().st_mtime
    hidden = environment.with_name(f".{environment.name}.json.0123456789abcdef.tmp")
    hidden.touch()
    young = environment.with_name(f".{environment.name}.json.0000000000000000.tmp")
    young.touch()
    os.utime(hidden, (before, before))
    assert len(tree.debris()) == 3
    assert prune_environments() == 0
    assert tree.debris() == [young]
    # It has not been used for as long as before.
    assert Path(f"{environment}.users").stat().st_mtime == before


@pytest.mark.slow
def test_a_build_starts_the_removal_of_what_is_unused_once_a_day(tree: ProbeTree) -> None:
    tree.build()
    unused = a_made_up_environment(tree)
    make_unused(unused, 31)
    # A new cache: nothing was started then, and a day has not passed since.
    tree.build()
    assert unused.exists()
    _let_a_day_pass(tree)
    tree.build()
    wait_until(lambda: not unused.parent.exists(), "the removal")
    assert len(tree.environments()) == 1
    unused = a_made_up_environment(tree)
    make_unused(unused, 31)
    tree.build()
    assert unused.exists()


def test_a_removal_that_was_started_while_the_clock_was_ahead_is_started_again(tree: ProbeTree) -> None:
    tree.build()
    ahead = time.time() + 10 * 86400
    os.utime(_stamp(tree), (ahead, ahead))
    tree.build()
    assert _stamp(tree).stat().st_mtime <= time.time()


@pytest.mark.slow
def test_a_failed_build_and_one_without_the_cache_start_no_removal(tree: ProbeTree) -> None:
    tree.build()
    _let_a_day_pass(tree)
    before = _stamp(tree).stat().st_mtime
    tree.build("--no-cache")
    tree.require("missing")
    tree.build(status=1)
    assert _stamp(tree).stat().st_mtime == before


def at_the_start_of_every_python(tree: ProbeTree, program: str) -> dict[str, str | None]:
    """Return the variables with which whatever Python a build starts, and its own, runs a program first."""
    folder = tree.control / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_build_does_not_wait_for_the_removal(tree: ProbeTree) -> None:
    """The removal waits for ever; the build has ended, and its output with it."""
    tree.build()
    _let_a_day_pass(tree)
    pid = tree.control / "pid"
    environ = at_the_start_of_every_python(
        tree,
        "import os, sys, time\n"
        "if 'lockbuild.commands.cache' in sys.orig_argv:\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n",
    )
    tree.build(env=environ)
    wait_until(lambda: pid.exists() and pid.read_text(), "the removal")
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_the_removal_imports_nothing_from_the_working_directory(tree: ProbeTree) -> None:
    """The working directory is a project, often with modules of names that ours import."""
    tree.build()
    _let_a_day_pass(tree)
    unused = a_made_up_environment(tree)
    make_unused(unused, 31)
    trap = tree.control / "trap"
    for name in ("argparse", "lockbuild", "filelock"):
        (tree.path / f"{name}.py").write_text(f"open({str(trap)!r}, 'a').write(__name__)\n")
    script = (str(Path(sys.executable).with_name("lockbuild")),)
    tree.build(command=script, cwd=tree.path)
    wait_until(lambda: trap.exists() or not unused.exists(), "the removal")
    assert not trap.exists()


def test_old_logs_of_runs_are_removed_and_those_of_the_last_day_stay() -> None:
    folders = {age: Path(logs_folder(None)) for age in (0.5, 2, 40)}
    for age, folder in folders.items():
        (folder / "001-one.log").write_text("")
        moment = time.time() - age * 86400
        os.utime(folder, (moment, moment))
    prune_left_behind()
    assert [age for age, folder in folders.items() if folder.exists()] == [0.5, 2]
    # What is being written has to stay, also when everything is cleared.
    prune_left_behind(-1.0)
    assert [age for age, folder in folders.items() if folder.exists()] == [0.5]

"""Views in views, in every hook, beside builds in the tree, and while others publish."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from machine import as_root, wait_until_it_waits
from wheelhouse import ProbeTree
from witness import LOCKBUILD, WitnessTree

pytestmark = [as_root, pytest.mark.slow]

# Waits until the test has opened a FIFO.
WAITS = """
if "FIFO" in os.environ:
    tell("waits", "")
    open(os.environ["FIFO"]).read()
"""


def make_fifo(tree: WitnessTree) -> Path:
    fifo = tree.control / "fifo"
    os.mkfifo(fifo)
    return fifo


def test_a_hook_in_an_environment_with_extra_requirements_has_the_view(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("extra")
    tree.build("--tree", "private", "--lock", "always", env={"PROBE_REQUIRES": '["extra"]'})
    assert tree.hooks()[-1]["distributions"] == ["extra 1.0", "probe-backend 1.0"]
    assert "LOCKBUILD_VIEWS" in tree.hooks()[-1]["environ"]


@pytest.mark.parametrize(
    "modes",
    [
        ["private", "shared"],
        ["private", "private", "shared"],
        # The kernel puts no third overlay on two others.
        ["private", "private", "auto"],
        ["shared", "private", "shared"],
        ["shared", "private", "private", "shared"],
    ],
    ids=" ".join,
)
def test_builds_nest_in_every_mode(witness_tree: WitnessTree, modes: list[str]) -> None:
    """Each hook starts the build of the next mode; none waits for those around it."""
    first, *others = modes
    words = [*LOCKBUILD, "-n", "--wheel", "--lock-timeout", "5", "--out-dir"]
    witness_tree.use_backend(
        "nesting",
        f"""
import os, subprocess, witness_backend
from witness_backend import *

def build_wheel(*arguments):
    depth = int(os.environ.get("DEPTH", "0"))
    for mode in {others!r}[depth:depth + 1]:
        words = [*{words!r}, {str(witness_tree.control)!r} + f"/nested{{depth}}", "--tree", mode, os.getcwd()]
        subprocess.run(words, check=True, env=os.environ | {{"DEPTH": str(depth + 1)}})
    return witness_backend.build_wheel(*arguments)
""",
    )
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "--tree", first))
    assert status == 0, error
    assert len(list(witness_tree.control.glob("nested*/*.whl"))) == len(others)


def test_a_clean_view_is_clean_of_what_a_build_leaves_that_it_has_waited_for(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(f"{WAITS}\n    open('stale', 'w').close()\ntell('seen', repr(os.listdir('.')))")
    (witness_tree.path / ".gitignore").write_text("stale\n")
    subprocess.run(["git", "init", "--quiet", witness_tree.path], check=True)
    fifo = make_fifo(witness_tree)
    holder = witness_tree.start(env={"FIFO": str(fifo)})
    witness_tree.told("waits")
    clean = witness_tree.start("--wheel", "--tree", "clean", out_dir=witness_tree.control / "clean")
    wait_until_it_waits(clean)
    fifo.write_text("")
    witness_tree.assert_all_succeed(holder, clean)
    assert (witness_tree.path / "stale").exists()
    assert "stale" not in witness_tree.told("seen")


@pytest.mark.parametrize("exists", [False, True])
def test_a_view_does_not_show_the_artifacts_that_others_publish_meanwhile(
    witness_tree: WitnessTree, exists: bool
) -> None:
    witness_tree.use_hook(f"{WAITS}\n    tell('seen', repr(os.listdir('.')))")
    dist = witness_tree.path / "dist"
    if exists:
        dist.mkdir()
    fifo = make_fifo(witness_tree)
    first = witness_tree.start("--wheel", "--tree", "private", env={"FIFO": str(fifo)})
    witness_tree.told("waits")
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--tree", "private", out_dir=dist))
    assert list(dist.glob("*.whl"))
    fifo.write_text("")
    witness_tree.assert_all_succeed(first)
    assert "dist" not in witness_tree.told("seen")

"""Builds of one tree that see different environments still exclude each other.

Every variable that moves lockbuild's folders is different on the two sides: alone, and all of them together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from machine import linux_only, wait_until_it_waits
from witness import WitnessTree

VARIABLES = ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "LOCKBUILD_CACHE_DIR")
# Where lock files go when no variable is set that says so comes from HOME.
MOVES_THE_LOCK_FILE = {"HOME", "XDG_CACHE_HOME", "LOCKBUILD_CACHE_DIR"}

pytestmark = linux_only


def environment(folder: Path, *variables: str) -> dict[str, str | None]:
    """Give each of the variables a new folder as its value; the other ones are the same for everybody."""
    common = folder.parent / "common"
    env: dict[str, str | None] = {"LOCKBUILD_CACHE_DIR": None, "XDG_CACHE_HOME": None, "XDG_RUNTIME_DIR": None}
    for name in ("HOME", "TMPDIR"):
        (common / name).mkdir(parents=True, exist_ok=True)
        env[name] = str(common / name)
    for name in variables:
        (folder / name).mkdir(parents=True)
        env[name] = str(folder / name)
    return env


def lock_files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("setuptools-*.lock")}


@pytest.mark.parametrize(
    "variables",
    [
        *(pytest.param((name,), marks=pytest.mark.slow, id=name) for name in VARIABLES),
        pytest.param(VARIABLES, id="all"),
    ],
)
def test_a_build_with_other_variables_waits(
    witness_tree: WitnessTree, tmp_path: Path, variables: tuple[str, ...]
) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(env=environment(tmp_path / "first", *variables), gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(env=environment(tmp_path / "second", *variables))
    assert f", held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()
    if MOVES_THE_LOCK_FILE.intersection(variables):
        # Otherwise the test would be of the lock file alone.
        assert lock_files(tmp_path / "first") == lock_files(tmp_path / "second") != set()
        assert lock_files(tmp_path / "common") == set()


@pytest.mark.slow
def test_many_builds_with_nothing_in_common_but_the_tree_never_run_hooks_together(
    witness_tree: WitnessTree, tmp_path: Path
) -> None:
    for number in range(6):
        witness_tree.start(
            env=environment(tmp_path / str(number), *VARIABLES), out_dir=witness_tree.control / f"out{number}"
        )
    witness_tree.assert_all_succeed()
    assert len(witness_tree.entered("build_wheel")) == 6


@pytest.mark.slow
def test_setuptools_itself_whose_hook_host_starts_before_the_wait_gets_the_lock_after_it(
    witness_tree: WitnessTree, tmp_path: Path
) -> None:
    """The host is started with open lock files. What it was given may not keep the lock from its own frontend."""
    witness_tree.use_setuptools()
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiters = [
        witness_tree.start(
            env=environment(tmp_path / str(number), "LOCKBUILD_CACHE_DIR"),
            out_dir=witness_tree.control / f"out{number}",
        )
        for number in range(2)
    ]
    for waiter in waiters:
        assert f", held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()
    assert len(witness_tree.entered("build_wheel")) == 3

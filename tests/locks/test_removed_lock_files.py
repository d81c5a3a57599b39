"""Somebody removes lock files, or the folders that they are in, while builds run, wait and start: no overlap, no error.

The directory's own lock keeps builds apart then. Nothing on disk is ever needed for a lock to be held.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lockbuild.events import Reporter
from lockbuild.paths import lock_folder
from machine import linux_only, wait_until_it_waits, warnings_in
from witness import WitnessTree, wait_until

pytestmark = linux_only


def remove_cache(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


def remove_lock_folder(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache" / "locks")


def remove_lock_file(tmp_path: Path) -> None:
    [file] = (tmp_path / "cache" / "locks").glob("*.lock")
    file.unlink()


def remove_temporary_files(tmp_path: Path) -> None:
    """As systemd-tmpfiles does it: uv's lock file is there."""
    for file in (tmp_path / "tmp").glob("*.lock"):
        file.unlink()


def remove_everything(tmp_path: Path) -> None:
    remove_cache(tmp_path)
    remove_temporary_files(tmp_path)


REMOVALS = (remove_cache, remove_lock_folder, remove_lock_file, remove_temporary_files, remove_everything)


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.slow
def test_locks_are_kept_when_files_are_removed_at_any_time(
    witness_tree: WitnessTree, tmp_path: Path, removal: Callable[[Path], None]
) -> None:
    check_that_locks_are_kept(witness_tree, tmp_path, removal)


@pytest.mark.slow
def test_locks_are_kept_when_the_cache_and_uvs_lock_are_removed(witness_tree: WitnessTree, tmp_path: Path) -> None:
    check_that_locks_are_kept(witness_tree, tmp_path, remove_everything)


def check_that_locks_are_kept(witness_tree: WitnessTree, tmp_path: Path, removal: Callable[[Path], None]) -> None:
    """One build runs, another waits; then files are removed, and a third one starts, with another lock file."""
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    early = witness_tree.start(gate=gate.path)
    wait_until_it_waits(early)
    removal(tmp_path)
    late = witness_tree.start(gate=gate.path)
    assert f", held by {holder.pid} (" in wait_until_it_waits(late)
    assert len(witness_tree.entered("build_wheel")) == 1
    gate.open()
    # One of the two is in now. The files go again, under the feet of the other one.
    witness_tree.wait_for_entry(count=2)
    removal(tmp_path)
    latest = witness_tree.start(gate=gate.path)
    wait_until_it_waits(latest)
    assert len(witness_tree.entered("build_wheel")) == 2
    for count in (3, 4):
        gate.open()
        witness_tree.wait_for_entry(count=count)
    gate.open()
    results = witness_tree.finish()
    assert [status for status, _, _ in results] == [0] * 4, results
    witness_tree.assert_no_overlap()


@pytest.mark.slow
def test_a_lock_that_nobody_holds_any_more_needs_no_file(witness_tree: WitnessTree, tmp_path: Path) -> None:
    for _ in range(2):
        witness_tree.assert_all_succeed(witness_tree.start())
        remove_everything(tmp_path)


@pytest.mark.slow
def test_builds_succeed_one_by_one_while_a_cleaner_removes_all_that_it_finds(
    witness_tree: WitnessTree, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    counted = context.Value("i", 0)
    cleaner = context.Process(target=clean, args=(tmp_path, stop, counted))
    cleaner.start()
    try:
        wait_until(lambda: counted.value, "the cleaner's first round")
        for _ in range(3):
            builds = [witness_tree.start(out_dir=witness_tree.control / f"out{number}") for number in range(6)]
            for status, _, error in witness_tree.finish(*builds):
                assert status == 0, error
                assert not warnings_in(error), "no other folder is needed"
    finally:
        stop.set()
        cleaner.join()
    witness_tree.assert_no_overlap()
    assert len(witness_tree.entered("build_wheel")) == 18
    assert counted.value > 100


def clean(tmp_path: Path, stop: Event, counted: object) -> None:
    while not stop.is_set():
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for name in os.listdir(tmp_path / "tmp"):
            if name.endswith(".lock"):
                (tmp_path / "tmp" / name).unlink(missing_ok=True)
        counted.value += 1  # type: ignore[attr-defined]


def test_a_lock_folder_that_is_removed_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the cleaner's part is played: it removes the cache folder as soon as there is one."""
    mkdir = os.mkdir
    removed: list[str] = []

    def make(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if not removed:
            removed.append(name)
            shutil.rmtree(tmp_path / "cache")

    monkeypatch.setattr(os, "mkdir", make)
    assert lock_folder(str(tmp_path / "cache"), Reporter()) == str(tmp_path / "cache" / "locks")
    assert removed == ["cache"]
    assert (tmp_path / "cache" / "locks").is_dir()

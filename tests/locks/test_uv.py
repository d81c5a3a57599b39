"""`uv build` and `lockbuild` beside each other on one setuptools tree: each waits for the other.

Both name uv's lock file by the same digest. The first tests here ask a real uv which file it opens, and fail if a later
uv chooses another name; then there would be two locks, and nobody else would notice.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.locks import cache_digest
from lockbuild.locks.source_tree import uv_lock_file
from machine import PublicPlace, as_root, linux_only, public_place, read_message, second_tree, wait_until_it_waits
from witness import PATIENCE, Gate, WitnessTree, wait_until

pytestmark = [linux_only, pytest.mark.slow]

UV_BUILD = ("uv", "build", "--no-build-isolation", "--python", sys.executable, "--offline", "--no-config")


@pytest.fixture
def tree(witness_tree: WitnessTree) -> WitnessTree:
    """A tree that setuptools builds."""
    witness_tree.use_setuptools()
    return witness_tree


def start_uv(tree: WitnessTree, gate: Gate | None = None) -> subprocess.Popen[str]:
    # The shebang-less uv of this environment, not one that PATH may have.
    uv = Path(sys.executable).with_name("uv")
    words = (*UV_BUILD[1:], "--wheel", "--out-dir", str(tree.control / "uv-out"), str(tree.path))
    return tree.start_process(str(uv), *words, gate=gate.path if gate else None)


def open_files(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(descriptor))
    return found


@pytest.mark.parametrize(
    "name", ["plain", "with space", "ünï-ço∂é ☃", "dots.in.1.0", ".hidden/..odd..", "a/b/c/d/e/f/gh"]
)
def test_uv_locks_the_file_that_our_digest_names(tree: WitnessTree, tmp_path: Path, name: str) -> None:
    tree = second_tree(tree, tmp_path / "uv" / name)
    gate = tree.make_gate()
    uv = start_uv(tree, gate)
    tree.wait_for_entry()
    canonical = os.path.realpath(tree.path)
    assert uv_lock_file(cache_digest(canonical)) in open_files(uv.pid)
    gate.open()
    [(status, _, error)] = tree.finish(uv)
    assert status == 0, error


def test_lockbuild_waits_for_uv_and_names_it(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    uv = start_uv(tree, gate)
    tree.wait_for_entry()
    waiter = tree.start()
    message = wait_until_it_waits(waiter)
    assert f"{tree.path}, held by {uv.pid} (" in message
    assert "uv build" in message
    assert len(tree.entered("build_wheel")) == 1
    gate.open()
    check_that_both_succeeded(tree, uv, waiter)


def test_uv_waits_for_lockbuild(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path)
    tree.wait_for_entry()
    uv = start_uv(tree)
    lock_file = uv_lock_file(cache_digest(os.path.realpath(tree.path)))
    # uv tries once and then waits in flock, which the kernel lists with an arrow.
    wait_until(lambda: uv.poll() is not None or waits_for_flock(uv.pid, lock_file), "uv's wait for our lock")
    assert uv.poll() is None, uv.communicate()
    assert len(tree.entered("build_wheel")) == 1
    gate.open()
    check_that_both_succeeded(tree, uv, holder)


def waits_for_flock(pid: int, path: str) -> bool:
    """Tell whether a process has a file open and somebody waits in flock for the lock on that file."""
    if path not in open_files(pid):
        return False
    inode = os.stat(path).st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(fields[1] == "->" and fields[-3].endswith(f":{inode}") for fields in locks)


def check_that_both_succeeded(tree: WitnessTree, uv: subprocess.Popen[str], lockbuild: subprocess.Popen[str]) -> None:
    for status, _, error in tree.finish(uv, lockbuild):
        assert status == 0, error
    tree.assert_no_overlap()
    assert len(tree.entered("build_wheel")) == 2
    assert [file.suffix for file in (tree.control / "uv-out").glob("*.whl")] == [".whl"]


def test_many_of_both_never_build_together(tree: WitnessTree) -> None:
    for number in range(3):
        tree.start(out_dir=tree.control / f"out{number}")
        start_uv(tree)
    for status, _, error in tree.finish():
        assert status == 0, error
    tree.assert_no_overlap()
    assert len(tree.entered("build_wheel")) == 6


@as_root
def test_a_lock_file_of_uv_that_is_another_users_is_told_and_stops_nobody() -> None:
    with public_place() as place:
        lock_file = foreign_lock_file(place)
        lock_file.chmod(0o600)
        error = build_as_alice(place)
        assert f"Not sharing uv's lock {lock_file}: Permission denied" in error


@as_root
def test_an_unwritable_tmpdir_with_no_lock_file_of_uv_is_told_and_stops_nobody() -> None:
    with public_place() as place:
        lock_file = foreign_lock_file(place)
        lock_file.unlink()
        lock_file.parent.chmod(0o755)
        error = build_as_alice(place)
        assert f"Not sharing uv's lock {lock_file}: Permission denied" in error


ALICE = 64_003


def foreign_lock_file(place: PublicPlace) -> Path:
    """Make uv's lock file for the place's tree, which is root's, in a folder for everybody's temporary files."""
    digest = cache_digest(os.path.realpath(place.tree.path))
    lock_file = place.shared_folder("tmp") / f"uv-setuptools-{digest}.lock"
    lock_file.touch()
    return lock_file


def build_as_alice(place: PublicPlace) -> str:
    alice = place.user(ALICE)
    env = alice.environ | {"TMPDIR": str(place.path / "tmp"), "COLUMNS": "2000"}
    build = place.tree.start("--wheel", "-v", command=alice.lockbuild, env=env)
    [(status, _, error)] = place.tree.finish(build)
    assert status == 0, error
    assert len(place.tree.entered("build_wheel")) == 1
    return error


def test_a_uv_lock_that_comes_free_late_is_waited_for_however_often_it_is_told(tree: WitnessTree) -> None:
    """What goes wrong in telling of the wait does not turn it into a build without the lock."""
    gate = tree.make_gate()
    uv = start_uv(tree, gate)
    tree.wait_for_entry()
    program = """\
import sys
from lockbuild.events import Reporter
from lockbuild.locks import SourceTreeLock

class Broken(Reporter):
    def waiting(self, wait):
        raise BlockingIOError("the terminal takes no more")

try:
    with SourceTreeLock(sys.argv[1], reporter=Broken()):
        print("locked", file=sys.stderr)
except BlockingIOError as error:
    print("told:", error, file=sys.stderr)
"""
    process = tree.start_process(sys.executable, "-c", program, str(tree.path))
    assert read_message(process, "") == "told: the terminal takes no more"
    gate.open()
    for status, _, error in tree.finish(uv):
        assert status == 0, error
    assert process.wait(PATIENCE) == 0

"""A lock that is not free in time is an error, exit status 75, and never a build without it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.errors import LockTimeoutError
from lockbuild.events import LockWait, Reporter
from lockbuild.locks import SourceTreeLock, cache_digest
from witness import WitnessTree

HOLDER = """
import fcntl, os, sys
path = sys.argv[1]
descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def flocked(path: Path) -> Iterator[int]:
    """Have another process hold the kernel's lock on a file or directory, as ``flock PATH`` does; yield its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.stdin.close()


def lock_path(tree: WitnessTree, which: str) -> Path:
    digest = cache_digest(tree.path.resolve())
    return {
        "directory": tree.path,
        "lock file": Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks", f"setuptools-{digest}.lock"),
        "lock file of uv": Path(os.environ["TMPDIR"], f"uv-setuptools-{digest}.lock"),
    }[which]


def assert_gives_up(tree: WitnessTree, *options: str, env: dict[str, str | None] | None = None) -> str:
    """Assert that a build gives up without having built anything; return its error."""
    hooks = tree.log()
    out_dir = tree.control / "late"
    [(status, out, err)] = tree.finish(tree.start("--wheel", *options, out_dir=out_dir, env=env))
    assert status == 75
    assert out == ""
    assert tree.log() == hooks
    assert not out_dir.exists()
    left = [name for name in os.listdir(os.environ["TMPDIR"]) if not name.startswith("uv-setuptools-")]
    assert left == []
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize("which", ["directory", "lock file", "lock file of uv"])
def test_one_of_the_three_locks_held_by_somebody_is_enough(witness_tree: WitnessTree, which: str) -> None:
    path = lock_path(witness_tree, which)
    with flocked(path) as holder:
        error = assert_gives_up(witness_tree, "--lock-timeout", "0.1")
        assert error.startswith(f"ERROR Gave up after 0.1 s: the lock on {witness_tree.path} (")
        assert f"is held by {holder} (" in error
        assert str(path) in error or which == "directory"
        waiter = witness_tree.start()
        assert waiter.stderr is not None
        assert f"held by {holder} (" in waiter.stderr.readline()
        assert witness_tree.log() == []
    witness_tree.assert_all_succeed(waiter)


def test_after_a_timeout_no_lock_is_left(witness_tree: WitnessTree) -> None:
    # The lock of uv is the last of the three: whoever gives up there has the other two.
    with flocked(lock_path(witness_tree, "lock file of uv")):
        assert_gives_up(witness_tree, "--lock-timeout", "0")
        for which in ("directory", "lock file"):
            with flocked(lock_path(witness_tree, which)):
                pass
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--lock-timeout", "0"))


def test_the_environment_variable_sets_the_timeout(witness_tree: WitnessTree) -> None:
    with flocked(witness_tree.path):
        error = assert_gives_up(witness_tree, env={"LOCKBUILD_LOCK_TIMEOUT": "0.25"})
    assert error.startswith("ERROR Gave up after 0.25 s: ")


def test_the_option_wins_over_the_environment_variable(witness_tree: WitnessTree) -> None:
    with flocked(witness_tree.path):
        error = assert_gives_up(witness_tree, "--lock-timeout", "0.1", env={"LOCKBUILD_LOCK_TIMEOUT": "1000"})
        assert error.startswith("ERROR Gave up after 0.1 s: ")
        waiter = witness_tree.start("--wheel", "--lock-timeout", "1000", env={"LOCKBUILD_LOCK_TIMEOUT": "0"})
        assert waiter.stderr is not None
        assert "; waiting for up to 1000 s" in waiter.stderr.readline()
    witness_tree.assert_all_succeed(waiter)


def test_an_empty_environment_variable_is_none(witness_tree: WitnessTree) -> None:
    with flocked(witness_tree.path):
        waiter = witness_tree.start(env={"LOCKBUILD_LOCK_TIMEOUT": ""})
        assert waiter.stderr is not None
        assert "; waiting without a limit, " in waiter.stderr.readline()
    witness_tree.assert_all_succeed(waiter)


def test_a_timeout_of_zero_does_not_wait_for_a_lock_and_takes_a_free_one(witness_tree: WitnessTree) -> None:
    with flocked(witness_tree.path):
        error = assert_gives_up(witness_tree, "--lock-timeout", "0")
        assert error.startswith("ERROR Gave up after 0 s: ")
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--lock-timeout", "0"))


@pytest.mark.parametrize("value", ["-1", "nan", "soon", "1 s", "0x10"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(witness_tree: WitnessTree, value: str) -> None:
    by_option = witness_tree.start("--wheel", f"--lock-timeout={value}")
    by_variable = witness_tree.start(env={"LOCKBUILD_LOCK_TIMEOUT": value})
    [(option_status, _, option_error), (variable_status, _, variable_error)] = witness_tree.finish()
    assert option_status == 2
    assert f"argument --lock-timeout: invalid number of seconds value: '{value}'" in option_error
    assert variable_status == 1
    assert variable_error.splitlines()[-1] == f"ERROR LOCKBUILD_LOCK_TIMEOUT must be a number of seconds, not '{value}'"
    assert by_option.args != by_variable.args
    assert witness_tree.log() == []


@pytest.mark.parametrize("value", ["inf", "1e300"])
def test_a_timeout_beyond_all_measure_waits(witness_tree: WitnessTree, value: str) -> None:
    with flocked(witness_tree.path):
        waiter = witness_tree.start("--wheel", "--lock-timeout", value)
        assert waiter.stderr is not None
        assert "Waiting for the lock" in waiter.stderr.readline()
    witness_tree.assert_all_succeed(waiter)


def test_the_timeout_is_one_for_all_three_locks(witness_tree: WitnessTree) -> None:
    class Waits(Reporter):
        def __init__(self) -> None:
            self.seen: list[LockWait] = []

        def waiting(self, wait: LockWait) -> None:
            self.seen.append(wait)
            first.close()

    waits = Waits()
    with contextlib.ExitStack() as first, flocked(lock_path(witness_tree, "lock file of uv")):
        first.enter_context(flocked(lock_path(witness_tree, "lock file")))
        lock = SourceTreeLock(witness_tree.path, timeout=2.0, reporter=waits)
        with pytest.raises(LockTimeoutError), lock:
            pass
    assert {Path(wait.lock_file).name.partition("-")[0] for wait in waits.seen} == {"setuptools", "uv"}
    assert [wait.waited for wait in waits.seen] == sorted(wait.waited for wait in waits.seen)
    assert waits.seen[-1].waited < 2.0


def test_builds_that_lock_nothing_do_not_time_out(witness_tree: WitnessTree) -> None:
    with flocked(witness_tree.path):
        witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--lock", "never", "--lock-timeout", "0"))

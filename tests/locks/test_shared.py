"""Shared locks: their holders run together, never beside an exclusive holder, and let one that waits have its turn."""

from __future__ import annotations

import fcntl
import itertools
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from lockbuild.locks import SourceTreeLock, cache_digest
from lockbuild.locks.source_tree import uv_lock_file
from machine import after_setup, as_root, linux_only
from witness import PATIENCE, end_all, wait_until

pytestmark = linux_only

Mode = Literal["shared", "exclusive"]

# Says when it waits and when it holds the lock. Holds it until a line comes.
HOLDER = """
import sys
from lockbuild.errors import LockbuildError
from lockbuild.events import Reporter
from lockbuild.locks import SourceTreeLock

class Teller(Reporter):
    def waiting(self, wait):
        print("waits for", wait.holder, "which is", wait.activity, flush=True)

tree, mode, *timeout = sys.argv[1:]
try:
    timeout = float(timeout[0]) if timeout else None
    with SourceTreeLock(tree, shared=mode == "shared", reporter=Teller(), timeout=timeout):
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
except LockbuildError as error:
    print(type(error).__name__, error, flush=True)
"""


class Holder:
    """A process that takes the lock on a tree."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    def line(self) -> str:
        return self._stdout.readline().strip()

    def until(self, beginning: str) -> str:
        """Read until a line begins so; return it."""
        return next(line for line in iter(self.line, "") if line.startswith(beginning))

    def release(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()
        self.until("released")
        self.process.wait(PATIENCE)


Start = Callable[..., Holder]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that takes the lock on a tree, run by another command if that is given."""
    tree = tmp_path / "tree"
    tree.mkdir()
    started = []

    def start(mode: Mode, *timeout: str, by: tuple[str, ...] = ()) -> Holder:
        started.append(Holder(*by, sys.executable, "-c", HOLDER, str(tree), mode, *timeout))
        return started[-1]

    yield start
    end_all(each.process for each in started)


def test_any_number_share_the_lock_at_the_same_time(start: Start) -> None:
    for holder in [start("shared") for _ in range(5)]:
        assert holder.line() == "held"


@pytest.mark.parametrize(("first", "second"), [("shared", "exclusive"), ("exclusive", "shared")])
def test_a_shared_and_an_exclusive_lock_exclude_each_other(start: Start, first: Mode, second: Mode) -> None:
    holder = start(first)
    assert holder.line() == "held"
    waiter = start(second)
    assert waiter.line().startswith(f"waits for {holder.process.pid} (")
    holder.release()
    waiter.until("held")


@pytest.mark.parametrize("target", ["directory", "uv's lock file"])
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_shared_lock_and_the_lock_of_another_program_exclude_each_other(
    start: Start, tmp_path: Path, target: str, first: str
) -> None:
    tree = tmp_path / "tree"
    path = str(tree) if target == "directory" else uv_lock_file(cache_digest(tree.resolve()))
    if first == "ours":
        ours = start("shared")
        assert ours.line() == "held"
        assert subprocess.run(["flock", "--nonblock", path, "true"], check=False).returncode == 1
        ours.release()
        subprocess.run(["flock", "--nonblock", path, "true"], check=True)
        return
    theirs = Holder("flock", path, "sh", "-c", "echo held; read line; echo released")
    assert theirs.line() == "held"
    ours = start("shared")
    assert ours.line().startswith("waits for ")
    theirs.release()
    ours.until("held")


def test_the_wait_names_all_that_share_the_lock(start: Start) -> None:
    holders = [start("shared") for _ in range(3)]
    assert [holder.line() for holder in holders] == ["held"] * 3
    line = start("exclusive").line()
    assert {str(holder.process.pid) for holder in holders} <= set(line.replace(",", "").split())


def test_a_timeout_of_either_kind_is_an_error(start: Start) -> None:
    holder = start("shared")
    assert holder.line() == "held"
    assert start("exclusive", "0.1").line().startswith("LockTimeoutError ")
    holder.release()
    assert start("exclusive").line() == "held"
    assert start("shared", "0.1").line().startswith("LockTimeoutError ")


def test_a_killed_holder_frees_its_share(start: Start) -> None:
    holders = [start("shared"), start("shared")]
    assert [holder.line() for holder in holders] == ["held"] * 2
    waiter = start("exclusive")
    waiter.until("waits")
    holders[0].process.kill()
    holders[0].process.wait()
    waiter.until(f"waits for {holders[1].process.pid} (")
    holders[1].process.kill()
    waiter.until("held")


@pytest.mark.parametrize("waiter", ["ours", "flock"])
def test_one_that_waits_for_the_exclusive_lock_gets_its_turn_before_others_share_it_again(
    start: Start, tmp_path: Path, waiter: str
) -> None:
    first = start("shared")
    assert first.line() == "held"
    if waiter == "ours":
        exclusive = start("exclusive")
        exclusive.until("waits")
    else:
        exclusive = Holder("flock", str(tmp_path / "tree"), "sh", "-c", "echo held; read line; echo released")
        wait_until(lambda: f" {exclusive.process.pid} " in waiting_flocks(), "flock")
    late = start("shared")
    line = late.line()
    assert line.startswith(f"waits for {exclusive.process.pid} (")
    assert line.endswith(f"which is waiting for the lock on {tmp_path / 'tree'}")
    first.release()
    exclusive.until("held")
    exclusive.release()
    late.until("held")


def waiting_flocks() -> str:
    return "\n".join(line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)


@pytest.mark.slow
def test_an_exclusive_lock_is_not_starved_by_a_stream_of_shared_ones(start: Start) -> None:
    """There is always one that shares the lock, unless new ones are kept from it."""
    holders = [start("shared"), start("shared")]
    assert [holder.line() for holder in holders] == ["held"] * 2
    waiter = start("exclusive")
    waiter.until("waits")
    for number in itertools.count():
        following = start("shared")
        assert following.line().startswith("waits"), f"the {number}th was let in"
        if number == len(holders):
            break
        holders[number].release()
    waiter.until("held")


def test_one_that_waits_and_is_stopped_does_not_keep_others_from_sharing_the_lock(start: Start) -> None:
    holder = start("shared")
    assert holder.line() == "held"
    stopped = start("exclusive")
    stopped.until("waits")
    stopped.process.send_signal(signal.SIGSTOP)
    late = start("shared")
    late.until("waits")
    holder.release()
    late.until("held")
    stopped.process.send_signal(signal.SIGCONT)
    late.release()
    stopped.until("held")


@pytest.mark.slow
@as_root
def test_one_that_cannot_see_the_holders_does_not_take_the_lock_for_free(start: Start) -> None:
    holder = start("shared")
    assert holder.line() == "held"
    exclusive = start("exclusive")
    exclusive.until("waits")
    late = start("shared", by=after_setup("", "--pid", command=()))
    # Twice as long as a lock has to be free.
    for _ in range(5):
        assert late.line().startswith("waits for None")
    holder.release()
    exclusive.until("held")
    exclusive.release()
    late.until("held")


def test_a_lock_on_a_part_of_a_lock_file_announces_nothing(start: Start, tmp_path: Path) -> None:
    """As a file system would show it on which flock locks all the bytes of a file."""
    first = start("shared")
    assert first.line() == "held"
    lock_file = uv_lock_file(cache_digest((tmp_path / "tree").resolve()))
    with open(lock_file, "rb") as opened:
        fcntl.fcntl(opened, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
        assert start("shared").line() == "held"


def test_builds_that_two_threads_run_go_on_under_the_lock_of_their_own_thread(start: Start, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    first, second = (SourceTreeLock(tree, shared=True) for _ in range(2))
    with first, second, first.lent() as environ:
        with second.lent():
            pass
        nested = start("exclusive", by=("env", *(f"{name}={value}" for name, value in environ.items())))
        assert nested.line() == "held"
        nested.release()


@pytest.mark.parametrize("mode", [(), ("--shared",)])
def test_under_flock_none_waits_for_one_that_waits_for_that_flock(
    start: Start, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    """``flock DIR COMMAND``, whose command first lets another process wait, and then shares the lock itself."""
    tree = str(tmp_path / "tree")
    script = 'echo held; read line; exec "$@"'
    outer = start("shared", by=("flock", *mode, tree, "sh", "-c", script, "sh"))
    assert outer.line() == "held"
    waiter = start("exclusive")
    waiter.until("waits")
    outer._stdin.write("\n")
    outer._stdin.flush()
    assert outer.line() == "held"
    outer.release()
    waiter.until("held")


def test_an_exclusive_lock_under_a_shared_flock_is_an_error(start: Start, tmp_path: Path) -> None:
    line = start("exclusive", by=("flock", "--shared", str(tmp_path / "tree"))).line()
    assert line.startswith("LockUnavailableError "), line
    assert line.endswith("holds a shared lock on it; let it take an exclusive lock, as flock does without --shared")


# As pip and uv start hooks.
CLOSING = "import os, sys, subprocess; sys.exit(subprocess.run(sys.argv[1:], close_fds=True).returncode)"


@as_root
@pytest.mark.parametrize("file_system", ["here", "btrfs"])
def test_an_exclusive_lock_under_a_shared_flock_that_it_has_not_inherited_is_an_error(
    start: Start, tmp_path: Path, file_system: str
) -> None:
    tree = str(tmp_path / "tree")
    command: tuple[str, ...] = ("flock", "--shared", tree, sys.executable, "-c", CLOSING)
    if file_system == "btrfs":
        if shutil.which("mkfs.btrfs") is None:
            pytest.skip("needs mkfs.btrfs")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(1 << 28)
        subprocess.run(["mkfs.btrfs", "--quiet", image], check=True)
        command = after_setup(f"mount -o loop {image} {tree}", command=command)
    line = start("exclusive", "20", by=command).line()
    assert line.startswith("LockUnavailableError "), line

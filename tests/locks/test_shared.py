"""Shared locks: their holders run together, never beside an exclusive holder, and let one that waits have its turn."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from lockbuild.locks import SourceTreeLock, cache_digest
from lockbuild.locks.nesting import remove_left_behind
from lockbuild.locks.source_tree import uv_lock_file
from lockbuild.views import View
from machine import after_setup, as_root, error_line, linux_only
from witness import LOCKBUILD, PATIENCE, WitnessTree, end_all, wait_until

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


@as_root
def test_builds_that_two_threads_run_go_on_under_the_lock_of_their_own_thread(start: Start, tmp_path: Path) -> None:
    tree, scratch = tmp_path / "tree", tmp_path / "scratch"
    scratch.mkdir()
    view = View(str(tree), str(scratch), (), (), (), clean=False)
    first, second = (SourceTreeLock(tree, shared=True) for _ in range(2))
    with first, second, first.lent() as environ:
        with second.lent():
            pass
        variables = [f"{name}={value}" for name, value in environ.items()]
        nested = start("exclusive", by=("env", *variables, *view.command()))
        assert nested.line() == "held"
        nested.release()


def test_a_clean_up_leaves_what_a_process_lends_that_shares_the_lock(tmp_path: Path) -> None:
    with SourceTreeLock(tmp_path, shared=True) as lock, lock.lent():
        assert lock.held is not None
        remove_left_behind(str(Path(lock.held.lock_file).parent))
        assert Path(lock.held.nested_lock_file).exists()


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


# Takes the lock in random ways until the time is over. Tells which others are inside whenever it is inside.
WITNESS = """
import fcntl, os, random, sys, time
from lockbuild.locks import SourceTreeLock

tree, inside, uv_lock_file, seconds = sys.argv[1:]
end = time.monotonic() + float(seconds)

def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *_, flags = file.read().rpartition(")")[2].split()[:7]
            # A process that is ending (PF_EXITING) has closed its files a moment before it counts as a zombie.
            return state not in "ZX" and not int(flags) & 4
    except OSError:
        return False

def witness(kind):
    mark = os.path.join(inside, f"{kind}-{os.getpid()}")
    open(mark, "w").close()
    for _ in range(2):
        others = [name.split("-") for name in os.listdir(inside)]
        for other, pid in others:
            if int(pid) != os.getpid() and is_running(pid):
                print(kind, other, flush=True)
        time.sleep(random.random() / 100)
    os.unlink(mark)

while time.monotonic() < end:
    kind = random.choice(["shared"] * 6 + ["exclusive", "flock", "uv"])
    if kind in ("shared", "exclusive"):
        with SourceTreeLock(tree, shared=kind == "shared", timeout=60):
            witness(kind)
    else:
        descriptor = os.open(tree if kind == "flock" else uv_lock_file, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        witness(kind)
        os.close(descriptor)
"""

SECONDS = float(os.environ.get("CHAOS_SECONDS", "6"))


@pytest.mark.slow
def test_no_holder_is_beside_an_exclusive_one_while_random_processes_are_killed_and_stopped(tmp_path: Path) -> None:
    """`CHAOS_SECONDS` sets how long it takes."""
    tree, inside = tmp_path / "tree", tmp_path / "inside"
    tree.mkdir()
    inside.mkdir()
    # One lock makes the lock file of uv.
    with SourceTreeLock(tree):
        pass
    end = time.monotonic() + SECONDS
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        words = (str(tree), str(inside), uv_lock_file(cache_digest(tree.resolve())), str(end - time.monotonic()))
        command = [sys.executable, "-c", WITNESS, *words]
        # Half of them have another cache folder, and so another lock file.
        env = os.environ | ({"LOCKBUILD_CACHE_DIR": str(tmp_path / "cache")} if len(started) % 2 else {})
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    try:
        running = [start() for _ in range(6)]
        killed = set()
        while time.monotonic() < end - 1:
            number = random.randrange(len(running))
            running[number].send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            if random.random() < 0.5:
                running[number].kill()
                killed.add(running[number])
                running[number] = start()
            else:
                running[number].send_signal(signal.SIGCONT)
        together = set()
        for process in started:
            out, err = process.communicate(timeout=PATIENCE)
            assert process in killed or process.returncode == 0, err
            together |= {frozenset(line.split()) for line in out.splitlines()}
    finally:
        end_all(started)
    # `flock` and uv do not know of each other.
    assert together - {frozenset({"flock", "uv"})} == {frozenset({"shared"})}


def test_a_build_under_a_lent_lock_that_is_shared_does_not_write_to_the_tree(witness_tree: WitnessTree) -> None:
    """Without a view, the lock of its ancestor does not give it the tree."""
    source = (
        "import os, subprocess, sys\nfrom lockbuild.locks import SourceTreeLock\n"
        "with SourceTreeLock(sys.argv[1], shared=True) as lock, lock.lent() as variables:\n"
        "    sys.exit(subprocess.run(sys.argv[2:], env=os.environ | variables).returncode)\n"
    )
    words = [*LOCKBUILD, "-n", "--wheel", "--outdir", str(witness_tree.out_dir), str(witness_tree.path)]
    process = witness_tree.start_process(sys.executable, "-c", source, str(witness_tree.path), *words)
    line = error_line(witness_tree.finish(process)[0])
    assert "holds a shared lock on it; let it take an exclusive lock" in line
    assert not witness_tree.log()

"""Several builds in one process: threads exclude each other, and a coroutine that waits does not stop its loop."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lockbuild.errors import LockTimeoutError
from lockbuild.events import LockWait, Reporter
from lockbuild.frontend import build
from lockbuild.locks import SourceTreeLock, cache_digest
from lockbuild.locks.source_tree import uv_lock_file
from lockbuild.request import BuildRequest
from machine import is_free
from witness import WitnessTree, wait_until


def request(tree: WitnessTree, out: str, cache_dir: Path | None = None) -> BuildRequest:
    return BuildRequest(
        source=str(tree.path),
        distributions=("wheel",),
        out_dir=str(tree.control / out),
        isolation=False,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue
    return found


class Waits(Reporter):
    """Notes for whom was waited, and tells that somebody waits."""

    def __init__(self) -> None:
        self.seen: list[LockWait] = []
        self.begun = threading.Event()

    def waiting(self, wait: LockWait) -> None:
        self.seen.append(wait)
        self.begun.set()


def test_threads_that_build_one_tree_exclude_each_other(
    witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITNESS_LOG", str(witness_tree.log_file))
    with ThreadPoolExecutor(4) as pool:
        builds = [pool.submit(build, request(witness_tree, f"out{number}")) for number in range(4)]
    for number, future in enumerate(builds):
        [artifact] = future.result().artifacts
        assert Path(artifact.path).parent == witness_tree.control / f"out{number}"
    assert len(witness_tree.entered("build_wheel")) == 4
    witness_tree.assert_no_overlap()


def test_threads_with_other_caches_and_temporary_folders_exclude_each_other_too(
    witness_tree: WitnessTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is one, and a thread does not take the lock of another one for a lock that its parent holds."""
    first = SourceTreeLock(witness_tree.path, cache_dir=tmp_path / "cache1")
    with first:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        second = SourceTreeLock(witness_tree.path, cache_dir=tmp_path / "cache2", timeout=0.1)
        with ThreadPoolExecutor(1) as pool, pytest.raises(LockTimeoutError) as caught:
            pool.submit(second.__enter__).result()
        assert caught.value.holder is not None
        assert caught.value.holder.pid == os.getpid()
    with second:
        assert not is_free(witness_tree.path)


@pytest.mark.slow
def test_a_thread_waits_for_a_process_and_a_process_for_a_thread(
    witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITNESS_LOG", str(witness_tree.log_file))
    first_gate, second_gate = witness_tree.make_gate("first"), witness_tree.make_gate("second")
    process = witness_tree.start(gate=first_gate.path)
    witness_tree.wait_for_entry()
    monkeypatch.setenv("WITNESS_GATE", str(second_gate.path))
    waits = Waits()
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(build, request(witness_tree, "thread"), waits)
        assert waits.begun.wait(60)
        assert waits.seen[0].holder is not None
        assert waits.seen[0].holder.pid == process.pid
        first_gate.open()
        witness_tree.assert_all_succeed(process)
        witness_tree.wait_for_entry(count=2)
        last = witness_tree.start(env={"WITNESS_GATE": None}, out_dir=witness_tree.control / "last")
        assert last.stderr is not None
        assert f"held by {os.getpid()} (" in last.stderr.readline()
        second_gate.open()
        assert thread.result().artifacts[0].name == "witness-1.0-py3-none-any.whl"
    witness_tree.assert_all_succeed(last)


def test_a_hook_of_one_thread_does_not_keep_the_lock_of_another(
    witness_tree: WitnessTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is started while another thread holds the lock of another tree: it may not inherit that."""
    other = tmp_path / "other"
    other.mkdir()
    gate = witness_tree.make_gate()
    monkeypatch.setenv("WITNESS_LOG", str(witness_tree.log_file))
    monkeypatch.setenv("WITNESS_GATE", str(gate.path))
    with ThreadPoolExecutor(1) as pool:
        with SourceTreeLock(other):
            thread = pool.submit(build, request(witness_tree, "thread"))
            hook = witness_tree.wait_for_entry()
            links = [os.readlink(entry) for entry in Path(f"/proc/{hook}/fd").iterdir()]
            assert str(witness_tree.path) in links
            assert str(other) not in links
        assert is_free(other)
        gate.open()
        thread.result()


def test_a_lock_that_is_held_cannot_be_entered_again(witness_tree: WitnessTree) -> None:
    lock = SourceTreeLock(witness_tree.path)
    with lock:
        before = lock.descriptors
        with pytest.raises(RuntimeError, match="is already held"), lock:
            pass
        # The mistake has not freed it.
        assert lock.descriptors == before
        assert not is_free(witness_tree.path)
    assert is_free(witness_tree.path)
    with lock:
        assert not is_free(witness_tree.path)


def test_two_threads_cannot_enter_one_lock_object(witness_tree: WitnessTree) -> None:
    lock = SourceTreeLock(witness_tree.path)
    with ThreadPoolExecutor(1) as pool, lock:
        with pytest.raises(RuntimeError, match="is already held"):
            pool.submit(lock.__enter__).result()
        assert not is_free(witness_tree.path)
    assert is_free(witness_tree.path)


def test_a_lock_is_free_after_an_exception_in_its_block(witness_tree: WitnessTree) -> None:
    class PassingError(Exception):
        pass

    before = descriptors()
    for error in (PassingError(), KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(error)), SourceTreeLock(witness_tree.path):
            raise error
        assert is_free(witness_tree.path)
    assert descriptors() == before


HOLDER = """
import sys
from lockbuild.locks import SourceTreeLock
with SourceTreeLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_holder(tree: WitnessTree) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tree.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tree.started.append(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def let_go(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()


def test_an_event_loop_runs_on_while_a_coroutine_waits(witness_tree: WitnessTree) -> None:
    holder = start_holder(witness_tree)

    async def tick(ticks: list[float], until: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not until.is_set():
            ticks.append(loop.time())
            await asyncio.sleep(0.001)

    async def wait() -> tuple[list[float], float]:
        ticks: list[float] = []
        got_it = asyncio.Event()
        ticking = asyncio.create_task(tick(ticks, got_it))
        lock = SourceTreeLock(witness_tree.path)
        waiting = asyncio.create_task(lock.__aenter__())
        started = asyncio.get_running_loop().time()
        while len(ticks) < 100:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        let_go(holder)
        await waiting
        assert not is_free(witness_tree.path)
        await lock.__aexit__(None, None, None)
        got_it.set()
        await ticking
        return ticks, started

    ticks, started = asyncio.run(wait())
    assert len([moment for moment in ticks if moment >= started]) >= 90
    assert is_free(witness_tree.path)


def test_coroutines_of_one_loop_exclude_each_other(witness_tree: WitnessTree) -> None:
    inside: list[int] = []
    most: list[int] = []

    async def enter(number: int) -> None:
        async with SourceTreeLock(witness_tree.path):
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0.005)
            inside.remove(number)

    async def run() -> None:
        await asyncio.gather(*map(enter, range(8)))

    asyncio.run(run())
    assert most == [1] * 8


@pytest.mark.parametrize("how", ["cancel", "timeout of asyncio", "timeout of the lock"])
def test_a_coroutine_that_stops_waiting_leaves_no_lock_and_no_descriptor(witness_tree: WitnessTree, how: str) -> None:
    # The lock file of uv is the last of the three: who waits for it has had the others.
    path = uv_lock_file(cache_digest(os.path.realpath(witness_tree.path)))
    with SourceTreeLock(witness_tree.path):
        assert not is_free(Path(path))
    holder = subprocess.Popen(
        ["flock", path, "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    witness_tree.started.append(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    async def give_up() -> None:
        # The loop itself has opened descriptors by now.
        before = descriptors()
        waits = Waits()
        limit = 0.1 if how == "timeout of the lock" else None
        waiting = asyncio.create_task(SourceTreeLock(witness_tree.path, timeout=limit, reporter=waits).__aenter__())
        error: type[BaseException]
        if how == "cancel":
            while not waits.seen:
                assert not waiting.done()
                await asyncio.sleep(0.001)
            waiting.cancel()
            error = asyncio.CancelledError
        elif how == "timeout of asyncio":
            waiting = asyncio.create_task(asyncio.wait_for(waiting, 0.1))
            error = TimeoutError
        else:
            error = LockTimeoutError
        # As long as the exception lives, so does its traceback with the frames in it.
        with pytest.raises(error) as caught:
            await waiting
        assert descriptors() == before
        assert is_free(witness_tree.path)
        assert caught.value is not None

    gc.disable()
    try:
        asyncio.run(give_up())
    finally:
        gc.enable()
    let_go(holder)
    holder.wait()
    wait_until(lambda: is_free(Path(path)), "the release")
    with SourceTreeLock(witness_tree.path, timeout=0):
        assert not is_free(witness_tree.path)

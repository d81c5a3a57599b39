"""The processes of a run: which builds share one, and when one ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import lockbuild
from lockbuild.many import executors
from lockbuild.many.executors import Workers
from lockbuild.processes import descendants
from lockbuild.request import BuildRequest
from machine import linux_only
from witness import PATIENCE, WitnessTree, wait_until

pytestmark = linux_only

Build = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def request_for(witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch) -> BuildRequest:
    monkeypatch.setenv("WITNESS_LOG", str(witness_tree.log_file))
    monkeypatch.setenv("WITNESS_WORK", "0")
    return BuildRequest(
        str(witness_tree.path),
        ("wheel",),
        out_dir=str(witness_tree.out_dir),
        isolation=False,
        skip_dependency_check=True,
        lock="never",
    )


def run(request: BuildRequest, log: Path, use: Callable[[Workers, Build], Awaitable[None]]) -> None:
    """Use some workers, which then end."""

    async def main() -> None:
        async with Workers() as workers:

            async def build(**variables: str) -> None:
                await workers.build(request, None, str(log), lambda _: None, variables)

            await asyncio.wait_for(use(workers, build), PATIENCE)

    asyncio.run(main())
    assert not processes()


async def held_in_hook(build: Build, tree: WitnessTree) -> asyncio.Task[None]:
    """Start a build, and return it when its hook waits at a gate that nothing opens."""
    held = asyncio.create_task(build(WITNESS_GATE=str(tree.make_gate().path)))
    while not tree.entered("build_wheel"):
        await asyncio.sleep(0.01)
    return held


def processes() -> set[int]:
    """Return the processes that build for this one."""
    found = set()
    for each in descendants():
        try:
            if b"lockbuild.commands.worker" in Path(f"/proc/{each.pid}/cmdline").read_bytes():
                found.add(each.pid)
        except FileNotFoundError:
            pass
    return found


def test_builds_that_follow_each_other_have_one_process(request_for: BuildRequest, tmp_path: Path) -> None:
    async def use(_: Workers, build: Build) -> None:
        await build()
        first = processes()
        assert len(first) == 1
        await build()
        assert processes() == first

    run(request_for, tmp_path / "log", use)


def test_builds_at_once_have_a_process_each(request_for: BuildRequest, tmp_path: Path) -> None:
    async def use(_: Workers, build: Build) -> None:
        await asyncio.gather(build(), build())
        assert len(processes()) == 2

    run(request_for, tmp_path / "log", use)


def test_a_build_with_other_variables_has_another_process_in_place_of_the_first(
    request_for: BuildRequest, tmp_path: Path
) -> None:
    async def use(_: Workers, build: Build) -> None:
        await build()
        first = processes()
        await build(WITNESS_VERSION="2.0")
        second = processes()
        assert first != second
        wait_until(lambda: len(processes()) == 1, "the end of the first process")

    run(request_for, tmp_path / "log", use)
    names = sorted(path.name for path in Path(str(request_for.out_dir)).iterdir())
    assert names == ["witness-1.0-py3-none-any.whl", "witness-2.0-py3-none-any.whl"]


def test_a_process_for_which_no_build_comes_ends(
    request_for: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_IDLE_SECONDS", 0.0)

    async def use(_: Workers, build: Build) -> None:
        await build()
        while processes():
            await asyncio.sleep(0.01)
        await build()

    run(request_for, tmp_path / "log", use)


def test_a_process_that_was_killed_fails_its_build_and_no_other(
    request_for: BuildRequest, witness_tree: WitnessTree, tmp_path: Path
) -> None:
    async def use(workers: Workers, build: Build) -> None:
        held = await held_in_hook(build, witness_tree)
        [process] = processes()
        os.kill(process, signal.SIGKILL)
        with pytest.raises(lockbuild.WorkerError, match="status -9"):
            await held
        await build()
        [process] = processes()
        os.kill(process, signal.SIGKILL)
        # Until the event loop has heard of it as well.
        while workers._waiting[0].process.is_ready:
            await asyncio.sleep(0.01)
        await build()

    run(request_for, tmp_path / "log", use)
    assert "status -9" in (tmp_path / "log").read_text()


def test_a_build_that_is_cancelled_takes_its_process_along(
    request_for: BuildRequest, witness_tree: WitnessTree, tmp_path: Path
) -> None:
    async def use(_: Workers, build: Build) -> None:
        held = await held_in_hook(build, witness_tree)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        assert not processes()

    run(request_for, tmp_path / "log", use)

"""A holder that is stopped (SIGSTOP, Ctrl-Z, a debugger) holds on: who waits names it, and goes on after it."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from machine import parent, state
from witness import WitnessTree, wait_until


def wait_until_stopped(pid: int) -> None:
    wait_until(lambda: state(pid) in "Tt", f"{pid} stopped")


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.slow
@pytest.mark.parametrize("also", [(), ("host",), ("hook",), ("host", "hook")], ids=lambda also: "+".join(also) or "-")
def test_who_waits_for_a_stopped_build_names_it_and_goes_on_after_it(
    witness_tree: WitnessTree, also: tuple[str, ...]
) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    hook = witness_tree.wait_for_entry()
    host = parent(hook)
    stopped = [holder.pid, *({"host": host, "hook": hook}[name] for name in also)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        wait_until_stopped(pid)
    waiters = [witness_tree.start(out_dir=witness_tree.control / f"out{number}") for number in range(2)]
    for waiter in waiters:
        assert first_line(waiter).startswith(f"* Waiting for the lock on {witness_tree.path}, held by {holder.pid} (")
    late = witness_tree.start("--wheel", "--lock-timeout", "0.1", out_dir=witness_tree.control / "late")
    [(status, _, error)] = witness_tree.finish(late)
    assert status == 75
    assert f"is held by {holder.pid} (" in error.splitlines()[-1]
    assert len(witness_tree.entered("build_wheel")) == 1
    if "hook" not in also:
        # The hook goes on without its frontend, and the lock stays with the frontend.
        gate.open()
        wait_until(lambda: ("leave", hook, "build_wheel") in witness_tree.log(), "the end of the hook")
        assert len(witness_tree.entered("build_wheel")) == 1
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    if "hook" in also:
        gate.open()
    witness_tree.assert_all_succeed(holder, *waiters)
    assert len(witness_tree.entered("build_wheel")) == 3


def test_a_stopped_build_that_is_killed_frees_the_lock(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    hook = witness_tree.wait_for_entry()
    for pid in (holder.pid, hook):
        os.kill(pid, signal.SIGSTOP)
        wait_until_stopped(pid)
    waiter = witness_tree.start()
    assert f"held by {holder.pid} (" in first_line(waiter)
    holder.kill()
    witness_tree.assert_all_succeed(waiter)


def test_a_stopped_waiter_holds_nothing(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    stopped = witness_tree.start(out_dir=witness_tree.control / "stopped")
    assert "Waiting for the lock" in first_line(stopped)
    stopped.send_signal(signal.SIGSTOP)
    wait_until_stopped(stopped.pid)
    gate.open()
    witness_tree.assert_all_succeed(holder)
    witness_tree.assert_all_succeed(witness_tree.start(out_dir=witness_tree.control / "other"))
    stopped.send_signal(signal.SIGCONT)
    witness_tree.assert_all_succeed(stopped)

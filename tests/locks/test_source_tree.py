"""Builds of one tree: they wait for each other and say so."""

from __future__ import annotations

from witness import WitnessTree


def test_ten_builds_at_once_never_run_hooks_together(witness_tree: WitnessTree) -> None:
    for number in range(10):
        witness_tree.start(out_dir=witness_tree.control / f"out{number}")
    witness_tree.assert_all_succeed()
    assert len(witness_tree.entered("build_wheel")) == 10


def test_a_build_that_waits_says_for_whom_and_when_it_is_over(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start()
    assert waiter.stderr is not None
    line = waiter.stderr.readline()
    assert line.startswith(f"* Waiting for the lock on {witness_tree.path}, held by {holder.pid} (")
    assert "(lockbuild -n --wheel " in line
    gate.open()
    witness_tree.assert_all_succeed()
    assert witness_tree.entered("build_wheel")[0] != witness_tree.entered("build_wheel")[1]


def test_a_timeout_is_exit_status_75_and_builds_nothing(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start("--wheel", "--lock-timeout", "0.2", out_dir=witness_tree.control / "second")
    [(status, _, error)] = witness_tree.finish(waiter)
    assert status == 75
    message = error.splitlines()[-1]
    assert message.startswith("ERROR Gave up after 0.2 s: ")
    assert str(witness_tree.path) in message
    assert f"held by {holder.pid} (" in message
    assert ".lock" in message
    gate.open()
    witness_tree.assert_all_succeed(holder)
    assert len(witness_tree.entered("build_wheel")) == 1
    assert not (witness_tree.control / "second").exists()

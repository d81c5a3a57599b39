"""Forty processes at once on one tree: each gets the lock in its turn, and the turns follow each other quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from witness import WitnessTree

HANDOVER = Path(__file__).parents[2] / "benchmarks" / "handover.py"


@pytest.mark.slow
def test_forty_builds_at_once_all_succeed(witness_tree: WitnessTree) -> None:
    for number in range(40):
        witness_tree.start(out_dir=witness_tree.control / f"out{number}")
    witness_tree.assert_all_succeed()
    for hook in ("get_requires_for_build_wheel", "build_wheel"):
        assert len(set(witness_tree.entered(hook))) == 40
    for number in range(40):
        assert (witness_tree.control / f"out{number}" / "witness-1.0-py3-none-any.whl").exists()


@pytest.mark.slow
def test_forty_builds_at_once_into_one_folder_all_succeed(witness_tree: WitnessTree) -> None:
    for _ in range(40):
        witness_tree.start()
    witness_tree.assert_all_succeed()
    assert [path.name for path in witness_tree.out_dir.iterdir()] == ["witness-1.0-py3-none-any.whl"]


@pytest.mark.slow
def test_a_lock_is_handed_over_within_thirty_milliseconds_at_the_median() -> None:
    done = subprocess.run(
        [sys.executable, str(HANDOVER), "--waiters", "10"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    waiters, handovers, median, _ = done.stdout.splitlines()[-1].split()
    assert waiters == "10"
    assert int(handovers) > 50
    assert float(median) < 30

"""Where the time of a build went, as ``--timings`` prints and reports it."""

from __future__ import annotations

import json
import re

import pytest

from machine import wait_until_it_waits
from witness import WitnessTree


def test_timings_name_each_step_and_are_in_the_report(witness_tree: WitnessTree) -> None:
    report = witness_tree.control / "report.json"
    build = witness_tree.start("--wheel", "--timings", "--report", str(report), env={"WITNESS_WORK": "0.2"})
    [(status, out, error)] = witness_tree.finish(build)
    assert status == 0
    printed = dict(re.findall(r"^  (\w+) +([\d.]+) ms$", error, re.MULTILINE))
    steps = ["start", "lock", "get_requires_for_build_wheel", "build_wheel", "publish"]
    assert list(printed) == [*steps, "total"]
    timings = json.loads(report.read_text())["timings"]
    assert [timing["step"] for timing in timings] == steps
    for timing in timings:
        assert timing["seconds"] * 1000 == pytest.approx(float(printed[timing["step"]]), abs=0.1)
    assert sum(timing["seconds"] for timing in timings) * 1000 == pytest.approx(float(printed["total"]), abs=1)
    # The witness stays in each hook for that long.
    assert all(timing["seconds"] >= 0.2 for timing in timings if timing["step"].endswith("build_wheel"))
    assert out.splitlines()[-1].startswith("Successfully built ")


def test_the_wait_for_the_lock_is_a_step_of_its_own(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    first = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    second = witness_tree.start("--wheel", "--timings", out_dir=witness_tree.control / "second")
    wait_until_it_waits(second)
    gate.open()
    [_, (status, _, error)] = witness_tree.finish(first, second)
    assert status == 0
    [waited] = re.findall(r"^  lock +([\d.]+) ms$", error, re.MULTILINE)
    # A wait is told of when it has lasted for half a second.
    assert float(waited) >= 500


def test_unpacking_an_sdist_is_a_step_that_is_told(witness_tree: WitnessTree) -> None:
    [(status, out, _)] = witness_tree.finish(witness_tree.start("--sdist", "--json"))
    assert status == 0
    assert '"step": "unpack"' not in out
    [sdist] = witness_tree.out_dir.glob("*.tar.gz")
    [(status, out, _)] = witness_tree.finish(witness_tree.start("--wheel", "--json", source=sdist))
    assert status == 0
    assert '{"event": "began", "step": "unpack"}' in out


def test_without_the_option_nothing_is_printed_or_reported(witness_tree: WitnessTree) -> None:
    report = witness_tree.control / "report.json"
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "--report", str(report)))
    assert status == 0
    assert "Timings" not in error
    assert "timings" not in json.loads(report.read_text())

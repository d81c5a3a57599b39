"""Whatever fails or is killed, at whichever system call: nothing is torn, broken, locked or left.

``FAULTS=all`` tries every fault, which takes a quarter of an hour; ``-rP`` shows the counts. Another value is the seed
of a sample.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from faults import SCENARIOS, TOLERATED, Place, describe

FAULTS = os.environ.get("FAULTS", "0")
SAMPLE = 3

# In how many tests all faults of a scenario are tried, so that several workers can share them.
PARTS = 4 if FAULTS == "all" else 1

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_stays_broken_whatever_fails_or_is_killed(name: str, part: int, place: Place) -> None:
    if FAULTS == "all":
        faults = place.faults(name)[part::PARTS]
    else:
        # The same ones in each run, though another machine makes some calls more or fewer.
        faults = sorted(place.all_faults(name), key=lambda fault: random.Random(f"{FAULTS} {fault}").random())[:SAMPLE]
    counts = Counter(runs=len(faults))
    problems = []
    for fault in faults:
        wrong = place.verdict(SCENARIOS[name], fault)
        counts.update(wrong.keys())
        if wrong.keys() - TOLERATED:
            problems.append(describe(fault, wrong))
    print(f"{name}: {dict(counts)}")
    assert not problems, "\n".join(problems)


# What such a loop has found before.
@pytest.mark.parametrize(
    ("name", "error", "pattern"),
    [
        pytest.param("a warm build", "ENOSPC", r"openat.*\.nested", id="a full disk is not the backend's failure"),
        pytest.param("a warm build", "EIO", r"getdents64.*/tmpN>", id="files exchanged with a hook are removed"),
        pytest.param("an sdist and a wheel", "EIO", r"getdents64.*via-sdist", id="an unpacked sdist is removed"),
        pytest.param("a new environment", "ENOMEM", r"clone3.*CLONE_THREAD", id="without threads none is kept"),
        pytest.param("the host of a warm build", "ENOMEM", r"clone", id="a host that cannot fork says why"),
    ],
)
def test_a_fault_that_was_mended(name: str, error: str, pattern: str, place: Place) -> None:
    fault = place.fault_at(name, error, pattern)
    wrong = place.verdict(SCENARIOS[name], fault)
    assert wrong == {}, describe(fault, wrong)

"""Whatever fails or is killed, at whichever system call: nothing is torn, broken, locked or left.

``FAULTS=all`` tries every fault; it takes about 10 minutes. Otherwise a sample is taken: ``FAULTS`` may be its seed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from faults import SCENARIOS, Place, describe

SEED = os.environ.get("FAULTS", "0")
SAMPLE = 6

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_stays_broken_whatever_fails_or_is_killed(name: str, tmp_path: Path) -> None:
    place, scenario = Place(tmp_path / "place"), SCENARIOS[name]
    faults = list(place.faults(name))
    if SEED != "all":
        faults = random.Random(SEED).sample(faults, SAMPLE)
    counts: Counter[str] = Counter(runs=len(faults))
    problems = []
    for fault in faults:
        wrong = place.verdict(scenario, fault)
        counts.update(wrong.keys() - {"at"})
        if wrong.keys() - {"at", "left by a killed build"}:
            problems.append(describe(fault, wrong))
    print(f"{name}: {dict(counts)}")
    assert not problems, "\n".join(problems)

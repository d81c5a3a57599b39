"""A minute in which six workers build one tree while random frontends are killed, and what must be true of it.

The kills come at random moments of a build's life, by a seeded generator. A seed that has failed can be given again in
``CHAOS_SEED``, a longer or shorter minute in ``CHAOS_SECONDS``.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from witness import WitnessTree, wait_until

WORKERS = 6
SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))

# What hooks do besides what the witness does: start a compiler, and look for others' files in the tree.
CHAOTIC_BACKEND = """
import contextlib, os, subprocess, sys
import witness_backend
from witness_backend import *

@contextlib.contextmanager
def shared_folder():
    # What setuptools does with build/: two of these at once would fail.
    os.mkdir("build")
    with open("build/owner", "w") as file:
        file.write(str(os.getpid()))
    yield
    with open("build/owner") as file:
        assert file.read() == str(os.getpid())
    os.remove("build/owner")
    os.rmdir("build")

def clean_up_after_the_killed():
    with contextlib.suppress(FileNotFoundError):
        os.remove("build/owner")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir("build")

def compile():
    subprocess.run(["sh", "-c", "sleep 0.1 & wait; : $CHAOS"], check=True)

def build_wheel(*arguments):
    clean_up_after_the_killed()
    with shared_folder():
        compile()
        return witness_backend.build_wheel(*arguments)

def build_sdist(*arguments):
    clean_up_after_the_killed()
    with shared_folder():
        compile()
        return witness_backend.build_sdist(*arguments)
"""


def processes_of(mark: str) -> dict[int, str]:
    """Return the processes that were started with this mark in their environment and have not ended."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def assert_complete(path: Path) -> None:
    """Assert that an artifact has all that the backend writes, and nothing else."""
    if path.name.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            assert wheel.testzip() is None
            assert len(wheel.namelist()) == 4
            assert wheel.namelist()[-1] == "witness-1.0.dist-info/RECORD"
    else:
        with tarfile.open(path) as sdist:
            names = sdist.getnames()
            assert names[-1] == "witness-1.0/PKG-INFO"
            for name in names:
                member = sdist.extractfile(name)
                assert member is not None
                hashlib.sha256(member.read())


@pytest.mark.slow
def test_nothing_overlaps_tears_or_stays_behind_while_frontends_are_killed(witness_tree: WitnessTree) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed)
    witness_tree.use_backend("chaotic", CHAOTIC_BACKEND)
    mark = f"CHAOS={witness_tree.control}"
    environ = {"CHAOS": str(witness_tree.control), "WITNESS_WORK": "0.01"}
    folders = [witness_tree.control / name for name in ("shared", "left", "right")]
    outcomes: Counter[str] = Counter()
    running: dict[subprocess.Popen[str], float] = {}
    end = time.monotonic() + SECONDS
    while running or time.monotonic() < end:
        for build, doom in list(running.items()):
            if build.poll() is None and time.monotonic() >= doom:
                build.kill()
            if build.poll() is None:
                continue
            del running[build]
            # Killed builds leave their hooks; those may still have the pipes open for a moment.
            _, error = build.communicate(timeout=60)
            assert build.returncode in (0, -signal.SIGKILL), error
            outcomes["killed" if build.returncode else "succeeded"] += 1
        while len(running) < WORKERS and time.monotonic() < end:
            kind = dice.choice([("--wheel",), ("--sdist",), ("--wheel", "--sdist")])
            build = witness_tree.start(*kind, out_dir=dice.choice(folders), env=environ)
            witness_tree.started.remove(build)
            # A build takes some tenths of a second when it need not wait, and six times that when it does.
            running[build] = time.monotonic() + (dice.uniform(0.1, 4) if dice.random() < 0.6 else SECONDS * 10)
        time.sleep(0.005)
    print(dict(outcomes))
    assert outcomes["killed"] >= SECONDS / 10
    assert outcomes["succeeded"] >= SECONDS / 10

    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}")
    witness_tree.assert_no_overlap()
    published = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
    assert published
    for path in published:
        assert path.name in ("witness-1.0-py3-none-any.whl", "witness-1.0.tar.gz")
        assert_complete(path)
    last = witness_tree.start("--wheel", "--lock-timeout", "0", env=environ)
    witness_tree.assert_all_succeed(last)

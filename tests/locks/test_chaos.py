"""Builds of one tree while random frontends are killed, and what must be true of it.

The kills come at random moments of a build's life, by a seeded generator. A seed that has failed can be given again in
``CHAOS_SEED``; the length of the minute in ``CHAOS_SECONDS``, and the number of builds of all kinds in
``CHAOS_BUILDS``: 1,000 take half an hour.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from wheelhouse import CACHE_COMMAND, ProbeTree
from witness import LOCKBUILD, PATIENCE, WitnessTree, end_all, wait_until

WORKERS = 6
SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
BUILDS = int(os.environ.get("CHAOS_BUILDS", "40"))

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


def make_dice() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


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
    dice = make_dice()
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
            mode = dice.choice(["shared", "auto"])
            build = witness_tree.start(*kind, "--tree", mode, out_dir=dice.choice(folders), env=environ)
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


# Options of a build, and how often each kind is drawn. {new} is a cache folder of its own.
KINDS = {
    ("--wheel",): 4,
    ("--wheel", "--no-isolation", "--skip-dependency-check"): 4,
    (): 4,
    ("--wheel", "--coalesce"): 4,
    ("--wheel", "--cache-dir", "{new}"): 1,
    ("--wheel", "--refresh"): 1,
    ("--wheel", "--no-cache"): 1,
}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def clean_up(command: str, cache: Path) -> None:
    subprocess.run([*CACHE_COMMAND, "--cache-dir", str(cache), command], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_builds_of_all_kinds_leave_nothing_that_a_clean_up_does_not_find(tree: ProbeTree) -> None:
    dice = make_dice()
    shutil.copy(Path(__file__).parents[1] / "witness_backend.py", tree.path)
    (tree.path / "chaotic.py").write_text(CHAOTIC_BACKEND)
    (tree.path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["probe-backend"]\nbuild-backend = "chaotic"\nbackend-path = ["."]\n'
        '[tool.lockbuild]\nlock = "always"\n'
    )
    mark = f"CHAOS={tree.control}"
    log = tree.control / "log" / "witness.log"
    log.parent.mkdir()
    environ = tree.environ({"CHAOS": str(tree.control), "WITNESS_LOG": str(log), "WITNESS_WORK": "0.01"})
    caches = [tree.cache]

    def start(options: tuple[str, ...]) -> subprocess.Popen[str]:
        if "{new}" in options:
            caches.append(tree.control / f"cache{len(caches)}")
            options = (*options[:-1], str(caches[-1]))
        out_dir = tree.control / dice.choice(["left", "right"])
        words = [*LOCKBUILD, *options, "--outdir", str(out_dir), str(tree.path)]
        return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def build_one_of_each() -> dict[tuple[str, ...], float]:
        seconds = {}
        for kind in KINDS:
            began = time.monotonic()
            build = start(kind)
            _, error = build.communicate(timeout=PATIENCE)
            assert build.returncode == 0, error
            seconds[kind] = time.monotonic() - began
        return seconds

    # How long each kind takes: the kills are spread over that time.
    typical = build_one_of_each()
    outcomes: Counter[str] = Counter()
    running: dict[subprocess.Popen[str], tuple[tuple[str, ...], float, int]] = {}
    dooms: dict[subprocess.Popen[str], float] = {}
    left = BUILDS
    try:
        while running or left:
            for build, (kind, began, number) in list(running.items()):
                if build.poll() is None and time.monotonic() >= dooms.get(build, float("inf")):
                    del dooms[build]
                    build.send_signal(number)
                if build.poll() is None:
                    continue
                del running[build]
                _, error = build.communicate(timeout=PATIENCE)
                if build.returncode == 0:
                    typical[kind] = time.monotonic() - began
                    outcomes["succeeded"] += 1
                else:
                    # While Python itself starts, Ctrl-C is an error of its own.
                    as_asked = build.returncode in (-number, 128 + number) or "KeyboardInterrupt" in error
                    assert as_asked, error
                    assert build not in dooms, error
                    outcomes[signal.Signals(number).name] += 1
            while len(running) < WORKERS and left:
                left -= 1
                kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
                number = dice.choices([0, signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [2, 3, 1, 1])[0]
                build, began = start(kind), time.monotonic()
                running[build] = kind, began, number
                if number:
                    dooms[build] = began + dice.uniform(0, 1.2 * typical[kind])
            time.sleep(0.005)
    finally:
        end_all(running)
    # Installers go on for a while when their frontend was killed.
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}")
    temporary = Path(os.environ["TMPDIR"])
    left_there = [name for name in os.listdir(temporary) if not name.startswith("uv-setuptools-")]
    print(dict(outcomes), f"left for the clean-up: {len(left_there)}")
    assert outcomes["SIGKILL"] >= BUILDS / 10
    assert outcomes["succeeded"] >= BUILDS / 10

    build_one_of_each()
    for cache in caches:
        clean_up("prune", cache)
    assert [name for name in os.listdir(temporary) if not name.startswith("uv-setuptools-")] == []
    assert [path for cache in caches for path in files_in(cache) if path.startswith("staging/")] == []
    assert [path for cache in caches for path in files_in(cache) if path.endswith(".nested")] == []
    assert [path for path in tree.debris() if path.suffix != ".tmp"] == []
    for cache in caches:
        clean_up("clear", cache)
        assert [path for path in files_in(cache) if not path.endswith((".lock", "pruned"))] == []
    for path in (path for name in ("left", "right") for path in (tree.control / name).iterdir()):
        assert_complete(path)

"""The model of the lock on a source tree, `locks.pml`, checked by Spin in several scenes.

In each scene, two hooks are never in the tree at once where one of them may write, and no process waits forever. Each
guard of the protocol is taken out once: then Spin finds a run that breaks one of the two.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("spin") is None, reason="needs spin, which checks models"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for what spin generates"),
]

MODEL = Path(__file__).with_name("locks.pml")

# Three builds of one tree with one cache folder, and no process is killed. README.md describes the words.
SCENE = {
    "BUILDS": "3",
    "KILLS": "0",
    "MORTAL": "7",
    "TARGETS": "7",
    "OTHER_CACHE": "NONE",
    "PRIVATE": "NONE",
    "ALONE": "NONE",
    "NESTS": "0",
    "FLOCK": "NONE",
    "HURRIED": "NONE",
    "UV_BUILD": "0",
    "REMOVER": "0",
    "STREAM": "0",
    "ENVIRONMENT": "0",
}

GUARDS = (
    *("LOCKS_TRAVEL", "HEIRS", "LIFELINE", "TIMEOUT_IS_ERROR", "RECHECK", "NO_WAIT_WHILE_HOLDING"),
    *("ENCLOSING", "NESTING", "NESTED_LOCK", "NESTED_ALONE", "END_OF_NESTING", "TAKE_BACK", "HOOK_SAYS_GROUP"),
    *("ORDER", "GATE", "GATE_LETS_ENCLOSED"),
)

SCENES = {
    "a process is killed, one build times out or is interrupted": "KILLS=1 HURRIED=1",
    "three processes of two builds are killed": "BUILDS=2 KILLS=3 HURRIED=1",
    "the lock file is removed, one build has another cache folder": "REMOVER=1 OTHER_CACHE=2 TARGETS=3",
    "the directory cannot be locked": "REMOVER=2 TARGETS=1",
    "flock DIR lockbuild, and uv build": "FLOCK=1 UV_BUILD=1",
    "start over with uv build, a process is killed": "BUILDS=2 OTHER_CACHE=1 UV_BUILD=1 KILLS=1",
    "a nested build": "NESTS=1 KILLS=1",
    "two nested builds": "NESTS=2 KILLS=1",
    "an environment under the lock": "ENVIRONMENT=1 TARGETS=1 KILLS=1",
    "one exclusive build, two with private views": "PRIVATE=1 KILLS=1",
    "two exclusive builds, one with a private view": "PRIVATE=2 KILLS=1",
    "flock DIR lockbuild with a private view": "PRIVATE=2 FLOCK=2",
    "two private views, and uv build": "PRIVATE=0 BUILDS=2 UV_BUILD=1 KILLS=1",
    "two nested builds in a private view": "PRIVATE=0 NESTS=2 KILLS=1",
    "a nested build in a private view, and a build in the tree": "PRIVATE=0 NESTS=1 ALONE=2 KILLS=1",
}

OVERLAP = "assertion violated"
STUCK = "invalid end state"
STARVED = "acceptance cycle"

# What is taken out, the scene that needs it, and what then happens.
MUTATIONS = (
    ("LOCKS_TRAVEL=0", "KILLS=1", OVERLAP),
    ("HEIRS=0", "KILLS=1", OVERLAP),
    ("LIFELINE=0", "KILLS=1", STUCK),
    ("TIMEOUT_IS_ERROR=0", "HURRIED=1", OVERLAP),
    ("RECHECK=0", "REMOVER=2 TARGETS=1", OVERLAP),
    ("RECHECK=0", "NESTS=1 KILLS=1 MORTAL=5", OVERLAP),
    ("NO_WAIT_WHILE_HOLDING=0", "FLOCK=1", STUCK),
    ("ENCLOSING=0", "FLOCK=1", STUCK),
    ("NESTING=0", "NESTS=1", STUCK),
    ("NESTED_LOCK=0", "NESTS=2", OVERLAP),
    ("END_OF_NESTING=0", "NESTS=1", OVERLAP),
    ("TAKE_BACK=0", "NESTS=1 KILLS=1 MORTAL=2", OVERLAP),
    ("HOOK_SAYS_GROUP=0", "NESTS=1 KILLS=1 MORTAL=2", STUCK),
    ("NESTED_ALONE=0", "PRIVATE=0 NESTS=2", OVERLAP),
    ("END_OF_NESTING=0", "PRIVATE=0 NESTS=1 ALONE=2", OVERLAP),
    ("ORDER=0", "ENVIRONMENT=1 TARGETS=1", STUCK),
    ("GATE_LETS_ENCLOSED=0", "PRIVATE=2 FLOCK=2", STUCK),
    # Without the inode of the directory, and without uv's lock file.
    ("TARGETS=1", "REMOVER=1 OTHER_CACHE=2", OVERLAP),
    ("TARGETS=3", "UV_BUILD=1", OVERLAP),
)

# The exclusive build 0, or `uv build`, waits beside two builds with private views that never end.
STREAMS = ("STREAM=1 PRIVATE=1 TARGETS=3", "STREAM=1 PRIVATE=0 BUILDS=2 UV_BUILD=1")


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_no_two_hooks_overlap_and_no_process_waits_forever(tmp_path: Path, scene: str) -> None:
    assert check(tmp_path, scene) is None


@pytest.mark.parametrize(("mutation", "scene", "expected"), MUTATIONS)
def test_each_guard_is_needed(tmp_path: Path, mutation: str, scene: str, expected: str) -> None:
    assert check(tmp_path, f"{scene} {mutation}") == expected


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_of_private_views_does_not_starve_an_exclusive_build(tmp_path: Path, stream: str) -> None:
    assert check(tmp_path, stream, served=True) is None


@pytest.mark.parametrize("stream", STREAMS)
def test_without_the_gate_a_stream_of_private_views_starves_it(tmp_path: Path, stream: str) -> None:
    assert check(tmp_path, f"{stream} GATE=0", served=True) == STARVED


def check(folder: Path, words: str, *, served: bool = False) -> str | None:
    """
    Check the model in a scene; return what goes wrong in the run that Spin has found, if it has found one.

    With ``served``, check the LTL formula, for weakly fair runs; else assertions and end states.
    """
    scene = SCENE | dict.fromkeys(GUARDS, "1") | dict(word.split("=") for word in words.split())
    run(folder, "spin", "-a", *(f"-D{name}={value}" for name, value in scene.items()), str(MODEL))
    assert COMPILER is not None
    # Spin does not look for invalid end states beside a formula.
    kind = ["-DNFAIR=4"] if served else ["-DSAFETY", "-DNOCLAIM"]
    # Scenes in which processes are killed have so many states that the optimizer's time is won back.
    level = "-O1" if "KILLS" in words else "-O0"
    run(folder, COMPILER, "-w", level, "-DCOLLAPSE", *kind, "-o", "pan", "pan.c")
    output = run(folder, "./pan", "-m100000", *(("-a", "-f") if served else ()))
    assert "error: max search depth" not in output
    assert "out of memory" not in output
    errors = re.search(r"errors: (\d+)", output)
    assert errors, output
    if errors[1] == "0":
        return None
    found = re.search(rf"{OVERLAP}|{STUCK}|{STARVED}", output)
    assert found, output
    return found[0]


def run(folder: Path, *command: str) -> str:
    """Run a command; return its output."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout

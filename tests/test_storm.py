"""Ten builds at once of one setuptools tree, of every kind, with a witness in its setup.py; and who else locks.

The trees are built by the setuptools of the test environment (``--no-isolation``), which is quick, and in one round
in isolated environments.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockbuild.locks import SourceTreeLock
from witness import LOCKBUILD, WitnessTree

BUILDS = 10

# setup.py is executed several times by one build: by get_requires_for_build_*, and by the hook that builds. An unpacked
# sdist is a tree of its own, whose builds need not wait for those of the first tree, and do not tell the witness.
_SETUP = """\
import contextlib, os, sys
from setuptools import setup
sys.path.insert(0, os.environ["STORM_CONTROL"])
from witness_backend import _witness
with _witness("setup.py") if os.getcwd() == os.environ["STORM_TREE"] else contextlib.nullcontext():
    setup(name="storm", version="1.0", packages=["storm"])
"""

_FILES = {
    "a bare setup.py": {"setup.py": _SETUP},
    "an in-tree wrapper": {
        "setup.py": _SETUP,
        "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n'
        'build-backend = "wrapper"\nbackend-path = ["backend"]\n',
        "backend/wrapper.py": "from setuptools.build_meta import *\n",
        "MANIFEST.in": "include backend/wrapper.py\n",
    },
}

# An option that changes nothing: without --wheel and --sdist an sdist is built, and a wheel from that.
_DEFAULT = "--lock=auto"

_KINDS = {
    "wheels": ["--wheel"] * BUILDS,
    "sdists": ["--sdist"] * BUILDS,
    "a mixture": ["--wheel", "--sdist", _DEFAULT] * 3 + ["--wheel"],
}
_SUFFIXES = {"--wheel": [".whl"], "--sdist": [".gz"], _DEFAULT: [".gz", ".whl"]}

# Looks at all artifacts of a folder until told to stop, reads each new state of one to its end, and prints on each line
# "whole NAME" or "broken NAME ERROR".
_READER = """\
import os, sys, tarfile, zipfile
folder, stop = sys.argv[1:]
seen = {}
print("ready", flush=True)
while not os.path.exists(stop):
    for name in os.listdir(folder):
        if not name.endswith((".whl", ".tar.gz")) or name.startswith("."):
            continue
        path = os.path.join(folder, name)
        status = os.stat(path)
        state = status.st_ino, status.st_size, status.st_mtime_ns
        if seen.get(name) == state:
            continue
        seen[name] = state
        try:
            if name.endswith(".whl"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            else:
                with tarfile.open(path) as archive:
                    for member in archive:
                        file = archive.extractfile(member)
                        file and file.read()
            print("whole", name)
        except Exception as error:
            print("broken", name, repr(error))
"""


@pytest.fixture(params=_FILES)
def storm_tree(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WitnessTree]:
    """A tree that real setuptools builds. What is still running at the end of the test is killed."""
    yield from make_storm_tree(request.param, tmp_path, monkeypatch)


@pytest.fixture
def bare_storm_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WitnessTree]:
    yield from make_storm_tree("a bare setup.py", tmp_path, monkeypatch)


def make_storm_tree(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WitnessTree]:
    tree = WitnessTree(folder / "tree", folder / "control")
    tree.control.mkdir()
    shutil.copy(Path(__file__).with_name("witness_backend.py"), tree.control)
    for name, content in (_FILES[kind] | _modules()).items():
        (tree.path / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.path / name).write_text(content)
    monkeypatch.setenv("STORM_CONTROL", str(tree.control))
    monkeypatch.setenv("STORM_TREE", str(tree.path.resolve()))
    yield tree
    for process in tree.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _modules() -> dict[str, str]:
    # Enough files for a torn wheel, one of them large enough for a half-written one.
    large = random.Random(0).randbytes(200_000).hex()
    return {"storm/__init__.py": "", "storm/large.py": f"value = '{large}'\n"} | {
        f"storm/module{number}.py": f"value = {number}\n" for number in range(20)
    }


def assert_whole(artifact: Path) -> None:
    """Check that a wheel or an sdist holds every module of the tree, with its contents, and nothing unknown."""
    if artifact.suffix == ".whl":
        with zipfile.ZipFile(artifact) as archive:
            found = {info.filename: archive.read(info).decode() for info in archive.infolist()}
        known = {f"storm-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "top_level.txt", "RECORD")}
        assert known <= found.keys()
        assert {name: text for name, text in found.items() if name not in known} == _modules()
    else:
        with tarfile.open(artifact) as archive_of_sources:
            files = {member.name: archive_of_sources.extractfile(member) for member in archive_of_sources}
            found = {name.removeprefix("storm-1.0/"): file.read().decode() for name, file in files.items() if file}
        assert {"setup.py", "PKG-INFO", "storm.egg-info/SOURCES.txt"} <= found.keys()
        assert {name: text for name, text in found.items() if name.startswith("storm/")} == _modules()


@pytest.mark.slow
@pytest.mark.parametrize("kinds", _KINDS.values(), ids=_KINDS)
def test_ten_builds_at_once_of_a_setuptools_tree_all_succeed(storm_tree: WitnessTree, kinds: list[str]) -> None:
    for number, kind in enumerate(kinds):
        storm_tree.start(kind, out_dir=storm_tree.control / f"out{number}")
    storm_tree.assert_all_succeed()
    for number, kind in enumerate(kinds):
        artifacts = sorted((storm_tree.control / f"out{number}").iterdir(), key=lambda path: path.suffix)
        assert [path.suffix for path in artifacts] == _SUFFIXES[kind]
        for artifact in artifacts:
            assert_whole(artifact)


@pytest.mark.slow
def test_ten_builds_in_isolated_environments_all_succeed(bare_storm_tree: WitnessTree) -> None:
    tree = bare_storm_tree
    for number in range(BUILDS):
        start_isolated(tree, "--wheel", out_dir=tree.control / f"out{number}")
    for process in tree.started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "Successfully built storm-1.0-py3-none-any.whl"
    tree.assert_no_overlap()
    for number in range(BUILDS):
        [wheel] = (tree.control / f"out{number}").iterdir()
        assert_whole(wheel)


@pytest.mark.slow
def test_a_reader_of_one_out_dir_never_sees_a_broken_artifact_while_ten_builds_write_there(
    bare_storm_tree: WitnessTree, tmp_path: Path
) -> None:
    tree = bare_storm_tree
    tree.out_dir.mkdir()
    stop = tmp_path / "stop"
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(tree.out_dir), str(stop)], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    try:
        for kind in _KINDS["a mixture"]:
            tree.start(kind)
        tree.assert_all_succeed()
    finally:
        stop.touch()
        seen, _ = reader.communicate(timeout=60)
    assert [line for line in seen.splitlines() if line.startswith("broken")] == []
    # It has seen artifacts come and be replaced.
    assert seen.count("whole storm-1.0-py3-none-any.whl") > 1
    assert seen.count("whole storm-1.0.tar.gz") > 1
    assert sorted(path.name for path in tree.out_dir.iterdir()) == ["storm-1.0-py3-none-any.whl", "storm-1.0.tar.gz"]
    for artifact in tree.out_dir.iterdir():
        assert_whole(artifact)


def start_isolated(tree: WitnessTree, *options: str, out_dir: Path, gate: Path | None = None) -> subprocess.Popen[str]:
    return tree.start_process(*LOCKBUILD, *options, "--out-dir", str(out_dir), str(tree.path), gate=gate)


def declare(tree: WitnessTree, requires: str, setting: str | None) -> None:
    (tree.path / "pyproject.toml").write_text(
        f'[build-system]\nrequires = [{requires}]\nbuild-backend = "witness_backend"\nbackend-path = ["."]\n'
        + (f'[tool.lockbuild]\nlock = "{setting}"\n' if setting else "")
    )


def assert_two_are_inside(tree: WitnessTree, start: Callable[[Path], subprocess.Popen[str]]) -> list[str]:
    """
    Start two builds and check that both of them are inside `build_wheel` before either of them may leave.

    Return what they have said.
    """
    gates = [tree.make_gate("first"), tree.make_gate("second")]
    builds = [start(gate.path) for gate in gates]
    first, second = tree.wait_for_entry("build_wheel", 1), tree.wait_for_entry("build_wheel", 2)
    assert first != second
    assert not [line for line in tree.log() if line[0] == "leave" and line[2] == "build_wheel"]
    for gate in gates:
        gate.open()
    results = tree.finish(*builds)
    assert [status for status, _, _ in results] == [0, 0], results
    return [err for _, _, err in results]


def test_builds_without_setuptools_run_in_parallel(witness_tree: WitnessTree) -> None:
    declare(witness_tree, "", None)
    assert_two_are_inside(witness_tree, lambda gate: witness_tree.start(gate=gate))


def test_builds_without_setuptools_run_in_parallel_in_isolated_environments(witness_tree: WitnessTree) -> None:
    declare(witness_tree, "", None)
    out_dir = witness_tree.out_dir
    assert_two_are_inside(
        witness_tree, lambda gate: start_isolated(witness_tree, "--wheel", out_dir=out_dir, gate=gate)
    )


SETUPTOOLS = '"setuptools"'


@pytest.mark.parametrize(
    ("requires", "setting", "options", "reason"),
    [
        (SETUPTOOLS, None, ("--lock", "never"), "--lock is never"),
        (SETUPTOOLS, "never", (), "tool.lockbuild.lock in pyproject.toml is never"),
        ("", "always", ("--lock", "never"), "--lock is never"),
        ("", "always", ("--lock", "auto"), "its backend is witness_backend, and it does not require setuptools"),
    ],
)
def test_builds_that_are_not_to_be_locked_run_in_parallel(
    witness_tree: WitnessTree, requires: str, setting: str | None, options: tuple[str, ...], reason: str
) -> None:
    declare(witness_tree, requires, setting)
    words = ("--wheel", "-v", *options)
    for err in assert_two_are_inside(
        witness_tree, lambda gate: witness_tree.start(*words, gate=gate, env={"COLUMNS": "1000"})
    ):
        assert f"Not locking {witness_tree.path}: {reason}" in err


@pytest.mark.parametrize(
    ("requires", "setting", "options", "reason"),
    [
        ("", None, ("--lock", "always"), "--lock is always"),
        ("", "always", (), "tool.lockbuild.lock in pyproject.toml is always"),
        (SETUPTOOLS, "never", ("--lock", "always"), "--lock is always"),
        (SETUPTOOLS, "never", ("--lock", "auto"), "it requires setuptools"),
    ],
)
def test_builds_that_are_to_be_locked_wait_for_each_other(
    witness_tree: WitnessTree, requires: str, setting: str | None, options: tuple[str, ...], reason: str
) -> None:
    declare(witness_tree, requires, setting)
    words = ("--wheel", "-v", *options)
    gate = witness_tree.make_gate()
    witness_tree.start(*words, gate=gate.path, env={"COLUMNS": "1000"})
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(*words, env={"COLUMNS": "1000"})
    assert waiter.stderr is not None
    said = [waiter.stderr.readline()]
    while said[-1] and "Waiting for the lock on" not in said[-1]:
        said.append(waiter.stderr.readline())
    assert any(f"Locking {witness_tree.path}: {reason}" in line for line in said), said
    assert said[-1].startswith(f"* Waiting for the lock on {witness_tree.path}"), said
    assert len(witness_tree.entered("build_wheel")) == 1
    gate.open()
    witness_tree.assert_all_succeed()


def assert_waits_for_the_lock(tree: WitnessTree, *options: str) -> None:
    with SourceTreeLock(tree.path):
        [(status, _, err)] = tree.finish(tree.start("--wheel", "--lock-timeout", "0.1", *options))
    assert status == 75, err
    assert tree.entered("build_wheel") == []


def test_without_isolation_a_requirement_that_brings_setuptools_locks_the_tree(
    witness_tree: WitnessTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(witness_tree, '"brings-brings-setuptools"', None)
    for name, requirement in (("brings-brings-setuptools", "brings-setuptools"), ("brings-setuptools", "setuptools")):
        metadata = tmp_path / "site" / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requirement}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    assert_waits_for_the_lock(witness_tree)


@pytest.mark.parametrize("options", [(), ("-x",)], ids=["with the dependency check", "without it"])
def test_without_isolation_a_backend_that_asks_for_setuptools_is_locked(
    witness_tree: WitnessTree, options: tuple[str, ...]
) -> None:
    declare(witness_tree, "", None)
    with (witness_tree.path / "witness_backend.py").open("a") as file:
        file.write("def get_requires_for_build_wheel(config_settings=None):\n    return ['setuptools']\n")
    assert_waits_for_the_lock(witness_tree, *options)

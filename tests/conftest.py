"""Fixtures for all tests. Each test has its own cache folder, home and folder for temporary files."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monorepo import Monorepo
from wheelhouse import ProbeTree, Wheelhouse, make_probe_tree
from witness import WitnessTree, end_all, make_witness_tree


def pytest_configure() -> None:
    """Undo what the starter of the tests may ignore (nohup, a background job); lockbuild would ignore it, too."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep lock files and caches of tests apart from the user's and from each other's; no setting leaks in."""
    for name in (
        "LOCKBUILD_LOCK_TIMEOUT",
        "LOCKBUILD_HELD_LOCKS",
        "LOCKBUILD_INSTALLER",
        "LOCKBUILD_LINK_MODE",
        "LOCKBUILD_ENV_MAX_AGE",
        "LOCKBUILD_REUSE",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
        "SOURCE_DATE_EPOCH",
        "NO_COLOR",
        "FORCE_COLOR",
        "CI",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    # This process has looked at the variable before, and remembers the folder.
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("LOCKBUILD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Monorepo]:
    """A folder for projects that need each other. What is still running at the end of the test is killed."""
    folder = tmp_path / "repo"
    folder.mkdir()
    repo = Monorepo(folder)
    yield repo
    end_all(repo.started)


@pytest.fixture
def witness_tree(tmp_path: Path) -> Iterator[WitnessTree]:
    """A tree whose hooks notice each other. What is still running at the end of the test is killed."""
    tree = make_witness_tree(tmp_path / "witness")
    yield tree
    end_all(tree.started)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ProbeTree]:
    """A project whose backend is in a wheel. Tests of other trees have a fixture of this name of their own."""
    tree = make_probe_tree(tmp_path / "probe")
    yield tree
    end_all(tree.started)


@pytest.fixture
def processes_to_kill() -> Iterator[list[int]]:
    """Collect the numbers of processes that outlive a build on purpose; they are killed after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def house(tmp_path: Path) -> Wheelhouse:
    """An empty folder for wheels that a test makes."""
    (tmp_path / "wheelhouse").mkdir()
    return Wheelhouse(tmp_path / "wheelhouse")


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[[str], Path]:
    """Makes empty virtual environments by name."""

    def make(name: str) -> Path:
        venv.EnvBuilder(symlinks=True).create(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def environment(make_environment: Callable[[str], Path]) -> Path:
    """An empty virtual environment."""
    return make_environment("env")

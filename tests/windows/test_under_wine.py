"""lockbuild with CPython for Windows, under wine. ``WINE=1 python -m pytest -n 0 tests/windows`` runs these tests."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import error_line, read_message
from wine import Wine, windows_path
from witness import PATIENCE, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "WINE" not in os.environ, reason="takes a minute, and needs wine and an index: WINE=1 asks for it"
    ),
    pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("wine"), reason="needs wine for x86-64"),
]

# Wraps setuptools. Of two builds that are in the tree at once, one fails. With HELD, a build waits there for a file of
# that name.
BACKEND = """
import os, time
from setuptools import build_meta
from setuptools.build_meta import *

def build_wheel(folder, settings=None, metadata=None):
    os.close(os.open("inside", os.O_CREAT | os.O_EXCL))
    try:
        held = os.environ.get("HELD")
        if held:
            open(held + ".inside", "w").close()
            while not os.path.exists(held):
                time.sleep(0.01)
        return build_meta.build_wheel(folder, settings, metadata)
    finally:
        os.unlink("inside")
"""


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    installed = Wine(tmp_path_factory.mktemp("wine"))
    installed.install()
    yield installed
    installed.end()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "demo.py").write_text("VALUE = 1\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "setup.py").write_text(
        "import os, setuptools\n"
        "setuptools.setup(name='demo', version=os.environ.get('VERSION', '1'), py_modules=['demo'],\n"
        "    entry_points={'console_scripts': ['demo = demo:VALUE']})\n"
    )
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return folder


class Held:
    """A build that waits inside the tree, until `end`."""

    def __init__(self, wine: Wine, tree: Path, tmp_path: Path) -> None:
        self._gate = tmp_path / "go"
        self.process = wine.start("-n", "-w", windows_path(tree), env={"HELD": windows_path(self._gate)})
        wait_until(self._gate.with_name("go.inside").exists, "a build inside the tree")

    def end(self) -> None:
        self._gate.touch()


@pytest.fixture
def held(wine: Wine, tree: Path, tmp_path: Path) -> Iterator[Held]:
    build = Held(wine, tree, tmp_path)
    yield build
    build.end()
    build.process.wait(timeout=PATIENCE)


def test_builds_of_one_tree_at_once_lose_nothing(wine: Wine, tree: Path) -> None:
    builds = [wine.start("-n", "-w", windows_path(tree), env={"VERSION": str(n)}) for n in range(1, 5)]
    for build in builds:
        status, _, err = wine.finish(build)
        assert status == 0, err
    assert sorted(os.listdir(tree / "dist")) == [f"demo-{n}-py3-none-any.whl" for n in range(1, 5)]


def test_a_build_that_waits_names_the_holder(wine: Wine, tree: Path, held: Held) -> None:
    waiting = wine.start("-n", "-w", windows_path(tree))
    assert "lockbuild -n -w" in read_message(waiting, "Waiting")
    held.end()
    for build in (held.process, waiting):
        status, _, err = wine.finish(build)
        assert status == 0, err


@pytest.mark.usefixtures("held")
def test_a_build_gives_up_after_the_lock_timeout(wine: Wine, tree: Path) -> None:
    status, _, err = wine.finish(wine.start("-n", "-w", "--lock-timeout", "0.1", windows_path(tree)))
    assert status == 75, err
    assert "is held by" in err.splitlines()[-1]


def test_the_backend_of_a_killed_frontend_ends(wine: Wine, tree: Path, held: Held) -> None:
    held.process.kill()
    # The backend has the same standard error, which ends with it.
    wine.finish(held.process)
    assert not (tree / "dist" / "demo-1-py3-none-any.whl").exists()
    (tree / "inside").unlink()
    status, _, err = wine.finish(wine.start("-n", "-w", windows_path(tree)))
    assert status == 0, err


def test_flit_builds_both_distributions(wine: Wine, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text('"""A module."""\n__version__ = "1"\n')
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n'
        '[project]\nname = "small"\nrequires-python = ">=3"\ndynamic = ["version", "description"]\n'
    )
    status, out, err = wine.finish(wine.start("-n", windows_path(tmp_path)))
    assert status == 0, err
    assert "Successfully built" in out.splitlines()[-1]
    assert sorted(os.listdir(tmp_path / "dist")) == ["small-1-py3-none-any.whl", "small-1.tar.gz"]


def test_a_wheel_is_installed_into_an_environment(wine: Wine, tree: Path, tmp_path: Path) -> None:
    status, _, err = wine.finish(wine.start("-n", "-w", windows_path(tree)))
    assert status == 0, err
    # Without venv, the nearest to an environment: an interpreter in its folder for programs.
    environment = tmp_path / "environment"
    shutil.copytree(wine.python.parent, environment / "Scripts")
    wheel = windows_path(tree / "dist" / "demo-1-py3-none-any.whl")
    script = f"import lockbuild; lockbuild.install_wheels([{wheel!r}], {windows_path(environment)!r})"
    wine.run(str(wine.python), "-c", script)
    assert list(environment.rglob("site-packages/demo.py"))
    assert list(environment.rglob("demo.exe"))


def test_a_python_without_venv_is_one_line_that_says_what_to_do(wine: Wine, tree: Path) -> None:
    message = error_line(wine.finish(wine.start("-w", windows_path(tree))))
    assert "venv" in message
    assert "--no-isolation" in message

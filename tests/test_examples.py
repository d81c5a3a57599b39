"""The examples, each run with the real tool (pip, tox, make) in a copy, with a wheel of this checkout as lockbuild."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.locks import SourceTreeLock
from machine import interpreters
from witness import LOCKBUILD

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

_USE_OF_TALLY = """
import tally, tally._fast
assert tally._fast.__file__.endswith(tuple(__import__("importlib.machinery").machinery.EXTENSION_SUFFIXES))
assert tally.tally("The lock and the key\\tof a lock") == {"lock": 2, "key": 1}
"""


@pytest.fixture(scope="module")
def lockbuild_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("lockbuild")
    run(*LOCKBUILD, "--wheel", "--out-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Return a copy of the examples, without what somebody has built in them."""
    built = shutil.ignore_patterns("build", "dist", "venvs", ".tox", "*.egg-info", "__pycache__", "*.so")
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=built))


def run(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    finished = subprocess.run(
        words, cwd=cwd, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert finished.returncode == 0, f"{words}:\n{finished.stdout}"
    return finished.stdout


def use_tally(python: Path, wheel: Path) -> None:
    """Install a wheel of the setuptools example into an environment and use its C extension and its data file."""
    run(str(python), "-m", "pip", "install", "--quiet", "--no-index", "--force-reinstall", str(wheel))
    run(str(python), "-I", "-c", _USE_OF_TALLY)


def test_the_setuptools_example_gives_a_wheel_whose_extension_works(examples: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "dist"
    out = run(*LOCKBUILD, "--wheel", "--out-dir", str(out_dir), str(examples / "setuptools"))
    [wheel] = out_dir.iterdir()
    assert out.splitlines()[-1] == f"Successfully built {wheel.name}"
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    use_tally(tmp_path / "venv" / "bin" / "python", wheel)


def start_tox(folder: Path, configuration: str, lockbuild_wheel: Path, environments: str) -> subprocess.Popen[str]:
    # These tests may themselves run under tox, whose variables would be taken for options.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOX")}
    return subprocess.Popen(
        [sys.executable, "-m", "tox", "run", "-c", configuration, "-e", environments],
        cwd=folder,
        env=environ | {"LOCKBUILD_REQUIREMENT": str(lockbuild_wheel)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_waiters(process: subprocess.Popen[str], count: int) -> str:
    """Read a process's output until so many builds have said that they wait for the lock; return what was read."""
    assert process.stdout is not None
    read = ""
    while read.count("; waiting without a limit") < count:
        line = process.stdout.readline()
        assert line, f"ended before {count} builds waited for the lock:\n{read}"
        read += line
    return read


@pytest.mark.parametrize(("configuration", "dist"), [("tox.ini", ".pkg/dist"), ("external.ini", "dist")])
def test_the_tox_example_runs_all_its_environments_and_builds_under_the_lock(
    examples: Path, lockbuild_wheel: Path, configuration: str, dist: str
) -> None:
    with SourceTreeLock(examples / "tox"):
        tox = start_tox(examples / "tox", configuration, lockbuild_wheel, "a,b")
        try:
            out = wait_for_waiters(tox, 1)
        except BaseException:
            tox.terminate()
            raise
    out += tox.communicate()[0]
    assert tox.returncode == 0, out
    assert "a: OK" in out
    assert "b: OK" in out
    assert [path.name for path in (examples / "tox" / ".tox" / dist).iterdir()] == [
        "lockbuild_example_greet-1.0-py3-none-any.whl"
    ]


def test_two_tox_processes_at_once_over_one_tree_both_pass(examples: Path, lockbuild_wheel: Path) -> None:
    # tox itself lets only one of its processes at a time into .pkg_external; what could break is what it does with the
    # wheel afterwards. That lockbuild locks the tree there is for the test above.
    folder = examples / "tox"
    pyproject = (folder / "pyproject.toml").read_text()
    for number in range(5):
        # Each round builds another version: both processes have to clear the wheel of the round before away.
        version = f"1.{number}"
        (folder / "pyproject.toml").write_text(pyproject.replace('version = "1.0"', f'version = "{version}"'))
        processes = {name: start_tox(folder, "external.ini", lockbuild_wheel, name) for name in ("a", "b")}
        output = {name: process.communicate()[0] for name, process in processes.items()}
        for name, process in processes.items():
            assert process.returncode == 0, f"round {number}, {name}:\n{output[name]}"
            assert f"{name}: OK" in output[name]
        for name in ("a", "b"):
            python = folder / ".tox" / name / "bin" / "python"
            show = "from importlib.metadata import version; print(version('lockbuild-example-greet'))"
            assert run(str(python), "-c", show).strip() == version
        assert [path.name for path in (folder / ".tox" / "dist").iterdir()] == [
            f"lockbuild_example_greet-{version}-py3-none-any.whl"
        ]


def test_the_make_example_builds_three_wheels_of_one_tree_at_once(
    examples: Path, lockbuild_wheel: Path, tmp_path: Path
) -> None:
    found = list(interpreters())[:3]
    assert found, "this very interpreter cannot make virtual environments or has no Python.h"
    # With fewer than three versions on this machine some are used twice: then these write the same wheel, in turns.
    used = [found[number % len(found)] for number in range(3)]
    out_dir = tmp_path / "dist"
    with SourceTreeLock(examples / "setuptools"):
        make = subprocess.Popen(
            [
                "make",
                "-j3",
                f"PYTHONS={' '.join(python for python, _ in used)}",
                f"LOCKBUILD={lockbuild_wheel}",
                f"OUT_DIR={out_dir}",
            ],
            cwd=examples / "make",
            # These tests may themselves run under make, which would pass its own options on.
            env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            # All three are there at once, and go on when the tree is free.
            out = wait_for_waiters(make, 3)
        except BaseException:
            make.terminate()
            raise
    out += make.communicate()[0]
    assert make.returncode == 0, out
    wheels = {path.name.split("-")[2]: path for path in out_dir.iterdir()}
    assert set(wheels) == {f"cp{major}{minor}" for _, (major, minor) in found}
    assert len(list(out_dir.iterdir())) == len(found)
    for number, (_, (major, minor)) in enumerate(used, start=1):
        use_tally(examples / "make" / "venvs" / str(number) / "bin" / "python", wheels[f"cp{major}{minor}"])


def test_the_monorepo_example_builds_units_before_tables(examples: Path, tmp_path: Path) -> None:
    folder = examples / "monorepo"
    for factor in ("0.0254", "0.0255"):
        units = folder / "packages" / "units" / "src" / "units" / "__init__.py"
        units.write_text(units.read_text().replace("0.0254", factor))
        out = run(*LOCKBUILD, "--wheel", "--all-packages", cwd=folder)
        assert out.splitlines()[-1].startswith("Successfully built ")
        [wheel] = (folder / "dist").glob("lockbuild_example_tables-*.whl")
        run(sys.executable, "-m", "venv", str(tmp_path / factor))
        python = str(tmp_path / factor / "bin" / "python")
        run(python, "-m", "pip", "install", "--quiet", "--no-index", str(wheel))
        assert run(python, "-c", "import tables; print(tables.LENGTHS['inch'])").strip() == factor
    shutil.rmtree(folder / "dist")
    run(*LOCKBUILD, "--wheel", "--package", "lockbuild-example-tables", cwd=folder)
    names = sorted(path.name.split("-")[0] for path in (folder / "dist").iterdir())
    assert names == ["lockbuild_example_tables", "lockbuild_example_units"]


def test_the_pythons_example_gives_a_wheel_for_each_python_and_a_pure_one_for_all(
    examples: Path, tmp_path: Path
) -> None:
    found = list(interpreters())[:3]
    options = [word for python, _ in found for word in ("--python", python)]
    out_dir = tmp_path / "dist"
    run(*LOCKBUILD, "--wheel", "--out-dir", str(out_dir), *options, "../setuptools", cwd=examples / "pythons")
    tags = {path.name.split("-")[2] for path in out_dir.iterdir()}
    assert tags == {f"cp{major}{minor}" for _, (major, minor) in found}
    run(*LOCKBUILD, "-w", "-o", str(out_dir), *options, "../monorepo/packages/units", cwd=examples / "pythons")
    assert len(list(out_dir.glob("lockbuild_example_units-*"))) == 1

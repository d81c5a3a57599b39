"""The bytecode of a backend that was just installed, compiled while it is imported."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.hooks import compiling
from machine import linux_only
from wheelhouse import ProbeTree, end_all, make_probe_tree

# A backend whose hook waits for the bytecode of a module that nobody imports.
_BACKEND = """
import importlib.util, os, time
import probe_backend
from probe_backend import *

def build_wheel(*arguments):
    if waited_for := os.environ.get("WAIT_FOR"):
        source = os.path.join(os.path.dirname(__file__), *waited_for.split("/"))
        end = time.monotonic() + 30
        while not os.path.exists(importlib.util.cache_from_source(source)):
            if time.monotonic() > end:
                raise RuntimeError(f"nobody compiles {source}")
            time.sleep(0.01)
    return probe_backend.build_wheel(*arguments)
"""

needs_two_cores = pytest.mark.skipif(
    os.name != "posix" or not compiling.is_worthwhile(), reason="only where a second core would be idle"
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProbeTree]:
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    tree = make_probe_tree(tmp_path / "probe")
    yield tree
    end_all(tree)


def require_package(tree: ProbeTree, **modules: str) -> None:
    """Have the tree built by a package that has more modules."""
    files = {"late_probe/__init__.py": _BACKEND, **{f"late_probe/{name}.py": text for name, text in modules.items()}}
    tree.wheelhouse.add_wheel("late-probe", files=files, requires=["probe-backend"])
    tree.require("late-probe")
    project = tree.path / "pyproject.toml"
    project.write_text(project.read_text().replace('= "probe_backend"', '= "late_probe"'))


def compile_package(folder: Path, package: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a frontend does that does not end."""
    command = [sys.executable, *options, "-P", compiling.__file__, package]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    process.stdin.close()
    return subprocess.CompletedProcess(command, process.wait(), out, err)


def compiled(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.rglob("*.pyc"))


def make_package(folder: Path, **modules: str) -> Path:
    package = folder / "package"
    for name, text in {"__init__": "", **modules}.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@needs_two_cores
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_what_nobody_imports_is_compiled_in_a_new_environment(tree: ProbeTree, installer: str) -> None:
    require_package(tree, **{"deep/one": "VALUE = 1\n"})
    tree.build("--installer", installer, env={"WAIT_FOR": "deep/one.py"})


@needs_two_cores
@linux_only
def test_nothing_compiles_any_more_when_the_build_has_ended(tree: ProbeTree) -> None:
    # That takes a second to compile, and the build a tenth of one.
    require_package(tree, large="value = [1, 2, 3] and {4: 5}\n" * 40_000)
    tree.build()
    [environment] = tree.environments()
    assert not [command for command in commands() if str(environment) in command]
    assert "large" not in compiled(environment)


def commands() -> list[str]:
    """Return the commands of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_bytecode_is_what_an_import_would_have_written(tmp_path: Path) -> None:
    package = make_package(tmp_path, one="'''A module.'''\ndef double(x: int) -> int:\n    return 2 * x\n")
    ours, its = tmp_path / "ours", tmp_path / "its"
    compile_package(tmp_path, "package", PYTHONPYCACHEPREFIX=str(ours))
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONPYCACHEPREFIX": str(its)}
    subprocess.run([sys.executable, "-c", "import package.one"], env=environ, check=True)
    ours, its = (prefix / package.relative_to(package.anchor) for prefix in (ours, its))
    assert compiled(ours) == ["__init__", "one"]
    for path in ours.iterdir():
        content, expected = path.read_bytes(), (its / path.name).read_bytes()
        assert content[:16] == expected[:16]
        assert marshal.loads(content[16:]) == marshal.loads(expected[16:])
    assert not list(package.rglob("*.pyc"))


def test_what_is_no_python_is_left_to_whoever_imports_it(tmp_path: Path) -> None:
    package = make_package(
        tmp_path,
        broken="def",
        nested="x = " + "(" * 5000 + ")" * 5000,
        null="\0",
        whole="",
    )
    (package / "encoded.py").write_bytes(b"# coding: none-such\n")
    (package / "gone.py").symlink_to("none-such.py")
    done = compile_package(tmp_path, "package")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert compiled(package) == ["__init__", "whole"]


def test_nothing_is_compiled_twice(tmp_path: Path) -> None:
    package = make_package(tmp_path, one="", two="")
    compile_package(tmp_path, "package")
    [known] = (package / "__pycache__").glob("one.*")
    known.write_bytes(b"known")
    compile_package(tmp_path, "package")
    assert known.read_bytes() == b"known"


def test_who_wants_no_bytecode_gets_none(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    compile_package(tmp_path, "package", "-B")
    compile_package(tmp_path, "package", PYTHONDONTWRITEBYTECODE="1")
    assert compiled(package) == []


@pytest.mark.parametrize("package", ["none_such", "single"])
def test_a_backend_that_is_no_package_has_nothing_to_compile(tmp_path: Path, package: str) -> None:
    (tmp_path / "single.py").touch()
    done = compile_package(tmp_path, package)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a FIFO")
def test_it_ends_with_the_frontend(tmp_path: Path) -> None:
    package = make_package(tmp_path, **{f"module{number}": "" for number in range(50)})
    (package / "first").mkdir()
    os.mkfifo(package / "first" / "first.py")
    process = subprocess.Popen(
        [sys.executable, "-P", compiling.__file__, "package"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    # It has opened the first file, and reads no more before the pipe has ended.
    with (package / "first" / "first.py").open("w"):
        process.stdin.close()
    assert process.wait(30) == 0
    assert len(compiled(package)) <= 1

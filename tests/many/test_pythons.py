"""Builds with other Pythons than the one that runs lockbuild, which is not installed there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.many.run import serves
from lockbuild.other_python import Python
from machine import interpreters
from monorepo import Monorepo
from witness import PATIENCE

OTHERS = [(path, version) for path, version in interpreters() if version != sys.version_info[:2]]
with_another = pytest.mark.skipif(not OTHERS, reason="there is no other Python 3.11 or newer")


@with_another
def test_one_build_uses_the_python_that_is_named(repo: Monorepo) -> None:
    path, version = OTHERS[0]
    repo.add("one", act="import sys; open('seen', 'w').write(f'{sys.version_info[0]}.{sys.version_info[1]}')")
    out, _ = repo.build("--python", path, "one")
    assert out == "Successfully built one-1.0-py3-none-any.whl\n"
    assert (repo.folder / "one" / "seen").read_text() == ".".join(map(str, version))


@with_another
def test_a_version_is_found_on_path(repo: Monorepo, tmp_path: Path) -> None:
    pytest.importorskip("python_discovery")
    path, version = OTHERS[0]
    repo.add("one")
    environ = os.environ | {
        "PATH": os.pathsep.join((os.path.dirname(os.path.realpath(path)), os.environ["PATH"])),
        "MONOREPO_LOG": str(repo.log),
        "HOME": str(tmp_path),
    }
    process = repo.start("-w", f"--python={version[0]}.{version[1]}", "--report=report.json", "-j1", "one", env=environ)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    [artifact] = json.loads((repo.folder / "report.json").read_text())["artifacts"]
    assert os.path.realpath(artifact["python"]) == os.path.realpath(path)


@with_another
def test_a_pure_wheel_is_built_once_for_all_pythons(repo: Monorepo) -> None:
    repo.add("one")
    repo.build("--python", sys.executable, "--python", OTHERS[0][0], "one")
    assert repo.built() == ["one"]


@with_another
@pytest.mark.slow
def test_a_wheel_for_one_python_is_built_for_each_and_used_for_its_own(repo: Monorepo) -> None:
    path, version = OTHERS[0]
    tool = repo.folder / "tool"
    (tool / "src").mkdir(parents=True)
    (tool / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tool"\nversion = "1.0"\n'
        '[tool.setuptools]\next-modules = [{ name = "tool", sources = ["src/tool.c"] }]\n'
    )
    (tool / "src" / "tool.c").write_text(
        "#include <Python.h>\n"
        'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tool", NULL, -1, NULL};\n'
        "PyMODINIT_FUNC PyInit_tool(void) { return PyModule_Create(&module); }\n"
    )
    # One that is not pure itself, so that it is built for each as well.
    repo.add("app", requires=["tool"], act="import tool, sys; open(f'seen-{sys.version_info[1]}', 'w').close()")
    environ = os.environ | {"MONOREPO_LOG": str(repo.log)}
    process = repo.start(
        *("-w", "-o", str(repo.out_dir), "--python", path, "--python", sys.executable, "tool", "app"), env=environ
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    tags = {name.split("-")[2] for name in repo.artifacts() if name.startswith("tool")}
    assert tags == {f"cp{major}{minor}" for major, minor in (version, sys.version_info[:2])}
    assert (repo.folder / "app" / f"seen-{version[1]}").exists()


def test_a_python_that_does_not_run_or_is_too_old_is_an_error(repo: Monorepo, tmp_path: Path) -> None:
    repo.add("one")
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'version 3.12 is not installed' >&2\necho '  See help' >&2\nexit 127\n")
    shim.chmod(0o755)
    _, err = repo.build("--python", str(shim), "one", status=1)
    assert err.splitlines() == [
        f"ERROR Cannot build with the Python {shim}: {shim} does not run: version 3.12 is not installed"
    ]
    shim.write_text("#!/bin/sh\necho hello\n")
    _, err = repo.build("--python", str(shim), "one", status=1)
    assert err.splitlines() == [
        f"ERROR Cannot build with the Python {shim}: {shim} is no Python: it does not tell its version"
    ]
    _, err = repo.build("--python", str(tmp_path / "no-such-python"), "one", status=1)
    assert err.startswith(f"ERROR Cannot build with the Python {tmp_path / 'no-such-python'}: ")
    assert len(err.splitlines()) == 1
    if old := shutil.which("python3.10") or shutil.which("python2"):
        probe = subprocess.run([old, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
        if probe.returncode == 0:
            _, err = repo.build("--python", old, "one", status=1)
            assert "3.11 or newer" in err


def test_the_option_excludes_no_isolation(repo: Monorepo) -> None:
    repo.add("one")
    _, err = repo.build("-n", "--python", sys.executable, "one", status=2)
    assert "--python: not allowed with --no-isolation" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("wheel", "version", "expected"),
    [
        ("a-1-py3-none-any.whl", (3, 13), True),
        ("a-1-py2.py3-none-any.whl", (3, 13), True),
        ("a-1-py2-none-any.whl", (3, 13), False),
        ("a-1-py312-none-any.whl", (3, 11), False),
        ("a-1-py3-none-linux_x86_64.whl", (3, 11), True),
        ("a-1-cp311-abi3-linux_x86_64.whl", (3, 13), True),
        ("a-1-cp312-abi3-linux_x86_64.whl", (3, 11), False),
        ("a-1-cp311-cp311-linux_x86_64.whl", (3, 11), False),
        ("a-1-cp311-none-any.whl", (3, 12), False),
    ],
)
def test_the_tag_of_a_wheel_says_which_pythons_it_serves(wheel: str, version: tuple[int, int], expected: bool) -> None:
    assert serves(wheel, Python("python", version)) is expected

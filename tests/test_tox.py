"""The plugin for tox, with real tox processes. The project in these tests is one whose hooks notice each other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from lockbuild.locks import SourceTreeLock
from machine import interpreters
from screen import on_screen, terminal
from wheelhouse import Wheelhouse, processes_naming
from witness import PATIENCE, WitnessTree, wait_until

pytestmark = pytest.mark.slow

WAITING = "Waiting for the lock on "

_PYPROJECT = """
[build-system]
requires = []
build-backend = "witness_backend"
backend-path = ["."]

[tool.lockbuild]
lock = "always"
"""

_TOX = """
[tox]
requires = {requires}
env_list = a, b, c

[testenv]
package = wheel
pass_env = WITNESS_*
commands = python -c "import witness; print('version', witness.VERSION)"

[testenv:sdist]
package = sdist

[testenv:editable]
package = editable

[testenv:extras]
extras = more

[pkgenv]
pass_env = WITNESS_*
"""

_LOCKING_BACKEND = f"""
import os, sys
sys.path[1:1] = {sys.path!r}
from lockbuild.locks import SourceTreeLock
import witness_backend
from witness_backend import *

def build_editable(*arguments):
    with SourceTreeLock(os.getcwd(), timeout=2):
        return witness_backend.build_editable(*arguments)
"""

_EXTERNAL_SDIST = f"""
deps = needed

[testenv:external]
package = external

[testenv:.pkg_external]
allowlist_externals = *
commands = {sys.executable} -m lockbuild --sdist --out-dir {{env_tmp_dir}} {{tox_root}}
package_glob = {{env_tmp_dir}}{{/}}*.tar.gz
"""

_FLAT_SDIST = """
def build_sdist(sdist_directory, config_settings=None):
    with open("PKG-INFO", "w") as file:
        file.write(_dist_info()["METADATA"])
    name = f"witness-{VERSION}.tar.gz"
    with tarfile.open(os.path.join(sdist_directory, name), "w:gz") as archive:
        for path in ("pyproject.toml", "PKG-INFO"):
            archive.add(path)
    return name
"""

# Tells that an environment is about to install the package, and waits for leave to do so.
_GATE_BEFORE_INSTALLATION = """
import os
from tox.plugin import impl

@impl
def tox_on_install(of_type):
    if of_type == "package" and "INSTALLATION_GATE" in os.environ:
        open(os.environ["INSTALLATION_GATE"] + ".reached", "w").close()
        with open(os.environ["INSTALLATION_GATE"]) as gate:
            gate.read()
"""


@pytest.fixture
def project(witness_tree: WitnessTree) -> Iterator[WitnessTree]:
    """A witness tree with a tox.ini that asks for lockbuild. What tox has started and left is killed, too."""
    (witness_tree.path / "pyproject.toml").write_text(_PYPROJECT)
    (witness_tree.path / "tox.ini").write_text(_TOX.format(requires="lockbuild[tox]"))
    yield witness_tree
    for process in witness_tree.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start_tox(
    project: WitnessTree,
    *words: str,
    env: dict[str, str | None] | None = None,
    gate: Path | None = None,
    python: str = sys.executable,
    output: int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    # These tests may themselves run under tox, whose variables would be taken for options.
    without: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TOX")}
    process = subprocess.Popen(
        [python, "-m", "tox", *words],
        cwd=project.path,
        env=project.environ(without | (env or {}), gate),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    project.started.append(process)
    return process


def run_tox(project: WitnessTree, *words: str, env: dict[str, str | None] | None = None, status: int = 0) -> str:
    return finish(start_tox(project, *words, env=env), status)


def finish(process: subprocess.Popen[str], status: int = 0, read: str = "") -> str:
    out = read + process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == status, out
    return out


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's output until a text comes; what comes after it may be part of what is returned."""
    assert process.stdout is not None
    descriptor, read = process.stdout.fileno(), b""
    deadline = time.monotonic() + PATIENCE
    while text.encode() not in read:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(descriptor, 65536) if ready else b""
        assert more, f"{text!r} did not come, but:\n{read.decode()}"
        read += more
    return read.decode()


def uses_lockbuild(out: str) -> bool:
    return " -m lockbuild " in out


def folders_of_sessions(project: WitnessTree) -> list[Path]:
    return list((project.path / ".tox" / ".tmp").glob("lockbuild-*"))


def test_a_project_that_requires_lockbuild_has_its_packages_built_by_it(project: WitnessTree) -> None:
    # Without installing it, which takes most of the time in these tests.
    out = run_tox(project, "run", "--pkg-only", "-e", "a,sdist,b")
    # One wheel for both environments that install it, and no environment of tox to build it in.
    assert out.count(" -m lockbuild --wheel ") == 1
    assert out.count(" -m lockbuild --sdist ") == 1
    assert not (project.path / ".tox" / ".pkg" / "bin").exists()
    dist = project.path / ".tox" / ".pkg" / "dist"
    assert {path.name for path in dist.iterdir()} == {"witness-1.0-py3-none-any.whl", "witness-1.0.tar.gz"}
    assert folders_of_sessions(project) == []


@pytest.mark.parametrize(
    ("requires", "words"),
    [("tox", ()), ("lockbuild[tox]", ("-x", "tox.lockbuild=false"))],
    ids=["not asked for", "switched off"],
)
def test_any_other_project_is_left_to_tox(project: WitnessTree, requires: str, words: tuple[str, ...]) -> None:
    (project.path / "tox.ini").write_text(_TOX.format(requires=requires))
    out = run_tox(project, "run", "--pkg-only", "-e", "a", *words)
    assert project.entered("build_wheel")
    assert not uses_lockbuild(out)
    assert (project.path / ".tox" / ".pkg" / "bin").exists()


def test_two_work_directories_over_one_tree_are_built_in_turns_and_tox_tells_of_the_wait(
    project: WitnessTree,
) -> None:
    gate = project.make_gate()
    first = start_tox(project, "run", "-e", "a", "--workdir", str(project.control / "first"), gate=gate.path)
    project.wait_for_entry("build_wheel")
    second = start_tox(project, "run", "-e", "a", "--workdir", str(project.control / "second"))
    read = read_until(second, WAITING)
    assert project.entered("build_wheel") == [project.wait_for_entry("build_wheel")]
    gate.open()
    finish(first)
    out = finish(second, read=read)
    assert f"{WAITING}{project.path}, held by " in out
    assert "Got the lock on " in out
    project.assert_no_overlap()
    assert len(project.entered("build_wheel")) == 2


def test_tox_in_parallel_tells_of_a_wait_while_it_lasts(project: WitnessTree) -> None:
    with SourceTreeLock(project.path):
        tox = start_tox(project, "p", "-e", "a,b")
        read = read_until(tox, WAITING)
        assert project.log() == []
    out = finish(tox, read=read)
    # Once: not again with what tox has kept back.
    assert out.count(f"{WAITING}{project.path}, held by ") == 1
    assert "a: OK" in out
    assert "b: OK" in out


def test_on_a_terminal_the_line_of_a_wait_stands_above_the_spinner(project: WitnessTree) -> None:
    with terminal() as (descriptor, received):
        with SourceTreeLock(project.path):
            # Where CI is set tox has no spinner.
            tox = start_tox(project, "p", "-e", "a", env={"CI": None}, output=descriptor)
            wait_until(lambda: WAITING.encode() in b"".join(received), "the line of the wait")
        assert tox.wait(PATIENCE) == 0
        wait_until(lambda: b"evaluation" in b"".join(received) or b"congrat" in b"".join(received), "the last line")
    lines = on_screen(b"".join(received))
    assert [line for line in lines if WAITING in line] == [
        line for line in lines if line.startswith(f".pkg: {WAITING}{project.path}, held by ")
    ]


def test_two_tox_processes_at_once_over_one_work_directory_both_pass(project: WitnessTree) -> None:
    several = start_tox(project, "p", "-e", "a,b,editable")
    one = start_tox(project, "run", "-e", "c")
    assert "version 1.0" in finish(one)
    out = finish(several)
    assert all(f"{name}: OK" in out for name in ("a", "b", "editable"))
    project.assert_no_overlap()


def test_an_editable_wheel_is_built_by_lockbuild_under_the_lock(project: WitnessTree) -> None:
    with SourceTreeLock(project.path):
        tox = start_tox(project, "run", "-e", "editable")
        read = read_until(tox, WAITING)
        assert project.log() == []
    out = finish(tox, read=read)
    assert "version 1.0" in out
    assert out.count(" -m lockbuild --editable ") == 1
    assert project.entered("get_requires_for_build_editable")
    assert not (project.path / ".tox" / ".pkg" / "bin").exists()


def test_what_an_editable_wheel_requires_is_read_from_itself(project: WitnessTree, tmp_path: Path) -> None:
    wheelhouse = Wheelhouse(tmp_path / "wheelhouse")
    wheelhouse.folder.mkdir()
    wheelhouse.add_wheel("needed")
    with (project.path / "witness_backend.py").open("a") as file:
        file.write(
            "\n_build_editable = build_editable\n"
            "def build_editable(*arguments, **named):\n"
            "    os.environ['WITNESS_METADATA'] = 'Requires-Dist: needed\\n'\n"
            "    return _build_editable(*arguments, **named)\n"
        )
    offline: dict[str, str | None] = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse.folder)}
    out = run_tox(project, "run", "-e", "a,editable", env=offline)
    [installation] = [line for line in out.splitlines() if "install_package_deps>" in line]
    assert installation.startswith("editable: ")
    assert installation.split()[-1] == "needed"


def test_a_backend_without_the_hook_for_editable_wheels_is_named(project: WitnessTree) -> None:
    with (project.path / "witness_backend.py").open("a") as file:
        file.write("\ndel build_editable\n")
    out = run_tox(project, "run", "-e", "editable", status=1)
    assert "ERROR Backend 'witness_backend' has no hook build_editable" in out


def test_deps_of_the_packaging_environment_are_the_error_that_they_are_in_tox(project: WitnessTree) -> None:
    with (project.path / "tox.ini").open("a") as file:
        file.write("deps = needed\n")
    out = run_tox(project, "run", "-e", "a", status=1)
    assert "does not support the deps configuration" in out
    assert project.log() == []


def test_where_an_external_sdist_is_built_with_deps_its_metadata_is_still_read(
    project: WitnessTree, tmp_path: Path
) -> None:
    wheelhouse = Wheelhouse(tmp_path / "wheelhouse")
    wheelhouse.folder.mkdir()
    wheelhouse.add_wheel("needed")
    with (project.path / "tox.ini").open("a") as file:
        file.write(_EXTERNAL_SDIST)
    offline: dict[str, str | None] = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse.folder)}
    out = run_tox(project, "run", "-e", "external", env=offline)
    assert out.count(" -m lockbuild --metadata ") == 1
    assert "version 1.0" in out


@pytest.mark.skipif(Version(version("tox")) < Version("4.67"), reason="an older tox itself fails for such a tree")
@pytest.mark.parametrize("package", ["editable", "editable-legacy"])
def test_a_tree_that_cannot_be_built_is_one_line_also_for_an_editable_installation(
    project: WitnessTree, package: str
) -> None:
    (project.path / "pyproject.toml").write_text("[build-system]\nrequires = 3\n")
    out = run_tox(project, "run", "-e", "editable", "-x", f"testenv:editable.package={package}", status=1)
    assert "Failed to validate `build-system` in pyproject.toml" in out
    assert "Traceback" not in out


def test_a_requirement_that_is_none_is_one_line_for_a_legacy_editable_installation(project: WitnessTree) -> None:
    (project.path / "pyproject.toml").write_text(_PYPROJECT.replace("requires = []", 'requires = ["?"]'))
    out = run_tox(project, "run", "-e", "a", "-x", "testenv.package=editable-legacy", status=1)
    assert f"cannot build {project.path}: Expected package name" in out
    assert "Traceback" not in out


def test_an_sdist_without_one_folder_is_refused_in_one_line_when_a_wheel_is_built_from_it(
    project: WitnessTree,
) -> None:
    with (project.path / "witness_backend.py").open("a") as file:
        file.write(_FLAT_SDIST)
    out = run_tox(project, "run", "-e", "a", "-x", "testenv.package=sdist-wheel", status=1)
    assert "must contain a single top-level directory, got: ['PKG-INFO', 'pyproject.toml']" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(("package", "status"), [("wheel", 0), ("sdist-wheel", 0), ("editable", 1)])
def test_for_a_python_that_is_too_old_its_pip_builds_from_an_sdist(
    project: WitnessTree, package: str, status: int
) -> None:
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.10 on this machine")
    words = ("-x", f"testenv.package={package}", "--discover", python)
    out = run_tox(project, "run", "-e", "py310", *words, status=status)
    if status:
        assert "lockbuild cannot build an editable wheel for Python 3.10" in out
        assert project.log() == []
    else:
        assert "lockbuild does not run under Python 3.10" in out
        assert "version 1.0" in out
        assert out.count(" -m lockbuild --sdist ") == 1
    # Nothing was set up for tox to build in.
    assert not list((project.path / ".tox").glob(".pkg*/bin"))


def old_python() -> str | None:
    candidates = [shutil.which("python3.10")]
    if root := os.environ.get("PYENV_ROOT"):
        candidates += map(str, Path(root).glob("versions/3.10.*/bin/python3"))
    # A shim of a version manager may name a version that is not there.
    works = (
        each for each in candidates if each and not subprocess.run([each, "-c", ""], capture_output=True).returncode
    )
    return next(works, None)


@pytest.mark.parametrize("only_tox", [False, True], ids=["as a terminal does", "to tox alone"])
def test_a_tox_that_waits_for_the_lock_can_be_interrupted(project: WitnessTree, only_tox: bool) -> None:
    with SourceTreeLock(project.path):
        tox = start_tox(project, "run", "-e", "editable")
        read = read_until(tox, WAITING)
        (os.kill if only_tox else os.killpg)(tox.pid, signal.SIGINT)
        out = read + tox.communicate(timeout=PATIENCE)[0]
        assert tox.returncode not in (0, None), out
    assert "Got the lock" not in out
    assert "Traceback" not in out
    assert project.log() == []


def test_an_editable_wheel_whose_backend_takes_the_lock_itself_does_not_wait_for_it(project: WitnessTree) -> None:
    (project.path / "locking_backend.py").write_text(_LOCKING_BACKEND)
    pyproject = project.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"witness_backend"', '"locking_backend"'))
    assert "version 1.0" in run_tox(project, "run", "-e", "editable")


def test_what_was_built_is_installed_even_if_another_tox_builds_in_between(project: WitnessTree) -> None:
    (project.path / "toxfile.py").write_text(_GATE_BEFORE_INSTALLATION)
    gate = project.make_gate("installation")
    reached = Path(f"{gate.path}.reached")
    first = start_tox(project, "run", "-e", "a", env={"INSTALLATION_GATE": str(gate.path), "WITNESS_VERSION": "1.1"})
    wait_until(reached.exists, "the end of the first build")
    # Also with -r, which empties the folder of the packaging environment.
    out = run_tox(project, "run", "-r", "-e", "b", env={"WITNESS_VERSION": "1.2"})
    assert "version 1.2" in out
    assert " -m lockbuild --refresh " in out
    gate.open()
    assert "version 1.1" in finish(first)


@pytest.mark.parametrize("only_tox", [False, True], ids=["as a terminal does", "to tox alone"])
def test_an_interrupted_tox_leaves_neither_a_backend_nor_a_lock(project: WitnessTree, only_tox: bool) -> None:
    gate = project.make_gate()
    tox = start_tox(project, "run", "-e", "a", gate=gate.path)
    project.wait_for_entry("build_wheel")
    (os.kill if only_tox else os.killpg)(tox.pid, signal.SIGINT)
    out = tox.communicate(timeout=PATIENCE)[0]
    assert tox.returncode not in (0, None), out
    assert processes_naming(project.path) == []
    with SourceTreeLock(project.path, timeout=0):
        pass
    assert folders_of_sessions(project) == []


def test_settings_and_variables_of_the_packaging_environment_reach_the_backend(project: WitnessTree) -> None:
    with (project.path / "tox.ini").open("a") as file:
        file.write("set_env = WITNESS_VERSION = 7.0\n")
        file.write("config_settings_build_wheel = --quick = yes\n")
        file.write("config_settings_get_requires_for_build_wheel = other = 1\n")
    run_tox(project, "run", "--pkg-only", "-e", "a")
    assert (project.path / ".tox" / ".pkg" / "dist" / "witness-7.0-py3-none-any.whl").exists()
    settings = [json.loads(text) for word, _, text in project.log() if word == "settings"]
    assert settings == [{"other": "1", "--quick": "yes"}] * 2


def test_dependencies_of_the_package_and_of_its_extras_are_installed(project: WitnessTree, tmp_path: Path) -> None:
    wheelhouse = Wheelhouse(tmp_path / "wheelhouse")
    wheelhouse.folder.mkdir()
    for name in ("needed", "needed-more", "not-needed"):
        wheelhouse.add_wheel(name)
    metadata = (
        "Requires-Dist: needed\nProvides-Extra: more\nProvides-Extra: other\n"
        "Requires-Dist: needed-more; extra == 'more'\nRequires-Dist: not-needed; extra == 'other'\n"
    )
    with (project.path / "tox.ini").open("a") as file:
        file.write("[testenv:sdist-extras]\npackage = sdist\nextras = more\n")
    offline: dict[str, str | None] = {
        "WITNESS_METADATA": metadata,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheelhouse.folder),
    }
    out = run_tox(project, "run", "-e", "sdist-extras,extras", env=offline)
    installations = [line for line in out.splitlines() if "install_package_deps>" in line]
    assert len(installations) == 2
    for line in installations:
        assert line.split()[-2:] == ["needed", "needed-more"]
    # lockbuild has asked the backend for the metadata once. pip has, too, for the sdist.
    assert out.count(" -m lockbuild --metadata ") == 1
    assert len(project.entered("prepare_metadata_for_build_wheel")) == 2


def test_a_failed_build_shows_what_the_backend_said(project: WitnessTree) -> None:
    with (project.path / "witness_backend.py").open("a") as file:
        file.write("\ndef build_wheel(*_):\n    raise SystemExit('this backend is broken')\n")
    out = run_tox(project, "run", "-e", "a", status=1)
    assert "this backend is broken" in out
    assert "ERROR" in out


def test_a_wheel_for_another_python_is_built_by_lockbuild_under_that_python(project: WitnessTree) -> None:
    others = [(python, version) for python, version in interpreters() if version != sys.version_info[:2]]
    if not others:
        pytest.skip("there is no second version of Python on this machine")
    python, (major, minor) = others[0]
    name = f"py{major}{minor}"
    out = run_tox(project, "run", "-e", f"a,{name}", "--discover", python)
    assert re.search(rf"\.pkg-cpython{major}{minor}/bin/python -P \S+elsewhere\.py \S+ lockbuild --wheel ", out)
    # It runs from where it is, and is not installed there.
    assert not [*project.path.glob(f".tox/.pkg-cpython{major}{minor}/lib/*/site-packages/lockbuild*")]
    assert out.count("version 1.0") == 2
    project.assert_no_overlap()


def test_wheels_for_two_pythons_are_built_in_parallel_environments(project: WitnessTree) -> None:
    others = [(python, version) for python, version in interpreters() if version != sys.version_info[:2]]
    if not others:
        pytest.skip("there is no second version of Python on this machine")
    python, (major, minor) = others[-1]
    names = ("a", f"py{major}{minor}", "editable")
    out = run_tox(project, "p", "-e", ",".join(names), "--discover", python)
    assert all(f"{name}: OK" in out for name in names)
    # The witness builds an editable wheel as it builds another one.
    assert len(project.entered("build_wheel")) == 3
    assert (project.path / ".tox" / f".pkg-cpython{major}{minor}" / "bin").exists()
    project.assert_no_overlap()
    assert folders_of_sessions(project) == []


def test_it_builds_with_uv_where_tox_uv_is_installed(project: WitnessTree, tmp_path: Path) -> None:
    venv, python = tmp_path / "venv", str(tmp_path / "venv" / "bin" / "python")
    for words in (
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--no-deps", "tox-uv-bare"],
    ):
        subprocess.run(words, check=True)
    # Everything else is taken from where these tests run.
    [packages] = venv.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    out = finish(start_tox(project, "run", "-e", "a,editable", python=python))
    assert f"{python} -P -m lockbuild --installer uv --wheel " in out
    assert "editable: OK" in out
    assert "uv pip install" in out
    # tox-uv has nothing to do in the packaging environment, which has no virtual environment.
    assert "recreate env" not in out

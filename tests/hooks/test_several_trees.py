"""A hook host that imports the backend ahead, and serves the hooks of an sdist and then of the wheel from it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.project import IMPORTED_AHEAD, Project
from machine import is_free, is_running, linux_only, parent, start_adopted
from wheelhouse import Wheelhouse
from witness import LOCKBUILD, Gate, WitnessTree, wait_until

# A backend that says who imports it and who runs a hook. It stands in for one of those that are imported ahead, under
# that one's name.
_BACKEND = """
import os, subprocess
from witness_backend import *
from witness_backend import _witness
import witness_backend

def _tell(*words):
    with open(os.environ["TOLD"], "a") as file:
        print(*words, file=file)

_tell("import", os.getpid())

def build_sdist(*arguments):
    _tell("build_sdist", os.getppid())
    subprocess.run(os.environ.get("IN_SDIST", "true"), shell=True, check=True)
    gate = os.environ.pop("WITNESS_GATE", None)
    name = witness_backend.build_sdist(*arguments)
    os.environ |= {"WITNESS_GATE": gate} if gate else {}
    return name

def build_wheel(*arguments):
    _tell("build_wheel", os.getppid())
    print("the wheel is built in", os.getcwd(), flush=True)
    return witness_backend.build_wheel(*arguments)
"""

# A backend of a version, which makes sdists that require the next one.
_REQUIRES_ANOTHER = """
import pathlib, witness_backend
from witness_backend import *

def build_sdist(*arguments):
    print("built by {0}", flush=True)
    project = pathlib.Path("pyproject.toml")
    project.write_text(project.read_text().replace("1.0", "2.0"))
    return witness_backend.build_sdist(*arguments)

def build_wheel(*arguments):
    print("built by {0}", flush=True)
    return witness_backend.build_wheel(*arguments)
"""

# Prints what a backend does with the working directory while it is imported.
_WATCH = """
import importlib, os, sys
sys.path[0] or sys.path.pop(0)
modules = sys.argv[1:]
def watch(event, arguments):
    path = arguments[0] if arguments else ""
    if event in ("open", "os.listdir", "os.scandir", "os.chdir"):
        if path is None or isinstance(path, (str, bytes)) and not os.path.isabs(path):
            print(event, path)
def getcwd(real=os.getcwd):
    print("os.getcwd")
    return real()
os.getcwd = getcwd
sys.addaudithook(watch)
for name in modules:
    importlib.import_module(name)
print("imported")
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no hook host")


@pytest.fixture
def tree(witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch) -> WitnessTree:
    """A tree with an installed backend, which is imported before the lock is had."""
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(witness_tree.install_backend()))
    # The sdist has it.
    (witness_tree.path / "witness_backend.py").write_text("")
    monkeypatch.setenv("TOLD", str(witness_tree.control / "told"))
    witness_tree.use_backend("mesonpy", _BACKEND)
    return witness_tree


def told(tree: WitnessTree, what: str) -> list[int]:
    """Return the process numbers that the backend has told with a word."""
    lines = (tree.control / "told").read_text().splitlines()
    return [int(number) for word, number in map(str.split, lines) if word == what]


def in_background(tree: WitnessTree, gate: Gate) -> str:
    """Return the shell command that starts a build of the tree and ends when that waits at the gate in its hook."""
    words = [*LOCKBUILD, "-n", "--wheel", "-o", str(tree.control / "nested"), str(tree.path)]
    started = f"while ! grep -q ' build_wheel$' {tree.log_file}; do :; done"
    return f"WITNESS_GATE={gate.path} {shlex.join(words)} >/dev/null 2>&1 & {started}"


def lock_files() -> list[Path]:
    return sorted(Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("setuptools-*.lock"))


def test_one_process_imports_the_backend_for_the_sdist_and_for_the_wheel_from_it(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start("-v"))
    [host] = told(tree, "import")
    assert told(tree, "build_sdist") == told(tree, "build_wheel") == [host]
    hooks = [pid for word, pid, _ in tree.log() if word == "enter"]
    assert len(set(hooks)) == len(hooks) == 4


def test_one_host_serves_all_distributions_from_the_tree(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start("--sdist", "--wheel"))
    assert told(tree, "import") == told(tree, "build_sdist") == told(tree, "build_wheel")


def test_a_backend_that_is_not_known_to_bear_it_is_imported_by_each_hook(tree: WitnessTree) -> None:
    tree.use_backend("looks_around", _BACKEND)
    tree.assert_all_succeed(tree.start("-v"))
    hooks = [pid for word, pid, _ in tree.log() if word == "enter"]
    assert told(tree, "import") == hooks


@pytest.mark.parametrize("searched", ["lib", ""], ids=["a folder", "the tree"])
def test_what_is_searched_from_the_working_directory_is_imported_by_each_hook(tree: WitnessTree, searched: str) -> None:
    tree.assert_all_succeed(tree.start("-v", env={"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{searched}"}))
    hooks = [pid for word, pid, _ in tree.log() if word == "enter"]
    assert told(tree, "import") == hooks


@pytest.mark.slow
def test_a_second_environment_in_the_folder_of_the_first_has_a_backend_of_its_own(
    witness_tree: WitnessTree, house: Wheelhouse
) -> None:
    witness = (witness_tree.path / "witness_backend.py").read_text()
    for version in ("1.0", "2.0"):
        files = {"mesonpy.py": _REQUIRES_ANOTHER.format(version), "witness_backend.py": witness}
        house.add_wheel("meson-python", version, files)
    (witness_tree.path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["meson-python==1.0"]\nbuild-backend = "mesonpy"\n'
    )
    folder = witness_tree.control / "env"
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house.folder), "LOCKBUILD_PREIMPORT": None}
    done = subprocess.run(
        [*LOCKBUILD, "--env-dir", folder, "-o", witness_tree.out_dir, witness_tree.path],
        env=witness_tree.environ(env),
        capture_output=True,
        text=True,
        check=True,
    )
    built = [line for line in done.stdout.splitlines() if line.startswith("built by")]
    assert built == ["built by 1.0", "built by 2.0"]


def test_a_host_that_has_failed_serves_no_other_tree(tree: WitnessTree) -> None:
    build = tree.start("-v", env={"IN_SDIST": "kill -9 $PPID"})
    assert tree.finish(build)[0][0] == 1
    [host] = told(tree, "import")
    assert not is_running(host)


@linux_only
def test_the_tree_of_the_sdist_is_free_while_the_wheel_is_built(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    build = tree.start("-v", gate=gate.path)
    tree.wait_for_entry("build_wheel")
    # The wheel's tree was unpacked for this build alone, and needs no lock.
    assert [path for path in [tree.path, *lock_files()] if not is_free(path)] == []
    other = tree.start("--sdist", "--lock-timeout", "0", out_dir=tree.control / "other")
    assert tree.finish(other)[0][0] == 0
    gate.open()
    assert tree.finish(build)[0][0] == 0


@pytest.mark.slow
@linux_only
def test_the_lock_of_the_second_tree_outlives_a_killed_frontend_as_long_as_the_hook_lives(tree: WitnessTree) -> None:
    gate, extracted = tree.make_gate(), tree.control / "extracted"
    frontend = start_adopted(tree, "--sdist-extract-dir", str(extracted), gate=gate.path)
    hook = tree.wait_for_entry("build_wheel")
    host = parent(hook)
    os.kill(host, signal.SIGSTOP)
    os.kill(frontend, signal.SIGKILL)
    wait_until(lambda: not is_running(frontend), "the end of the frontend")
    held = [extracted / "witness-1.0", extracted]
    assert is_running(hook)
    assert [path for path in held if is_free(path)] == []
    assert is_free(tree.path)
    late = tree.start("--sdist-extract-dir", str(extracted), "--lock-timeout", "0.2", out_dir=tree.control / "late")
    assert tree.finish(late)[0][0] == 75
    os.kill(host, signal.SIGCONT)
    wait_until(lambda: all(map(is_free, held)), "the release")
    assert not is_running(hook)


@pytest.mark.slow
@linux_only
def test_a_build_that_outlives_the_sdist_hook_keeps_its_lock_while_the_wheel_is_built(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    build = tree.start("-v", env={"IN_SDIST": in_background(tree, gate)})
    background = tree.wait_for_entry()
    [(status, out, error)] = tree.finish(build)
    assert status == 0, error
    # The output of the second tree's hooks is not lost with that of the host that stays behind.
    assert "the wheel is built in" in out
    stranger = tree.start("--wheel", "--lock-timeout", "0.5", out_dir=tree.control / "stranger")
    assert tree.finish(stranger)[0][0] == 75
    assert ("leave", background, "build_wheel") not in tree.log()
    gate.open()
    assert tree.finish(tree.start("--wheel", out_dir=tree.control / "after"))[0][0] == 0
    # Who came after it was not in there with it; the wheel's hooks were beside it, in another tree.
    assert tree.entered("build_wheel")[-1] not in {pid for word, pid, _ in tree.log() if word == "overlap"}


@pytest.mark.slow
def test_a_build_that_ends_soon_after_the_sdist_hook_takes_no_output_with_it(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    build = tree.start("-v", env={"IN_SDIST": in_background(tree, gate)})
    wait_until(lambda: any((word, hook) == ("leave", "build_sdist") for word, _, hook in tree.log()), "the sdist")
    gate.open()
    [(status, out, error)] = tree.finish(build)
    assert status == 0, error
    assert "the wheel is built in" in out


@pytest.mark.slow
def test_backends_are_imported_alike_everywhere(environment: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    python = environment / "bin" / "python"
    projects = ["flit_core", "hatchling", "maturin", "meson-python", "pdm-backend", "poetry-core", "setuptools"]
    wanted = [*projects, "uv_build", "scikit-build-core"]
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *wanted], check=True)

    def watched(*modules: str) -> list[str]:
        done = subprocess.run([python, "-c", _WATCH, *modules], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    trees = [Project("tree", backend, (), (), "auto", has_project_table=True) for backend in IMPORTED_AHEAD]
    found = {tree.backend: watched(*tree.imported_ahead) for tree in trees}
    assert found == {backend: ["imported"] for backend in IMPORTED_AHEAD}
    # One that does look is seen.
    assert watched("scikit_build_core.build") != ["imported"]

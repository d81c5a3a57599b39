"""``lockbuild.backend``: projects that name it are safe from pip, uv, ``python -m build`` and each other.

The project here is built by setuptools. Its setup.py is a witness: it notices when another one runs in the same tree.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pyproject_hooks import BuildBackendHookCaller
from setuptools import build_meta

import lockbuild
from lockbuild import LockTimeoutError, SourceTreeLock
from machine import wait_until_it_waits
from wheelhouse import Wheelhouse
from witness import LOCKBUILD, PATIENCE, PYTHON_BUILD, WitnessTree

HOOKS = (
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "get_requires_for_build_editable",
    "prepare_metadata_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "build_sdist",
    "build_wheel",
    "build_editable",
)

# In a tree that was unpacked from an sdist nobody is a witness: it is another tree. RUN_IN_SETUP is a command.
SETUP = """
import contextlib, os, subprocess, sys
from setuptools import setup

witness = contextlib.nullcontext()
if os.path.exists("witness_backend.py"):
    sys.path.insert(0, os.getcwd())
    import witness_backend
    witness = witness_backend._witness("setup")
    if "bdist_wheel" in sys.argv:
        if command := os.environ.pop("RUN_IN_SETUP", None):
            subprocess.run(["sh", "-c", command], check=True)
with witness:
    if "bdist_wheel" in sys.argv and os.path.exists("witness_backend.py"):
        witness_backend._wait_at_gate()
    setup(name="witness", version="1.0", py_modules=["demo"], packages=[])
"""


def pyproject(backend: str, *requires: str) -> str:
    return f'[build-system]\nrequires = {json.dumps(requires)}\nbuild-backend = "{backend}"\n'


@pytest.fixture
def tree(witness_tree: WitnessTree) -> WitnessTree:
    """A tree that setuptools builds, by our backend."""
    (witness_tree.path / "setup.py").write_text(SETUP)
    (witness_tree.path / "demo.py").write_text("value = 1\n")
    (witness_tree.path / "MANIFEST.in").write_text("exclude witness_backend.py\n")
    (witness_tree.path / "pyproject.toml").write_text(pyproject("lockbuild.backend", "setuptools", "lockbuild"))
    return witness_tree


def call(hook: str, tree: WitnessTree, out: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Have a hook called as frontends do it: in a process of its own, in the tree."""
    out.mkdir(exist_ok=True)
    arguments = "" if hook.startswith("get_requires") else repr(str(out))
    program = f"from lockbuild import backend; print(backend.{hook}({arguments}))"
    return tree.start_process(sys.executable, "-c", program, env=env, cwd=tree.path)


def test_it_has_the_hooks_that_setuptools_has() -> None:
    from lockbuild import backend

    assert [name for name in HOOKS if hasattr(backend, name)] == [n for n in HOOKS if hasattr(build_meta, n)]
    assert sorted(backend.__all__) == sorted(name for name in HOOKS if hasattr(backend, name))
    assert not [name for name in build_meta.__all__ if "_for_" in name and name not in HOOKS]


def test_a_hook_that_setuptools_does_not_have_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").touch()
    without_editable = [name for name in HOOKS if "editable" not in name]
    (tmp_path / "setuptools" / "build_meta.py").write_text("".join(f"def {n}(*a): ...\n" for n in without_editable))
    ask = f"from lockbuild import backend; print([name for name in {HOOKS} if hasattr(backend, name)])"
    told = subprocess.run(
        [sys.executable, "-c", ask], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert told.stdout == f"{without_editable}\n", told.stderr


def test_it_needs_filelock_and_platformdirs_and_setuptools_and_no_more(tree: WitnessTree, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "lockbuild").symlink_to(Path(lockbuild.__file__).parent)
    for name in ("filelock", "platformdirs", "setuptools"):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if not file.parts[0].startswith((".", "_pytest"))}
        for top in tops - {"__pycache__"}:
            (site / top).symlink_to(str(distribution.locate_file(top)))
    build = (
        f"import sys; sys.path.append({str(site)!r}); from lockbuild import backend; backend.build_wheel(sys.argv[1])"
    )
    finished = subprocess.run(
        # -S: without the packages that the tests run with; -P: without what lies in the tree.
        [sys.executable, "-SP", "-c", build, str(tree.out_dir)],
        cwd=tree.path,
        env=tree.environ({"PYTHONPATH": None}),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert [path.name for path in tree.out_dir.iterdir()] == ["witness-1.0-py3-none-any.whl"]


def test_without_setuptools_it_says_what_to_write_into_pyproject_toml(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "lockbuild").symlink_to(Path(lockbuild.__file__).parent)
    load = f"import sys; sys.path.append({str(alone)!r}); import lockbuild.backend"
    finished = subprocess.run([sys.executable, "-SP", "-c", load], cwd=tmp_path, capture_output=True, text=True)
    assert finished.stderr.splitlines()[-1].startswith("ImportError: lockbuild.backend needs setuptools,")
    assert 'requires = ["setuptools", "lockbuild"]' in finished.stderr


@pytest.mark.parametrize("hook", HOOKS)
def test_no_hook_touches_a_tree_that_is_locked_and_a_timeout_is_one_line(
    tree: WitnessTree, tmp_path: Path, hook: str
) -> None:
    before = sorted(tree.path.iterdir())
    with SourceTreeLock(tree.path):
        process = call(hook, tree, tmp_path / "out", {"LOCKBUILD_LOCK_TIMEOUT": "0"})
        [(status, out, err)] = tree.finish(process)
    assert (status, out) == (75, "")
    assert re.fullmatch(r"ERROR Gave up after 0 s: the lock on .*\n", err), err
    assert sorted(tree.path.iterdir()) == before


def test_a_hook_waits_for_the_lock_and_says_for_whom(tree: WitnessTree, tmp_path: Path) -> None:
    with SourceTreeLock(tree.path):
        process = call("build_wheel", tree, tmp_path / "out")
        assert f"held by {os.getpid()} " in wait_until_it_waits(process)
        assert not tree.log()
    [(status, out, _)] = tree.finish(process)
    assert status == 0
    assert out.endswith("witness-1.0-py3-none-any.whl\n")
    assert tree.entered("setup")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Editable installation")
def test_the_results_are_those_of_setuptools(tree: WitnessTree, tmp_path: Path) -> None:
    (tree.path / "witness_backend.py").unlink()
    found = {}
    for backend in ("setuptools.build_meta", "lockbuild.backend"):
        caller = BuildBackendHookCaller(str(tree.path), backend)
        out = tmp_path / backend
        for name in ("metadata", "editable"):
            (out / name).mkdir(parents=True)
        with caller.subprocess_runner(lambda cmd, cwd=None, extra_environ=None: _run_quietly(cmd, cwd, extra_environ)):
            requires = caller.get_requires_for_build_wheel({})
            info = caller.prepare_metadata_for_build_wheel(str(out / "metadata"), {}, _allow_fallback=False)
            wheel = caller.build_wheel(str(out), {}, metadata_directory=str(out / "metadata" / info))
            sdist = caller.build_sdist(str(out))
            editable = caller.build_editable(str(out / "editable"))
        with zipfile.ZipFile(out / wheel) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        found[backend] = (requires, info, wheel, sdist, editable, members, files)
    assert found["lockbuild.backend"] == found["setuptools.build_meta"]


def _run_quietly(cmd: list[str], cwd: str | None, extra_environ: Mapping[str, str] | None) -> None:
    environ = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"} | dict(extra_environ or {})
    subprocess.run(cmd, cwd=cwd, env=environ, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("frontend", [LOCKBUILD, PYTHON_BUILD], ids=["lockbuild", "build"])
def test_neither_a_frontend_nor_a_build_in_a_setup_script_makes_it_wait_for_itself(
    tree: WitnessTree, frontend: tuple[str, ...], tmp_path: Path
) -> None:
    # The setup script builds its own tree, with the other frontend, which runs this backend once more.
    inner = PYTHON_BUILD if frontend == LOCKBUILD else LOCKBUILD
    command = shlex.join([*inner, "-n", "--wheel", "--outdir", str(tmp_path / "inner"), str(tree.path)])
    build = tree.start(command=frontend, env={"LOCKBUILD_LOCK_TIMEOUT": "20", "RUN_IN_SETUP": command})
    tree.assert_all_succeed(build)
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["witness-1.0-py3-none-any.whl"]
    assert not list(Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.nested"))


@pytest.mark.parametrize(
    "wrapper", [("flock", "TREE"), (sys.executable, "-m", "lockbuild.commands.run", "-C", "TREE", "--")]
)
def test_it_does_not_wait_for_who_runs_the_frontend_under_the_lock(tree: WitnessTree, wrapper: tuple[str, ...]) -> None:
    command = tuple(word.replace("TREE", str(tree.path)) for word in (*wrapper, *PYTHON_BUILD))
    tree.assert_all_succeed(tree.start(command=command, env={"LOCKBUILD_LOCK_TIMEOUT": "20"}))


def test_the_hook_of_a_killed_frontend_keeps_the_lock(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    frontend = tree.start(command=PYTHON_BUILD, gate=gate.path)
    # The first one is of get_requires_for_build_wheel.
    hook = tree.wait_for_entry("setup", 2)
    frontend.send_signal(signal.SIGKILL)
    assert frontend.wait(PATIENCE) == -signal.SIGKILL
    with pytest.raises(LockTimeoutError, match=f"held by {hook} "), SourceTreeLock(tree.path, timeout=0):
        pass
    second = tree.start(command=PYTHON_BUILD)
    gate.open()
    tree.assert_all_succeed(second)


def test_an_artifact_that_others_may_be_reading_is_replaced_and_never_missing(
    tree: WitnessTree, tmp_path: Path
) -> None:
    # A frontend reads its sdist after its hook, without the lock; another one with the same out-dir may be in its own.
    script = """
import os, sys
from lockbuild import backend
out = sys.argv[1]
def audit(event, arguments):
    if event in ("os.remove", "os.rename"):
        path, descriptor = arguments if event == "os.remove" else arguments[1::2]
        folder = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor != -1 else os.path.dirname(path)
        done.append((event, f"{folder}/{os.path.basename(path)}"))
done = []
name = backend.build_sdist(out)
# Open, so that no other file gets its number.
opened = open(f"{out}/{name}")
first = os.fstat(opened.fileno())
sys.addaudithook(audit)
backend.build_sdist(out)
print([path for event, path in done if event == "os.remove" and path == f"{out}/{name}"], file=sys.stderr)
print(os.stat(f"{out}/{name}").st_ino != first.st_ino, file=sys.stderr)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=tree.path, env=tree.environ(), capture_output=True, text=True
    )
    assert told.stderr.splitlines()[-2:] == ["[]", "True"], told.stderr


# How many of each frontend run at once.
STORM = int(os.environ.get("LOCKBUILD_TEST_STORM", "1"))


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    """What frontends install for the tree: this lockbuild and what it requires, as they are installed here."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    house = Wheelhouse(folder)
    source = Path(lockbuild.__file__).parent
    files = {f"lockbuild/{path.relative_to(source)}": path.read_text() for path in source.rglob("*.py")}
    requires = [Requirement(each) for each in metadata.requires("lockbuild") or ()]
    here = [each for each in requires if each.marker is None or each.marker.evaluate({"extra": ""})]
    house.add_wheel("lockbuild", lockbuild.__version__, files, map(str, here))
    for name in ("setuptools", *(each.name for each in here)):
        house.add_installed(name.replace("-", "_"))
    return house


@pytest.mark.slow
def test_pip_build_uv_and_editable_installs_at_once_all_succeed(
    tree: WitnessTree, wheelhouse: Wheelhouse, tmp_path: Path
) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    pip = (sys.executable, "-m", "pip")
    # build and uv share their out-dir. pip copies its wheel over an older one, and not at once: it gets a folder.
    out_dir = str(tmp_path / "out")
    pythons, commands = [], []
    for number in range(STORM):
        venv = tmp_path / f"venv{number}"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
        pythons.append(str(venv / "bin" / "python"))
        commands += [
            [*PYTHON_BUILD, "-o", out_dir],
            [uv, "build", "--python", sys.executable, "-o", out_dir],
            [*pip, "wheel", ".", "--wheel-dir", str(tmp_path / f"pip{number}")],
            [*pip, "--python", pythons[-1], "install", "--editable", "."],
        ]
    environ: dict[str, str | None] = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheelhouse.folder),
        "UV_NO_CONFIG": "1",
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheelhouse.folder),
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
    }
    builds = [
        subprocess.Popen(
            command,
            cwd=tree.path,
            env=tree.environ(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    tree.started += builds
    for build in builds:
        said, _ = build.communicate(timeout=10 * PATIENCE)
        assert build.returncode == 0, f"{build.args!r}:\n{said}"
    tree.assert_no_overlap()
    assert len(tree.entered("setup")) >= 2 * len(builds)
    wheels = [*tmp_path.glob("out/*.whl"), *tmp_path.glob("pip*/*.whl")]
    assert len(wheels) == 1 + STORM
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            assert archive.testzip() is None
            assert "demo.py" in archive.namelist()
    for python in pythons:
        used = subprocess.run([python, "-I", "-c", "import demo; print(demo.__file__)"], capture_output=True, text=True)
        assert used.stdout == f"{tree.path / 'demo.py'}\n", used.stderr

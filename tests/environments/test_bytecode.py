"""Bytecode in a kept environment is whole, or absent."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import platformdirs
import pytest

import lockbuild
from lockbuild.environments import candidate_environments
from lockbuild.environments.bytecode import keep_verified, verify
from lockbuild.environments.contents import look_at
from lockbuild.environments.request import EnvironmentRequest
from lockbuild.environments.store import Generation
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from machine import after_setup, as_root
from wheelhouse import ProbeTree, created, site_packages
from witness import LOCKBUILD, PATIENCE, WitnessTree

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(16, len(content), 97):
        content[place] ^= 0x55
    path.write_bytes(content)


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _bytecode(environment: Path) -> list[Path]:
    found = sorted(site_packages(environment).glob("**/probe_backend*.pyc"))
    assert found, "Python has written no bytecode; this test would prove nothing"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--refresh",)])
@pytest.mark.parametrize("damage", [_truncate, _flip, _zero])
def test_damaged_bytecode_is_not_used(
    tree: ProbeTree, damage: Callable[[Path], None], options: tuple[str, ...]
) -> None:
    tree.build()
    for warm in (False, True):
        if warm:
            tree.build()
        [environment] = tree.environments()
        for path in _bytecode(environment):
            damage(path)
        assert created(tree.build(*options)) == len(options)
    assert tree.debris() == []


def _generation(tmp_path: Path) -> tuple[Generation, Path]:
    generation = Generation(str(tmp_path), "1")
    cache = tmp_path / "1" / "__pycache__"
    cache.mkdir(parents=True)
    return generation, cache


def test_what_a_disk_that_was_full_has_cut_short_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    import py_compile

    generation, cache = _generation(tmp_path)
    source = tmp_path / "1" / "m.py"
    source.write_text("VALUE = [1, 2, 3]\n\ndef f():\n    return VALUE\n")
    whole = Path(py_compile.compile(str(source), doraise=True) or "")
    content = whole.read_bytes()
    cut = []
    for length in range(len(content)):
        cut.append(cache / f"cut{length}.cpython-0.pyc")
        cut[-1].write_bytes(content[:length])
    being_written = cache / "m.pyc.140234"
    being_written.write_bytes(content[:20])
    verify(generation)
    assert sorted(cache.iterdir()) == sorted([whole, being_written])
    assert not keep_verified(generation, look_at(generation.path).bytecode)
    assert whole.exists()


def _compiled(generation: Generation, name: str = "m") -> Path:
    import py_compile

    source = Path(generation.path) / f"{name}.py"
    source.write_text("VALUE = [1, 2, 3]\n")
    return Path(py_compile.compile(str(source), doraise=True) or "")


_HEADER = importlib.util.MAGIC_NUMBER + bytes(12)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\r\n" + bytes(12) + marshal.dumps(compile("", "m.py", "exec")),
        importlib.util.MAGIC_NUMBER + b"\1" + bytes(11) + marshal.dumps(compile("", "m.py", "exec")),
        _HEADER + marshal.dumps([1]),
        _HEADER + b"\x00",
        _HEADER + b"<\1\0\0\0000",
        None,
    ],
    ids=["another Python", "a hash of the source", "no code", "ValueError", "TypeError", "a link to nothing"],
)
def test_what_is_no_bytecode_of_this_python_is_removed_and_the_rest_noted(
    tmp_path: Path, content: bytes | None
) -> None:
    generation, cache = _generation(tmp_path)
    whole = _compiled(generation)
    # One before and one after it, in the order in which a folder is read.
    wrong = [cache / name for name in ("a.pyc", "z.pyc")]
    for path in wrong:
        if content is None:
            path.symlink_to("nothing")
        else:
            path.write_bytes(content)
    verify(generation)
    assert os.listdir(cache) == [whole.name]
    assert not keep_verified(generation, look_at(generation.path).bytecode)


def test_the_notes_are_those_of_the_files_that_are_there(tmp_path: Path) -> None:
    generation, _ = _generation(tmp_path)
    changed, vanishing, whole = (_compiled(generation, name) for name in ("changed", "vanishing", "whole"))
    notes = tmp_path / "1.bytecode"
    verify(generation)
    before = notes.stat()
    verify(generation)
    assert notes.stat().st_ino == before.st_ino, "written again with the same content"
    _truncate(changed)
    vanishing.unlink()
    verify(generation)
    assert not changed.exists()
    assert [*json.loads(notes.read_text())] == [f"/__pycache__/{whole.name}"]


def test_bytecode_that_lost_its_time_is_kept_if_it_is_what_it_was(tmp_path: Path) -> None:
    generation, _ = _generation(tmp_path)
    same, other = _compiled(generation, "same"), _compiled(generation, "other")
    verify(generation)
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for path in (same, other):
        os.utime(path, (1, 1))
    assert keep_verified(generation, look_at(generation.path).bytecode)
    assert same.exists()
    assert not other.exists()
    # Its new time is noted.
    size, changed, _ = json.loads((tmp_path / "1.bytecode").read_text())[f"/__pycache__/{same.name}"]
    assert [size, changed] == [same.stat().st_size, same.stat().st_mtime_ns]


def test_what_another_build_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    generation, _ = _generation(tmp_path)
    assert keep_verified(generation, {"/__pycache__/gone.pyc": [1, 1]})


def test_what_no_build_has_verified_is_removed(tmp_path: Path) -> None:
    generation, cache = _generation(tmp_path)
    unknown = cache / "m.pyc"
    for notes in (None, "[]", '["x"]', '{"/__pycache__/m.pyc": 1}', "[" * 100_000, '{"/__pycache__/m.pyc": [0, NaN]}'):
        unknown.write_bytes(b"")
        if notes is not None:
            (tmp_path / "1.bytecode").write_text(notes)
        assert keep_verified(generation, look_at(generation.path).bytecode)
        assert not unknown.exists(), notes


# A backend that tells whether Python would write bytecode, and whether its own is there. It imports from outside.
_WATCHING_BACKEND = """
import sys
AT_IMPORT = sys.dont_write_bytecode
import json, os
import outside
import probe_backend
from probe_backend import build_wheel

def get_requires_for_build_wheel(*arguments):
    with open(os.environ["PROBE_LOG"] + ".seen", "a") as file:
        print(json.dumps([AT_IMPORT, sys.dont_write_bytecode, os.path.exists(__spec__.cached)]), file=file)
    return []
"""


@pytest.mark.parametrize("backend", ["flit_core.buildapi", "unknown_backend"])
def test_a_kept_environment_gets_bytecode_even_if_the_user_wants_none(
    tree: ProbeTree, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first backend is one that is imported ahead, and has its bytecode when its hooks begin."""
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    outside = tree.control / "outside"
    outside.mkdir()
    (outside / "outside.py").touch()
    module = f"{backend.replace('.', '/')}.py"
    tree.wheelhouse.add_wheel("watching", files={module: _WATCHING_BACKEND, "watching.pth": f"{outside}\n"})
    tree.require("watching")
    pyproject = tree.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"probe_backend"', f'"{backend}"'))
    plain = {"PYTHONDONTWRITEBYTECODE": "1"}
    tree.build(env=plain)
    [environment] = tree.environments()
    compiled = {path: path.stat().st_mtime_ns for path in site_packages(environment).glob("**/*.pyc")}
    names = {path.name.partition(".")[0] for path in compiled}
    assert names == {Path(module).stem, "probe_backend", "probe_backend_late"}
    assert created(tree.build(env=plain)) == 0
    assert {path: path.stat().st_mtime_ns for path in site_packages(environment).glob("**/*.pyc")} == compiled
    seen = [json.loads(line) for line in Path(f"{tree.control / 'probe.log'}.seen").read_text().splitlines()]
    assert seen == [[True, True, backend != "unknown_backend"], [True, True, True]]
    assert not [*outside.glob("__pycache__"), *tree.path.glob("**/__pycache__")]


def test_an_environment_with_extra_requirements_gets_bytecode_even_if_the_user_wants_none(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("extra")
    tree.build(env={"PYTHONDONTWRITEBYTECODE": "1", "PROBE_REQUIRES": '["extra"]'})
    with_extra = [each for each in tree.environments() if (site_packages(each) / "extra.py").exists()]
    assert [len(_bytecode(each)) for each in with_extra] == [2]


def test_bytecode_goes_nowhere_else_if_the_user_wants_none(
    tree: ProbeTree, witness_tree: WitnessTree, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"PYTHONDONTWRITEBYTECODE": "1"}
    tree.build(env={**plain, "PYTHONPYCACHEPREFIX": str(tmp_path / "user's")})
    assert not (tmp_path / "user's").exists()
    # Of the user's own environment lockbuild is a part.
    witness_tree.site = site_packages(environment)
    (witness_tree.path / "witness_backend.py").rename(witness_tree.site / "witness_backend.py")
    witness_tree.use_backend("witness_backend")
    monkeypatch.setenv(
        "PYTHONPATH", ":".join(str(Path(file).parents[1]) for file in (lockbuild.__file__, platformdirs.__file__))
    )
    command = (str(environment / "bin" / "python"), "-m", "lockbuild")
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--no-isolation", command=command, env=plain))
    assert not [*environment.glob("**/__pycache__"), *witness_tree.path.glob("**/__pycache__")]


@as_root
@pytest.mark.slow
def test_a_disk_that_was_full_during_a_build_breaks_no_later_one(tree: ProbeTree) -> None:
    """The room left is tried from none upwards, so that some bytecode is cut short."""
    # Large enough to take several blocks.
    source = "".join(f"def f{number}(): return 'text {number}', {number}\n" for number in range(2000))
    backend = (Path(__file__).parents[1] / "probe_backend.py").read_text()
    files = {"probe_backend.py": f"import large\n{backend}", "probe_backend_late.py": "VALUE = 1\n", "large.py": source}
    tree.wheelhouse.add_wheel("probe-backend", files=files)
    mounted = tree.control / "mounted"
    mounted.mkdir()
    script = f"""
    "$@" > /dev/null
    find {mounted} -name __pycache__ -prune -exec rm -r {{}} +
    for blocks in 0 4 8 16 32 64; do
        dd if=/dev/zero of={mounted}/fill bs=1k 2> /dev/null
        truncate -s -${{blocks}}k {mounted}/fill
        "$@" > /dev/null 2>&1
        rm {mounted}/fill
        "$@" > /dev/null || exit 1
        find {mounted} -name __pycache__ -prune -exec rm -r {{}} +
    done
    """
    command = after_setup(
        f"mount -t tmpfs -o size=8m lockbuild-test {mounted}", command=("sh", "-c", script, "sh", *LOCKBUILD)
    )
    env = {"LOCKBUILD_CACHE_DIR": f"{mounted}/cache"}
    build = tree.start(env=env, command=command)
    out, error = build.communicate(timeout=2 * PATIENCE)
    assert build.returncode == 0, out + error
    shutil.rmtree(mounted, ignore_errors=True)


@pytest.mark.slow
def test_a_host_that_may_have_read_unverified_bytecode_is_started_anew(
    tree: ProbeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is started before the environment is looked at; so it may have imported what is then removed."""
    tree.build()
    environ = tree.environ()
    for name in os.environ.keys() - environ.keys():
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    # A configuration in the working directory counts for the key.
    monkeypatch.chdir(tree.path)

    def revisions() -> tuple[int, int]:
        wanted = EnvironmentRequest(
            ["probe-backend"], "", BuildRequest(str(tree.path)), 0.0, (), Reporter(), gettempdir
        )
        started = []
        for environment in candidate_environments(wanted):
            started.append(environment.revision)
        with contextlib.ExitStack() as stack:
            stack.push(environment.__exit__)
            return started[-1], environment.revision

    before, after = revisions()
    assert before == after
    [environment] = tree.environments()
    _truncate(_bytecode(environment)[0])
    before, after = revisions()
    assert before != after
    assert tree.environments() == [environment]

"""Two builds that are given one `--sdist-extract-dir` or one `--env-dir` wait for each other.

Otherwise each would delete the files that the other one works with. The backend here needs nothing but the standard
library, so that an environment is made without anything being downloaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.locks import DirectoryLock, LockRequest
from machine import error_line, linux_only, second_tree, wait_until_it_waits
from witness import LOCKBUILD, PATIENCE, Gate, WitnessTree, wait_until

pytestmark = linux_only

EXTRACT = "--sdist-extract-dir"
ENV = "--env-dir"


@pytest.fixture
def tree(witness_tree: WitnessTree) -> WitnessTree:
    """A tree whose backend requires nothing. Its sdist needs no lock then, so that only the folders' locks are left."""
    pyproject = witness_tree.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"setuptools"', ""))
    return witness_tree


def start(
    tree: WitnessTree, *options: str, gate: Gate | None = None, out: str = "out", cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a build; unlike `WitnessTree.start` it can be an isolated one."""
    words = [*LOCKBUILD, *options, "--outdir", str(tree.control / out), str(tree.path)]
    if ENV in options:
        words[len(LOCKBUILD) : len(LOCKBUILD)] = ["--installer", "uv"]
    return tree.start_process(*words, gate=gate.path if gate else None, cwd=cwd)


def stop_at_the_wheel(tree: WitnessTree, *options: str) -> tuple[subprocess.Popen[str], Gate]:
    """Start a build and wait until it builds the wheel. Returns it and the gate at which that hook waits."""
    gate = tree.make_gate(f"gate{len(tree.started)}")
    known = len(tree.entered("build_wheel"))
    build = start(tree, *options, gate=gate)
    if "--wheel" not in options:
        gate.open()
    tree.wait_for_entry(count=known + 1)
    return build, gate


def check_all_succeed(tree: WitnessTree, *processes: subprocess.Popen[str]) -> None:
    for status, out, error in tree.finish(*processes):
        assert status == 0, error
        assert out.startswith("Successfully built ")


def assert_one_by_one(tree: WitnessTree, hook: str) -> None:
    """Check that no two processes were in this hook at once; in another one, of another tree, they may be."""
    words = [word for word, _, name in tree.log() if name == hook]
    assert words == ["enter", "leave"] * (len(words) // 2)


@pytest.mark.parametrize("one_tree", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["one tree", "two trees"])
def test_builds_with_one_extract_dir_wait_for_each_other(tree: WitnessTree, tmp_path: Path, one_tree: bool) -> None:
    extract = tmp_path / "extract"
    other = tree if one_tree else second_tree(tree, tmp_path / "other")
    first, gate = stop_at_the_wheel(tree, "-n", EXTRACT, str(extract))
    marker = extract / "witness-1.0" / "in use"
    marker.touch()
    second = start(other, "-n", EXTRACT, str(extract), out="out2")
    assert f"lock on {extract}, held by {first.pid} (" in wait_until_it_waits(second)
    assert marker.exists(), "the second build has removed the tree of the first one"
    gate.open()
    check_all_succeed(tree)
    assert not marker.exists(), "the second build has unpacked nothing"
    assert (extract / "witness-1.0" / "PKG-INFO").is_file()
    assert_one_by_one(tree, "build_wheel")


@pytest.mark.parametrize("one_tree", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["one tree", "two trees"])
def test_builds_with_one_env_dir_wait_for_each_other(tree: WitnessTree, tmp_path: Path, one_tree: bool) -> None:
    folder = tmp_path / "env"
    other = tree if one_tree else second_tree(tree, tmp_path / "other")
    first, gate = stop_at_the_wheel(tree, "--wheel", ENV, str(folder))
    second = start(other, "--wheel", ENV, str(folder), out="out2")
    assert f"lock on {folder}, held by {first.pid} (" in wait_until_it_waits(second)
    gate.open()
    check_all_succeed(tree)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("option", [EXTRACT, ENV])
def test_many_builds_with_one_folder_all_succeed(tree: WitnessTree, tmp_path: Path, option: str) -> None:
    for number in range(6):
        options = ("-n",) if option == EXTRACT else ("--wheel",)
        start(tree, *options, option, str(tmp_path / "folder"), out=f"out{number}")
    check_all_succeed(tree)
    assert_one_by_one(tree, "build_wheel")
    assert len(tree.entered("build_wheel")) == 6


def test_a_folder_that_is_removed_and_made_again_between_two_steps_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test below meets once in a thousand times; here the other process's part is played."""
    makedirs = os.makedirs
    disturbed: list[str] = []

    def make(path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        makedirs(path, mode, exist_ok)
        if path == str(tmp_path / "env") and not disturbed:
            disturbed.append(path)
            raise FileNotFoundError(path)

    monkeypatch.setattr(os, "makedirs", make)
    folder = str(tmp_path / "env")
    with DirectoryLock(LockRequest(folder, folder, tmp_path / "cache", create=True)) as lock:
        assert lock.held is not None
    assert disturbed


@pytest.mark.slow
def test_an_env_dir_that_its_holder_removes_all_the_time_is_made_again(tree: WitnessTree, tmp_path: Path) -> None:
    """Who waits finds the folder gone, or another one of the name; the caches differ, so no lock file helps."""
    program = """\
import os, shutil, sys
from lockbuild.locks import DirectoryLock, LockRequest

folder, mark, cache = sys.argv[1:]
for _ in range(150):
    with DirectoryLock(LockRequest(folder, folder, cache, create=True)):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        assert os.listdir(folder) == []
        os.mkdir(os.path.join(folder, "bin"))
        os.unlink(mark)
        shutil.rmtree(folder)
"""
    for number in range(4):
        paths = (tmp_path / name for name in ("env", "mark", str(number)))
        tree.start_process(sys.executable, "-c", program, *map(str, paths))
    for status, _, error in tree.finish():
        assert status == 0, error


@pytest.mark.slow
def test_an_env_dir_is_kept_after_a_failure_and_then_not_empty(tree: WitnessTree, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    backend = tree.path / "witness_backend.py"
    working = backend.read_text()
    backend.write_text(working + "\n\ndef build_wheel(*_):\n    raise SystemExit('no wheel today')\n")
    error_line(tree.finish(start(tree, "--wheel", ENV, str(folder)))[0])
    assert (folder / "pyvenv.cfg").is_file()
    backend.write_text(working)
    message = error_line(tree.finish(start(tree, "--wheel", ENV, str(folder)))[0])
    assert message == f"ERROR Build environment location is not empty: {folder}"


@pytest.mark.slow
def test_an_env_dir_that_is_a_file_is_the_error_of_build(tree: WitnessTree, tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    message = error_line(tree.finish(start(tree, "--wheel", ENV, str(tmp_path / "env")))[0])
    assert message == f"ERROR Build environment location is not a directory: {tmp_path / 'env'}"


@pytest.mark.slow
def test_a_killed_build_leaves_its_extract_dir_to_the_next_one(tree: WitnessTree, tmp_path: Path) -> None:
    extract = tmp_path / "extract"
    first, _ = stop_at_the_wheel(tree, "-n", EXTRACT, str(extract))
    second = start(tree, "-n", EXTRACT, str(extract), out="out2")
    wait_until_it_waits(second)
    first.kill()
    check_all_succeed(tree, second)
    assert not (tree.control / "out" / "witness-1.0-py3-none-any.whl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_its_env_dir_and_the_next_one_says_not_empty(
    tree: WitnessTree, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "env"
    first, _ = stop_at_the_wheel(tree, "--wheel", ENV, str(folder))
    hook = tree.entered("build_wheel")[0]
    second = start(tree, "--wheel", ENV, str(folder), out="out2")
    wait_until_it_waits(second)
    os.kill(first.pid, how)
    message = error_line(tree.finish(second)[0])
    assert message == f"ERROR Build environment location is not empty: {folder}"
    wait_until(lambda: not Path(f"/proc/{hook}").exists(), "the end of the killed build's hook")


@pytest.mark.slow
@pytest.mark.parametrize("option", [EXTRACT, ENV])
def test_a_folder_that_is_given_through_a_link_is_the_same_folder(
    tree: WitnessTree, tmp_path: Path, option: str
) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    link.symlink_to(folder)
    options = ("-n",) if option == EXTRACT else ("--wheel",)
    folder.mkdir()
    first, gate = stop_at_the_wheel(tree, *options, option, str(folder))
    second = start(tree, *options, option, str(link), out="out2")
    third = start(tree, *options, option, os.path.relpath(folder, tree.control), cwd=tree.control, out="out3")
    for waiter in (second, third):
        assert f"held by {first.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    check_all_succeed(tree)
    assert link.is_symlink()


@pytest.mark.parametrize(
    "spelling", ["{2}", *(pytest.param(s, marks=pytest.mark.slow) for s in ("{0}", "{0}/", "{0}/../{1}"))]
)
def test_one_folder_for_both_options_is_wrong_usage(tree: WitnessTree, tmp_path: Path, spelling: str) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    link.symlink_to(folder)
    folder.mkdir()
    build = start(tree, EXTRACT, str(folder), ENV, spelling.format(folder, folder.name, link))
    [(status, _, error)] = tree.finish(build)
    assert status == 2
    assert "not allowed to be the same folder" in error
    assert tree.log() == []


@pytest.mark.slow
def test_two_builds_with_both_folders_the_other_way_round_do_not_wait_for_each_other_for_ever(
    tree: WitnessTree, tmp_path: Path
) -> None:
    """One holds the first folder while it builds; each of the others needs both, in its own order."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    first, gate = stop_at_the_wheel(tree, "-n", EXTRACT, one)
    waiting = [
        start(tree, EXTRACT, two, ENV, one, out="out2"),
        start(tree, EXTRACT, one, ENV, two, out="out3"),
        start(tree, EXTRACT, two, ENV, one, out="out4"),
        start(tree, EXTRACT, one, ENV, two, out="out5"),
    ]
    for build in waiting:
        wait_until_it_waits(build)
    gate.open()
    check_all_succeed(tree, first)
    for status, _, error in tree.finish(*waiting):
        # Which one is first is chance; where it has unpacked an sdist, the other cannot make an environment.
        assert status == 0 or "ERROR Build environment location is not empty" in error, error


@pytest.mark.slow
def test_who_waits_for_the_first_of_two_folders_does_not_hold_the_second(tree: WitnessTree, tmp_path: Path) -> None:
    """Folders are taken in the order of their names, whatever option they came with: so nobody waits in a ring."""
    check_all_succeed(tree, start(tree, "-n", "--sdist", out="sdist"))
    archive = WitnessTree(tree.control / "sdist" / "witness-1.0.tar.gz", tree.control, tree.started)
    one, two = tmp_path / "one", tmp_path / "two"
    first, gate = stop_at_the_wheel(tree, "--wheel", ENV, str(one))
    both = start(archive, EXTRACT, str(two), ENV, str(one), out="out2")
    assert f"lock on {one}, held by {first.pid} (" in wait_until_it_waits(both)
    check_all_succeed(tree, start(archive, "-n", EXTRACT, str(two), out="out3"))
    gate.open()
    check_all_succeed(tree, first, both)


@pytest.mark.parametrize("where", ["sub", "sub/folder", ".", "../control/out"])
@pytest.mark.slow
def test_an_extract_dir_may_lie_in_the_tree_or_be_the_tree_or_the_out_dir(
    witness_tree: WitnessTree, where: str
) -> None:
    """With the tree locked for its sdist: the folder's lock and the tree's are one and the same inode for ``.``."""
    extract = os.path.normpath(witness_tree.path / where)
    gate = witness_tree.make_gate()
    builds = [start(witness_tree, "-n", EXTRACT, extract, gate=gate)]
    # The first one is in its sdist, and holds the tree.
    witness_tree.wait_for_entry("build_sdist")
    builds += [start(witness_tree, "-n", EXTRACT, extract) for _ in range(2)]
    wait_until_it_waits(builds[-1])
    gate.open()
    witness_tree.wait_for_entry()
    gate.open()
    check_all_succeed(witness_tree, *builds)
    assert_one_by_one(witness_tree, "build_sdist")
    assert_one_by_one(witness_tree, "build_wheel")
    assert Path(extract, "witness-1.0", "PKG-INFO").is_file()
    assert (witness_tree.path / "witness_backend.py").is_file()
    assert sorted(path.name for path in witness_tree.out_dir.iterdir() if path.is_file()) == [
        "witness-1.0-py3-none-any.whl",
        "witness-1.0.tar.gz",
    ]


@pytest.mark.parametrize("name", ["..", "."])
def test_an_sdist_cannot_have_a_folder_removed_that_is_not_its_own(tmp_path: Path, name: str) -> None:
    import io
    import tarfile

    archive = tmp_path / "demo-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in ("PKG-INFO", "pyproject.toml"):
            tar.addfile(tarfile.TarInfo(f"{name}/{file}"), io.BytesIO())
    extract = tmp_path / "parent" / "extract"
    extract.mkdir(parents=True)
    precious = [extract / "precious", extract.parent / "precious"]
    for file_ in precious:
        file_.touch()
    done = subprocess.run(
        [*LOCKBUILD, "-n", "-x", EXTRACT, str(extract), "--outdir", str(tmp_path / "out"), str(archive)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert all(file_.exists() for file_ in precious)
    assert "single top-level directory" in error_line((done.returncode, done.stdout, done.stderr))

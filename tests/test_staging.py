"""The staging folder: all that a build makes for itself is in there, and a clean-up finds that of a killed build."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lockbuild.garbage_collection import prune_left_behind
from lockbuild.paths import staging_records, temporary_folder
from lockbuild.staging import Staging
from machine import as_root
from wheelhouse import CACHE_COMMAND, ProbeTree
from witness import WitnessTree, wait_until

MALLORY = 64_002

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills processes, and looks at owners")


def temporary() -> list[str]:
    """Return what is in the folder for temporary files, besides the lock file of uv."""
    return [name for name in os.listdir(os.environ["TMPDIR"]) if not name.startswith("uv-setuptools-")]


def records() -> list[str]:
    return os.listdir(staging_records(None))


def left_by_a_killed_process() -> Path:
    """Make a staging folder as a process leaves it that is killed."""
    pid = os.fork()
    if pid == 0:
        Staging().__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    [name] = temporary()
    return Path(os.environ["TMPDIR"], name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_build_leaves_is_removed_by_the_next_clean_up(
    witness_tree: WitnessTree, number: signal.Signals, tmp_path: Path
) -> None:
    build = witness_tree.start(gate=witness_tree.make_gate().path)
    witness_tree.wait_for_entry()
    # The files of pyproject-hooks are in there, too.
    [name] = temporary()
    assert name.startswith("lockbuild-")
    build.send_signal(number)
    build.wait()
    assert temporary() == ([name] if number == signal.SIGKILL else [])
    # In which folder it was does not depend on the clean-up.
    (tmp_path / "other").mkdir()
    environ = os.environ | {"TMPDIR": str(tmp_path / "other")}
    said = subprocess.run([*CACHE_COMMAND, "prune"], env=environ, check=True, capture_output=True, text=True).stdout
    assert ("Removed what 1 killed build had left" in said) == (number == signal.SIGKILL)
    assert temporary() == records() == []


def test_what_a_living_build_uses_stays(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    build = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    assert prune_left_behind(0) == 0
    assert len(temporary()) == len(records()) == 1
    gate.open()
    witness_tree.assert_all_succeed(build)
    assert temporary() == records() == []


@pytest.mark.slow
def test_a_build_removes_what_an_earlier_one_has_left_once_a_day(tree: ProbeTree) -> None:
    tree.build()
    left_by_a_killed_process()
    os.utime(tree.store / "pruned", (time.time() - 86401,) * 2)
    tree.build("--no-isolation", "--skip-dependency-check", status=1)
    assert len(temporary()) == 1
    tree.build()
    wait_until(lambda: not temporary(), "the removal")


def test_a_process_that_owns_itself_has_a_folder_of_its_own_for_all_temporary_files() -> None:
    before = temporary_folder()
    with Staging(for_all=True) as staging:
        with subprocess.Popen(["true"], stdout=subprocess.DEVNULL):
            pass
        assert os.path.dirname(staging.path) == temporary_folder() == before
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            assert os.path.dirname(made) == staging.path
    assert temporary_folder() == tempfile.gettempdir() == before
    assert temporary() == records() == []


def test_a_build_without_a_place_for_a_record_goes_on(witness_tree: WitnessTree) -> None:
    cache = Path(os.environ["LOCKBUILD_CACHE_DIR"])
    cache.mkdir()
    (cache / "staging").touch()
    (cache / f"staging-{os.geteuid()}").touch()
    witness_tree.assert_all_succeed(witness_tree.start())
    assert temporary() == []


@pytest.mark.parametrize("written", [b"", b"a machine\0/"], ids=["none", "another machine's"])
def test_a_record_that_names_no_folder_here(written: bytes) -> None:
    Path(staging_records(None), "0123456789abcdef").write_bytes(written)
    prune_left_behind()
    assert bool(records()) == bool(written)
    # It is that old at some time.
    prune_left_behind(-1)
    assert records() == []


def test_a_record_of_a_folder_for_temporary_files_that_is_gone_is_removed() -> None:
    folder = left_by_a_killed_process()
    folder.rmdir()
    folder.parent.rmdir()
    assert prune_left_behind() == 1
    assert records() == []


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    folder = left_by_a_killed_process()
    (tmp_path / "precious").mkdir(mode=0o700)
    folder.rmdir()
    folder.symlink_to(tmp_path / "precious")
    prune_left_behind()
    assert (tmp_path / "precious").exists()
    assert folder.is_symlink()


@as_root
@pytest.mark.parametrize("replaced", ["its owner", "its mode", "the parent's mode", "the parent's owner"])
def test_what_another_user_could_have_put_there_stays(replaced: str) -> None:
    folder = left_by_a_killed_process()
    match replaced:
        case "its owner":
            os.chown(folder, MALLORY, MALLORY)
        case "its mode":
            folder.chmod(0o755)
        case "the parent's mode":
            folder.parent.chmod(0o777)
        case "the parent's owner":
            os.chown(folder.parent, MALLORY, MALLORY)
    assert prune_left_behind() == 0
    assert folder.exists()
    assert len(records()) == 1
    # A sticky folder such as /tmp will do.
    os.chown(folder, 0, 0)
    os.chown(folder.parent, 0, 0)
    folder.chmod(0o700)
    folder.parent.chmod(0o1777)
    assert prune_left_behind() == 1
    assert temporary() == records() == []

"""Files get their names when they are whole, and no file of ours is a standard stream of another process."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lockbuild.files import hidden_beside, new_file, read_json, remove_left_over, replacing, write_json, write_whole
from lockbuild.locks import SourceTreeLock
from machine import is_free, is_running, linux_only
from witness import LOCKBUILD, PATIENCE, WitnessTree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_what_is_written_replaces_what_was_there(folder: Path) -> None:
    target = folder / "file"
    target.write_text("older")
    write_whole(str(target), b"newer")
    assert target.read_bytes() == b"newer"
    assert list(folder.iterdir()) == [target]


def test_a_file_that_replaces_a_link_leaves_alone_what_the_link_leads_to(folder: Path) -> None:
    (folder / "precious").write_text("precious")
    (folder / "file").symlink_to("precious")
    write_whole(str(folder / "file"), b"ours")
    assert not (folder / "file").is_symlink()
    assert (folder / "precious").read_text() == "precious"


def test_a_failure_in_between_leaves_the_old_file_and_nothing_else(folder: Path) -> None:
    target = folder / "file"
    target.write_text("older")
    with contextlib.suppress(ZeroDivisionError), replacing(str(target)) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_text() == "older"
    assert list(folder.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_who_may_read_a_file_is_for_its_maker_to_say(folder: Path) -> None:
    write_whole(str(folder / "private"), b"", 0o600)
    assert stat.S_IMODE((folder / "private").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "語" * 85, "n"], ids=["ascii", "two bytes", "three", "short"])
def test_a_name_of_any_length_can_be_replaced(folder: Path, name: str) -> None:
    write_whole(str(folder / name), b"content")
    assert os.listdir(folder) == [name]


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_a_new_file_is_not_made_where_a_link_leads(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        new_file(str(folder / "link"), 0o600)
    assert os.listdir(folder) == ["link"]


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(folder: Path) -> None:
    code = (
        "import os, signal, sys\nfrom lockbuild.files import replacing\n"
        f"with replacing(sys.argv[1]): os.kill(os.getpid(), {int(signal.SIGTERM)})"
    )
    for name in ("file", "n" * 200, "other"):
        subprocess.run([sys.executable, "-c", code, str(folder / name)], check=False)
    assert len(os.listdir(folder)) == 3
    kept = [".file.tmp", "file.0123456789abcdef.tmp", ".file.0123456789abcdeX.tmp", ".file.0123456789abcdef"]
    for name in kept:
        (folder / name).touch()
    remove_left_over(str(folder), ["file", "n" * 200])
    left = {name for name in os.listdir(folder) if not name.startswith(".other.")}
    assert left == {*kept}
    assert len(os.listdir(folder)) == 5


def test_what_is_written_as_json_is_read_again(folder: Path) -> None:
    content = {"path": "\udce4 ü", "number": 1.5, "list": [None, True]}
    write_json(str(folder / "file"), content)
    assert read_json(str(folder / "file")) == content


@pytest.mark.skipif(os.name == "nt", reason="makes FIFOs and symbolic links")
@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to(__file__),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b'{"half": '),
        lambda path: path.write_bytes(b"\xff\xfe\xff"),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"9" * 10_000),
        lambda path: path.write_bytes(b" " * 11_000 + b"1"),
    ],
    ids=["missing", "folder", "FIFO", "link", "device", "empty", "half", "no text", "nested", "number", "too long"],
)
def test_a_file_that_cannot_be_read_as_json_is_like_a_missing_one(folder: Path, make: Callable[[Path], object]) -> None:
    make(folder / "file")
    assert read_json(str(folder / "file"), 10_000) is None


def test_a_hidden_name_has_nothing_afterwards(folder: Path) -> None:
    with hidden_beside(str(folder / "file")) as hidden:
        Path(hidden).touch()
        os.link(hidden, folder / "file")
        os.replace(hidden, folder / "file")
    assert os.listdir(folder) == ["file"]


# Standard streams that are closed


def closing(*streams: str) -> tuple[str, ...]:
    """Return the beginning of a command that runs without these streams."""
    return ("sh", "-c", f'exec "$@" {" ".join(streams)}', "sh")


# Leaves a daemon running, which executes another program: that inherits the standard streams and nothing else.
DAEMON = """
null = subprocess.DEVNULL
daemon = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=null, stderr=null)
tell("daemon", str(daemon.pid))
"""


def streams_of(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


@linux_only
@pytest.mark.parametrize("closed", [("<&-",), ("<&-", ">&-", "2>&-")], ids=["input", "all"])
def test_a_daemon_of_a_build_without_standard_input_does_not_keep_the_lock(
    witness_tree: WitnessTree, closed: tuple[str, ...]
) -> None:
    witness_tree.use_hook(DAEMON)
    build = witness_tree.start(command=(*closing(*closed), *LOCKBUILD))
    daemon = int(witness_tree.told("daemon"))
    try:
        [(status, _, error)] = witness_tree.finish(build)
        assert status == 0, error
        assert is_running(daemon)
        assert streams_of(daemon)[0] == os.devnull
        assert is_free(witness_tree.path)
        for lock_file in Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.lock"):
            assert is_free(lock_file)
    finally:
        os.kill(daemon, signal.SIGKILL)


# Locks the tree without standard input, as a program that uses the API does, and starts a daemon.
_PROGRAM = """
import os, subprocess, sys
from lockbuild.locks import SourceTreeLock
with SourceTreeLock(sys.argv[1]) as lock:
    assert min(lock.descriptors) > 2, lock.descriptors
    daemon = subprocess.Popen(["sleep", "600"], start_new_session=True, stderr=subprocess.DEVNULL)
    os.write(1, str(daemon.pid).encode())
    # As if this process were killed: a lock that is not freed lasts for as long as an heir has it.
    os._exit(0)
"""


@linux_only
def test_a_lock_of_a_program_without_standard_input_is_no_standard_stream(witness_tree: WitnessTree) -> None:
    told, telling = os.pipe()
    command = [*closing("<&-"), sys.executable, "-c", _PROGRAM, str(witness_tree.path)]
    subprocess.run(command, check=True, stdout=telling, timeout=PATIENCE)
    daemon = int(os.read(told, 100))
    try:
        with SourceTreeLock(witness_tree.path, timeout=0):
            assert is_running(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)
        os.close(told)
        os.close(telling)


@linux_only
@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("program", ["lockbuild", "lockbuild.commands.run", "lockbuild.commands.cache"])
def test_without_a_standard_stream_every_program_does_its_work(
    witness_tree: WitnessTree, program: str, streams: str
) -> None:
    if program == "lockbuild":
        process = witness_tree.start(command=(*closing(streams), *LOCKBUILD))
    else:
        words = ["-C", str(witness_tree.path), "--", "sh", "-c", f"echo x > {witness_tree.control}/ran"]
        words = words if program == "lockbuild.commands.run" else ["list"]
        process = witness_tree.start_process(*closing(streams), sys.executable, "-m", program, *words)
    [(status, out, error)] = witness_tree.finish(process)
    assert status == 0, (out, error)
    assert "Traceback" not in out + error
    if program == "lockbuild":
        assert os.listdir(witness_tree.out_dir)
    if program == "lockbuild.commands.run":
        assert (witness_tree.control / "ran").exists()

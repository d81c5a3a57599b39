"""A hook host that is started on a guess: used where it is right, without a trace where it is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machine import ADOPTER, as_root, is_free, is_running, linux_only, parent
from wheelhouse import ProbeTree, end_all, make_probe_tree
from witness import LOCKBUILD, complete_lines, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no hook host elsewhere")

# A backend that tells who imports it. It stands in for one of those that are imported alike everywhere, under that
# one's name.
_BACKEND = """
import io, os, tarfile
import probe_backend
from probe_backend import *

def _tell(word):
    descriptor = os.open(os.environ["IMPORT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{word} {os.getpid()} {os.getppid()}\\n".encode())
    os.close(descriptor)

_tell("begin")
if "IMPORT_GATE" in os.environ:
    with open(os.environ["IMPORT_GATE"]) as file:
        file.read()
_tell("end")

def build_wheel(*arguments):
    print("a word of the backend", flush=True)
    return probe_backend.build_wheel(*arguments)

def build_sdist(folder, config_settings=None):
    with tarfile.open(os.path.join(folder, "probe-1.0.tar.gz"), "w:gz") as archive:
        archive.add("pyproject.toml", "probe-1.0/pyproject.toml")
        archive.addfile(tarfile.TarInfo("probe-1.0/PKG-INFO"), io.BytesIO())
    return "probe-1.0.tar.gz"
"""

# Runs lockbuild and tells which events of starting a process there were, and what was imported at the first.
_RUNNER = """
import atexit, sys
report, *sys.argv[1:] = sys.argv[1:]
started, before = [], set()
def listen(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"):
        before.update(sys.modules if not started else ())
        started.append(event)
def write():
    import json
    with open(report, "w") as file:
        json.dump({"before": sorted(before), "started": started}, file)
sys.addaudithook(listen)
atexit.register(write)
from lockbuild.program import entrypoint
entrypoint()
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProbeTree]:
    tree = make_probe_tree(tmp_path / "probe")
    tree.wheelhouse.add_wheel("meson-python", files={"mesonpy.py": _BACKEND}, requires=["probe-backend"])
    (tree.path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["meson-python"]\nbuild-backend = "mesonpy"\n[tool.lockbuild]\nlock = "always"\n'
    )
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    monkeypatch.setenv("IMPORT_LOG", str(tree.control / "imports.log"))
    yield tree
    end_all(tree)


def imports(tree: ProbeTree, word: str = "end") -> list[tuple[int, int]]:
    """Return the processes that have told a word, and their parents, in order."""
    lines = [line.split() for line in complete_lines(tree.control / "imports.log")]
    return [(int(pid), int(its_parent)) for told, pid, its_parent in lines if told == word]


def run(tree: ProbeTree, *options: str, **build: Any) -> dict[str, list[str]]:
    report = tree.control / "report.json"
    tree.build(*options, command=(sys.executable, "-c", _RUNNER, str(report)), **build)
    found: dict[str, list[str]] = json.loads(report.read_text())
    return found


def notes(tree: ProbeTree) -> list[Path]:
    """Return the notes: for the last word, and for any."""
    return sorted((tree.cache / "environments-hosts").iterdir())


def test_a_repeated_build_starts_its_host_before_anything_else(tree: ProbeTree) -> None:
    # What uses it later is `subprocess` itself, from Python 3.13 on.
    assert run(tree)["started"][0] == "subprocess.Popen"
    found = run(tree)
    assert found["started"] == ["os.posix_spawn"]
    assert not {"argparse", "json", "lockbuild.cli", "socket"} & {*found["before"]}
    # It was used, and nobody else has imported the backend.
    assert len(imports(tree)) == 2
    assert tree.hooks()[-1]["ppid"] == imports(tree)[-1][0]
    inodes = [note.stat().st_ino for note in notes(tree)]
    run(tree)
    assert [note.stat().st_ino for note in notes(tree)] == inodes, "a note is written again, and says the same"


@pytest.mark.slow
def test_the_early_host_serves_the_sdist_and_the_wheel(tree: ProbeTree) -> None:
    for _ in range(2):
        before = len(imports(tree))
        out_dir = tree.control / "both"
        command = [*LOCKBUILD, "--outdir", str(out_dir), str(tree.path)]
        subprocess.run(command, env=tree.environ(), check=True, capture_output=True)
        assert len(imports(tree)) == before + 1


@pytest.mark.slow
def test_it_does_not_matter_where_the_out_dir_is(tree: ProbeTree) -> None:
    tree.build(out_dir=tree.control / "one")
    assert run(tree, out_dir=tree.control / "two")["started"] == ["os.posix_spawn"]


def test_a_build_without_a_word_may_be_repeated(tree: ProbeTree) -> None:
    for _ in range(2):
        before = len(imports(tree))
        subprocess.run(LOCKBUILD, cwd=tree.path, env=tree.environ(), check=True, capture_output=True)
        assert len(imports(tree)) == before + 1
    report = tree.control / "report.json"
    command = [sys.executable, "-c", _RUNNER, str(report)]
    subprocess.run(command, cwd=tree.path, env=tree.environ(), check=True, capture_output=True)
    assert json.loads(report.read_text())["started"] == ["os.posix_spawn"]


@pytest.mark.slow
def test_a_tree_that_is_new_is_taken_for_one_like_the_last(tree: ProbeTree) -> None:
    tree.build()
    other = tree.path.with_name("other")
    shutil.copytree(tree.path, other)
    found = run(tree, source=other)
    assert found["started"] == ["os.posix_spawn"]
    assert len(imports(tree)) == 2
    # Each has its own note from now on, whichever was the last, and a place at its own lock file.
    assert len(notes(tree)) == 3
    assert run(tree, source=other)["started"] == ["os.posix_spawn"]


@pytest.mark.slow
def test_a_host_that_was_not_needed_is_ended(tree: ProbeTree) -> None:
    tree.build()
    tree.wheelhouse.add_wheel("more")
    text = (tree.path / "pyproject.toml").read_text()
    (tree.path / "pyproject.toml").write_text(text.replace('["meson-python"]', '["meson-python", "more"]'))
    gate = tree.make_gate()
    # The import of the one that was started first never ends.
    build = tree.start(env={"IMPORT_GATE": str(gate.path)})
    wait_until(lambda: len(imports(tree, "begin")) == 2, "the early host")
    unneeded = imports(tree, "begin")[-1][0]
    wait_until(lambda: not is_running(unneeded), "the end of the early host")
    gate.open()
    tree.finish(build)
    assert tree.hooks()[-1]["ppid"] == imports(tree)[-1][0] != unneeded
    # The next guess is a better one.
    assert run(tree)["started"] == ["os.posix_spawn"]


def test_a_build_that_does_not_come_to_a_hook_leaves_no_host(tree: ProbeTree) -> None:
    tree.build()
    # The frontend waits there, so that the host is seen to run before the frontend fails.
    (tree.path / "pyproject.toml").unlink()
    os.mkfifo(tree.path / "pyproject.toml")
    gate = tree.make_gate()
    build = tree.start(env={"IMPORT_GATE": str(gate.path)})
    wait_until(lambda: len(imports(tree, "begin")) == 2, "the early host")
    [_, (host, its_parent)] = imports(tree, "begin")
    assert its_parent == build.pid
    (tree.path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "mesonpy"\n[tool.lockbuild]\nlock = "perhaps"\n'
    )
    assert build.wait(timeout=60) == 1
    assert not is_running(host)


@pytest.mark.slow
def test_a_host_that_is_killed_while_it_imports_is_replaced(tree: ProbeTree) -> None:
    tree.build()
    gate = tree.make_gate()
    build = tree.start(env={"IMPORT_GATE": str(gate.path)})
    wait_until(lambda: len(imports(tree, "begin")) == 2, "the early host")
    os.kill(imports(tree, "begin")[-1][0], signal.SIGKILL)
    # For each of the two hooks the backend is imported in the hook's own process.
    for count in (3, 4):
        wait_until(lambda count=count: len(imports(tree, "begin")) == count, "the import by a hook")  # type: ignore[misc]
        gate.open()
    tree.finish(build)


@pytest.mark.slow
def test_the_output_of_hooks_is_dropped_where_it_is_to_be_dropped(tree: ProbeTree) -> None:
    for options, shown in (([], True), (["-q"], False)):
        for _ in range(2):
            build = tree.start(*options)
            out, error = build.communicate(timeout=60)
            assert build.returncode == 0, error
            assert ("a word of the backend" in out) == shown


@pytest.mark.slow
@linux_only
def test_the_locks_are_held_by_a_host_that_was_started_early(tree: ProbeTree) -> None:
    tree.build()
    gate = tree.make_gate()
    pid_file = tree.control / "frontend"
    adopter = (sys.executable, "-c", ADOPTER, *LOCKBUILD)
    tree.start(command=adopter, env={"PROBE_GATE": str(gate.path), "PID_FILE": str(pid_file)})
    told = tree.wait_for_hook(2)
    hook, host = told["pid"], told["ppid"]
    assert imports(tree)[-1][0] == host
    os.kill(host, signal.SIGSTOP)
    frontend = int(pid_file.read_text())
    assert parent(host) == frontend
    os.kill(frontend, signal.SIGKILL)
    wait_until(lambda: not is_running(frontend), "the end of the frontend")
    [lock_file] = (tree.cache / "locks").glob("setuptools-*.lock")
    users = [*Path(f"{told['prefix']}.users").iterdir()]
    held = [tree.path, lock_file, *users]
    assert len(users) == 1
    assert is_running(hook)
    assert [path for path in held if is_free(path)] == []
    os.kill(host, signal.SIGCONT)
    wait_until(lambda: all(map(is_free, held)), "the release")
    assert not is_running(hook)


@pytest.mark.slow
@linux_only
def test_a_frontend_that_is_killed_before_its_first_hook_leaves_no_early_host(tree: ProbeTree) -> None:
    tree.build()
    gate = tree.make_gate()
    build = tree.start(env={"IMPORT_GATE": str(gate.path)})
    wait_until(lambda: len(imports(tree, "begin")) == 2, "the import")
    build.kill()
    host = imports(tree, "begin")[-1][0]
    wait_until(lambda: not is_running(host), "the end of the host")


@pytest.mark.slow
@linux_only
def test_an_early_host_gets_no_file_that_the_frontend_has_inherited(tree: ProbeTree) -> None:
    tree.build()
    gate = tree.make_gate()
    with tempfile.NamedTemporaryFile() as inherited:
        build = tree.start(env={"PROBE_GATE": str(gate.path)}, pass_fds=[inherited.fileno()])
        host = tree.wait_for_hook(2)["ppid"]
        assert imports(tree)[-1] == (host, build.pid)
        opened = [os.readlink(path) for path in Path(f"/proc/{host}/fd").iterdir()]
        assert inherited.name not in opened
        assert inherited.name in [os.readlink(path) for path in Path(f"/proc/{build.pid}/fd").iterdir()]
    gate.open()
    tree.finish(build)


def test_a_note_that_others_could_have_written_is_not_read(tree: ProbeTree) -> None:
    tree.build()
    notes(tree)[0].parent.chmod(0o777)
    assert "os.posix_spawn" not in run(tree)["started"]


@pytest.mark.slow
@as_root
@pytest.mark.parametrize("has_notes", [True, False])
def test_in_a_shared_cache_folder_the_second_user_has_notes_too(tree: ProbeTree, has_notes: bool) -> None:
    for name in ("environments", *(["environments-hosts"] if has_notes else [])):
        (tree.cache / name).mkdir(parents=True, mode=0o700)
        os.chown(tree.cache / name, 12345, 12345)
    tree.build()
    assert run(tree)["started"] == ["os.posix_spawn"]


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "one line", "/no/such/python\nmesonpy\n", "\0\nmesonpy\n", "a\nb\nc\nd\n"])
def test_a_note_that_makes_no_sense_is_written_anew(tree: ProbeTree, content: str) -> None:
    tree.build()
    wanted = [note.read_text() for note in notes(tree)]
    for note in notes(tree):
        note.write_text(content)
    tree.build()
    assert [note.read_text() for note in notes(tree)] == wanted


def test_no_host_is_started_early_where_backends_are_not_imported_early(
    tree: ProbeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.build()
    monkeypatch.setenv("LOCKBUILD_PREIMPORT", "0")
    assert run(tree)["started"] == ["subprocess.Popen"]


@pytest.mark.slow
def test_old_notes_are_pruned(tree: ProbeTree) -> None:
    tree.build()
    prune = [sys.executable, "-m", "lockbuild.cache", "prune"]
    subprocess.run(prune, check=True, capture_output=True)
    assert len(notes(tree)) == 2
    for note in notes(tree):
        os.utime(note, (0, 0))
    subprocess.run(prune, check=True, capture_output=True)
    assert notes(tree) == []

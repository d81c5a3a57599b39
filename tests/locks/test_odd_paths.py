"""Trees with odd paths: builds of them work, two at once exclude each other, and every message stays on its line.

Odd are spaces, line breaks, control characters, quotes, bytes that are no text, a leading hyphen, and a path that is
nearly as long as Linux allows. The console may be one that can show none of that.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from machine import linux_only, second_tree, wait_until_it_waits
from witness import LOCKBUILD, WitnessTree

pytestmark = linux_only

# The kernel takes 4,095 bytes; what is below the tree and temporary names need some of them.
DEEP = 4000

NAMES = {
    "space": " a  b ",
    "line break": "a\nERROR b\r\nc",
    "control": "a\tb\x07\x1b[2J\x7f\x85\u2028d",
    "quotes": "a'b\"c`d$(e)\\n;#%s{f}",
    "bytes": os.fsdecode(b"\xff\xfea\x80.\xed\xa0\x80"),
    "hyphen": "--wheel",
    "emoji": "🦭 naïve ☃\ufe0f",
    "deep": "deep",
}
FAST = ("line break",)

CONSOLES: dict[str, dict[str, str | None]] = {
    "UTF-8": {"PYTHONUTF8": "1"},
    "ASCII": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
}


def odd_tree(witness_tree: WitnessTree, tmp_path: Path, name: str) -> WitnessTree:
    path = tmp_path / "odd" / NAMES[name]
    if name == "deep":
        while (left := DEEP - len(os.fsencode(path))) > 1:
            path /= "d" * min(200, left - 1 if left != 202 else 100)
        assert len(os.fsencode(path)) in (DEEP - 1, DEEP)
    path.parent.mkdir(parents=True)
    return second_tree(witness_tree, path)


def check_lines(error: str) -> None:
    for line in error.splitlines():
        assert line.isprintable(), repr(line)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_builds_of_a_tree_with_an_odd_path_wait_for_each_other(
    witness_tree: WitnessTree, tmp_path: Path, name: str
) -> None:
    tree = odd_tree(witness_tree, tmp_path, name)
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path, out_dir=tree.path / "dist")
    tree.wait_for_entry()
    waiter = tree.start(out_dir=tree.path / "dist")
    message = wait_until_it_waits(waiter)
    assert f", held by {holder.pid} (" in message
    assert message.endswith("; waiting without a limit, --lock-timeout sets one"), "the message was broken"
    assert message.isprintable()
    gate.open()
    for status, out, error in tree.finish():
        assert status == 0, error
        assert out.splitlines() == ["Successfully built witness-1.0-py3-none-any.whl"]
        check_lines(error)
    tree.assert_no_overlap()
    assert os.listdir(tree.path / "dist") == ["witness-1.0-py3-none-any.whl"]


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "space"])
@pytest.mark.slow
def test_messages_stay_on_one_line_whatever_the_console_can_show(
    witness_tree: WitnessTree, tmp_path: Path, name: str, console: str
) -> None:
    tree = odd_tree(witness_tree, tmp_path, name)
    # Wide enough that nothing is folded.
    env = CONSOLES[console] | {"COLUMNS": "100000"}
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path, env=env)
    tree.wait_for_entry()
    waiter = tree.start("--wheel", "-v", "--lock-timeout", "1.2", env=env)
    encoding = "latin-1" if console == "Latin-1" else "utf-8"
    out, error = read_bytes(waiter)
    assert waiter.returncode == 75, error
    assert out == b""
    *lines, rest = error.decode(encoding).split("\n")
    assert rest == ""
    assert [line.split()[:2] for line in lines if "Locking" not in line] == [["*", "Waiting"], ["ERROR", "Gave"]]
    assert all(line.isprintable() for line in lines), lines
    assert lines[0].startswith("  Locking ")
    assert lines[-1].startswith("ERROR Gave up after 1.2 s: ")
    assert f"is held by {holder.pid} (" in lines[-1]
    gate.open()
    assert holder.wait() == 0


def read_bytes(process: subprocess.Popen[str]) -> tuple[bytes, bytes]:
    """Return what a process has written, which may not be text in this process's encoding."""
    assert process.stdout is not None
    assert process.stderr is not None
    error = process.stderr.buffer.read()  # type: ignore[attr-defined]
    out: bytes = process.stdout.buffer.read()  # type: ignore[attr-defined]
    process.wait()
    return out, error


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_sdist_and_its_wheel_are_built_of_a_tree_with_an_odd_path(
    witness_tree: WitnessTree, tmp_path: Path, name: str
) -> None:
    tree = odd_tree(witness_tree, tmp_path, name)
    report = tmp_path / "report.json"
    build = tree.start("-x", "--report", str(report), out_dir=tree.path / "dist")
    [(status, _, error)] = tree.finish(build)
    assert status == 0, error
    assert sorted(os.listdir(tree.path / "dist")) == ["witness-1.0-py3-none-any.whl", "witness-1.0.tar.gz"]
    assert report.is_file()


def test_the_command_line_of_the_holder_stays_on_one_line(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start("-Ca=\nb\x1b[2Jc", "--wheel", gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start()
    message = wait_until_it_waits(waiter)
    assert f"held by {holder.pid} (" in message
    assert "a=?b?[2Jc" in message
    assert message.endswith("; waiting without a limit, --lock-timeout sets one"), "the message was broken"
    gate.open()
    witness_tree.assert_all_succeed()


@pytest.mark.slow
def test_a_relative_path_may_begin_with_a_hyphen(witness_tree: WitnessTree, tmp_path: Path) -> None:
    tree = odd_tree(witness_tree, tmp_path, "hyphen")
    done = subprocess.run(
        [*LOCKBUILD, "-n", "--wheel", f"--outdir={tree.out_dir}", "--", tree.path.name],
        env=tree.environ(),
        cwd=tree.path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tree.out_dir) == ["witness-1.0-py3-none-any.whl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line break", "bytes", "control"])
def test_a_cache_folder_with_an_odd_path_serves(witness_tree: WitnessTree, tmp_path: Path, name: str) -> None:
    cache = tmp_path / "caches" / NAMES[name]
    env = {"LOCKBUILD_CACHE_DIR": str(cache)}
    gate = witness_tree.make_gate()
    witness_tree.start(gate=gate.path, env=env)
    witness_tree.wait_for_entry()
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "--lock-timeout", "0", env=env))
    assert status == 75, error
    assert len(error.splitlines()) == 1
    check_lines(error)
    gate.open()
    witness_tree.assert_all_succeed(witness_tree.started[0])
    assert list((cache / "locks").glob("*.lock"))
    # One that cannot be had is told on one line, too.
    (tmp_path / "caches" / "file").touch()
    env = {"LOCKBUILD_CACHE_DIR": str(tmp_path / "caches" / "file" / NAMES[name])}
    [(status, _, error)] = witness_tree.finish(witness_tree.start(env=env))
    assert status == 0, error
    assert error.splitlines()[0].startswith("WARNING ")
    assert "lock files are in" in error.splitlines()[0]
    check_lines(error)

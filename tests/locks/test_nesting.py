"""Builds inside hooks of builds, and inside ``flock`` and ``uv build``: they do not wait for their own ancestors.

A hook here may run any command, which stands in the environment, before it does what the witness does. It runs it
outside of the witness, because a hook around a nested hook is no overlap.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.garbage_collection import prune_left_behind
from lockbuild.locks import cache_digest
from machine import children, is_free, is_running, parent, start_adopted
from witness import LOCKBUILD, WitnessTree, make_witness_tree, wait_until

# Each of them takes a second or two, and there are many.
pytestmark = pytest.mark.slow

VARIABLE = "LOCKBUILD_HELD_LOCKS"

# HOOK_COMMANDS holds a list of shell commands. A hook runs the first and hands the rest on to what that starts.
NESTING_BACKEND = """
import json, os, subprocess
import witness_backend
from witness_backend import *

def build_wheel(directory, config_settings=None, metadata_directory=None):
    commands = json.loads(os.environ.get("HOOK_COMMANDS", "[]"))
    if commands:
        subprocess.run(["sh", "-euc", commands[0]], check=True,
                       env=os.environ | {"HOOK_COMMANDS": json.dumps(commands[1:])})
    return witness_backend.build_wheel(directory)
"""


@pytest.fixture
def tree(witness_tree: WitnessTree) -> WitnessTree:
    """A tree whose wheel hook runs commands."""
    return with_nesting_backend(witness_tree)


@pytest.fixture
def other_tree(tmp_path: Path) -> WitnessTree:
    """A second one, with a witness log of its own."""
    return with_nesting_backend(make_witness_tree(tmp_path / "other"))


def with_nesting_backend(tree: WitnessTree) -> WitnessTree:
    tree.use_backend("nesting", NESTING_BACKEND)
    return tree


def build_command(tree: WitnessTree, out: str, *options: str) -> str:
    """Return the shell command that builds the tree into a folder of that name."""
    words = [*LOCKBUILD, "-n", "--wheel", *options, "--outdir", str(tree.control / out), str(tree.path)]
    return shlex.join(["env", f"WITNESS_LOG={tree.log_file}", *words])


def commands(*lines: str) -> dict[str, str | None]:
    return {"HOOK_COMMANDS": json.dumps(lines)}


def wheels(tree: WitnessTree, *outs: str) -> list[bool]:
    return [(tree.control / out / "witness-1.0-py3-none-any.whl").exists() for out in outs]


def test_a_hook_may_build_its_own_tree(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start(env=commands(build_command(tree, "nested"))))
    assert wheels(tree, "out", "nested") == [True, True]


def test_a_hook_may_build_its_own_tree_through_another_name(tree: WitnessTree) -> None:
    (tree.control / "alias").symlink_to(tree.path)
    alias = build_command(tree, "nested").replace(str(tree.path), str(tree.control / "alias"))
    tree.assert_all_succeed(tree.start(env=commands(alias)))
    assert wheels(tree, "nested") == [True]


def test_nesting_may_go_deeper(tree: WitnessTree) -> None:
    nested = [build_command(tree, f"depth{depth}") for depth in range(3)]
    tree.assert_all_succeed(tree.start(env=commands(*nested)))
    assert wheels(tree, "depth0", "depth1", "depth2") == [True, True, True]


def test_two_nested_builds_side_by_side_exclude_each_other(tree: WitnessTree) -> None:
    pair = [f"{build_command(tree, out)} & {out}=$!" for out in ("left", "right")]
    tree.assert_all_succeed(tree.start(env=commands("; ".join([*pair, "wait $left", "wait $right"]))))
    assert wheels(tree, "left", "right") == [True, True]
    assert len(tree.entered("build_wheel")) == 3


def test_a_nested_build_does_not_let_strangers_in(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    outer = tree.start(env=commands(f"WITNESS_GATE={gate.path} {build_command(tree, 'nested')}"))
    tree.wait_for_entry()
    stranger = tree.start(out_dir=tree.control / "stranger")
    assert stranger.stderr is not None
    assert f"held by {outer.pid} (" in stranger.stderr.readline()
    assert len(tree.entered("get_requires_for_build_wheel")) == 2
    gate.open()
    tree.assert_all_succeed(outer, stranger)


def test_a_hook_builds_another_tree_which_builds_the_first_again(tree: WitnessTree, other_tree: WitnessTree) -> None:
    nested = [build_command(other_tree, "middle"), build_command(tree, "inner")]
    tree.assert_all_succeed(tree.start(env=commands(*nested)))
    assert wheels(tree, "out", "inner") == [True, True]
    assert wheels(other_tree, "middle") == [True]


def test_a_nested_build_of_another_tree_locks_that(tree: WitnessTree, other_tree: WitnessTree) -> None:
    gate = tree.make_gate()
    outer = tree.start(env=commands(f"WITNESS_GATE={gate.path} {build_command(other_tree, 'nested')}"))
    other_tree.wait_for_entry()
    environ: dict[str, str | None] = {"WITNESS_LOG": str(other_tree.log_file)}
    stranger = tree.start(source=other_tree.path, out_dir=other_tree.control / "stranger", env=environ)
    assert stranger.stderr is not None
    assert stranger.stderr.readline().startswith(f"* Waiting for the lock on {other_tree.path}, held by ")
    gate.open()
    tree.assert_all_succeed(outer, stranger)
    other_tree.assert_no_overlap()


def test_a_variable_in_a_process_that_is_no_descendant_of_the_holder_counts_for_nothing(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path)
    leftover = tree.told(f"locks-{tree.wait_for_entry()}")
    assert json.loads(leftover)[0][2] == holder.pid
    stranger = tree.start(env={VARIABLE: leftover}, out_dir=tree.control / "stranger")
    assert stranger.stderr is not None
    assert f"held by {holder.pid} (" in stranger.stderr.readline()
    assert len(tree.entered("get_requires_for_build_wheel")) == 1
    gate.open()
    tree.assert_all_succeed(holder, stranger)


def test_a_variable_that_outlives_its_holder_counts_for_nothing(tree: WitnessTree) -> None:
    first_gate, second_gate = tree.make_gate("first"), tree.make_gate("second")
    first = tree.start(gate=first_gate.path)
    leftover = tree.told(f"locks-{tree.wait_for_entry()}")
    first_gate.open()
    tree.assert_all_succeed(first)
    second = tree.start(gate=second_gate.path)
    tree.wait_for_entry(count=2)
    stranger = tree.start(env={VARIABLE: leftover}, out_dir=tree.control / "stranger")
    assert stranger.stderr is not None
    assert f"held by {second.pid} (" in stranger.stderr.readline()
    second_gate.open()
    tree.assert_all_succeed(second, stranger)


def test_a_variable_that_names_a_running_ancestor_of_another_start_time_counts_for_nothing(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path)
    entry = json.loads(tree.told(f"locks-{tree.wait_for_entry()}"))[0]
    # This process, which is an ancestor of the stranger, as if it had been given the holder's number again.
    entry[2] = os.getpid()
    stranger = tree.start(env={VARIABLE: json.dumps([entry])}, out_dir=tree.control / "stranger")
    assert stranger.stderr is not None
    assert f"held by {holder.pid} (" in stranger.stderr.readline()
    gate.open()
    tree.assert_all_succeed(holder, stranger)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "yes",
        "5",
        "{}",
        "null",
        "[5]",
        "[[1, 2, 3]]",
        '[["a", 2, 3, "4", "5", 6]]',
        "[[null, null, null, null, null, null]]",
        '[[1e999, 1, 1, "1", "x", 1]]',
        "[" * 100_000,
    ],
    ids=lambda garbage: garbage[:20] or "empty",
)
def test_garbage_in_the_variable_counts_for_nothing(tree: WitnessTree, garbage: str) -> None:
    gate = tree.make_gate()
    holder = tree.start(gate=gate.path)
    tree.wait_for_entry()
    stranger = tree.start(env={VARIABLE: garbage}, out_dir=tree.control / "stranger")
    assert stranger.stderr is not None
    assert f"held by {holder.pid} (" in stranger.stderr.readline()
    gate.open()
    # The stranger's own hook may nest, whatever stood in the variable before.
    tree.assert_all_succeed(holder, stranger)


def test_nesting_works_beside_garbage_in_the_variable(tree: WitnessTree) -> None:
    environ = commands(build_command(tree, "nested")) | {VARIABLE: "[5]"}
    tree.assert_all_succeed(tree.start(env=environ))
    assert wheels(tree, "nested") == [True]


def test_nested_builds_leave_no_lock_files_of_their_own(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start(env=commands(build_command(tree, "a"), build_command(tree, "b"))))
    left = sorted(os.listdir(Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks")))
    assert [name for name in left if not name.endswith(".lock")] == []
    assert len(left) == 1


def test_flock_around_a_build_does_not_deadlock(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start(command=("flock", str(tree.path), *LOCKBUILD)))
    tree.assert_all_succeed(tree.start(command=("flock", ".", *LOCKBUILD), cwd=tree.path, source="."))


def test_a_hook_under_flock_may_build_its_own_tree(tree: WitnessTree) -> None:
    environ = commands(build_command(tree, "nested"))
    tree.assert_all_succeed(tree.start(command=("flock", str(tree.path), *LOCKBUILD), env=environ))
    assert wheels(tree, "nested") == [True]


def test_builds_under_flock_of_two_caches_exclude_each_other_and_a_plain_one(tree: WitnessTree) -> None:
    for number in range(3):
        tree.start(
            command=("flock", str(tree.path), *LOCKBUILD),
            env={
                "LOCKBUILD_CACHE_DIR": str(tree.control / f"cache{number}"),
                "TMPDIR": temporary_folder(tree, f"tmp{number}"),
            },
            out_dir=tree.control / f"flock{number}",
        )
    tree.start(out_dir=tree.control / "plain")
    tree.assert_all_succeed()
    assert len(tree.entered("build_wheel")) == 4


def temporary_folder(tree: WitnessTree, name: str) -> str:
    folder = tree.control / name
    folder.mkdir()
    return str(folder)


def test_two_builds_under_one_flock_exclude_each_other(tree: WitnessTree) -> None:
    pair = " & ".join(build_command(tree, out) for out in ("left", "right"))
    tree.finish(tree.start_process("flock", str(tree.path), "sh", "-c", f"{pair} & wait"))
    assert wheels(tree, "left", "right") == [True, True]
    tree.assert_no_overlap()


def test_a_build_under_flock_and_a_plain_one_do_not_deadlock(tree: WitnessTree) -> None:
    """The one has the directory and wants the lock file, the other comes in between and has it the other way round."""
    ready = tree.make_gate("ready")
    script = f"cat {ready.path}; exec {build_command(tree, 'flock')}"
    wrapped = tree.start_process("flock", str(tree.path), "sh", "-c", script)
    wait_until(lambda: not is_free(tree.path), "flock")
    plain = tree.start()
    assert plain.stderr is not None
    assert "Waiting for the lock" in plain.stderr.readline()
    ready.open()
    tree.assert_all_succeed(wrapped, plain)


def test_a_build_under_uvs_lock_and_a_plain_one_do_not_deadlock(tree: WitnessTree) -> None:
    """The same with uv's lock, which a ``uv build`` holds that runs lockbuild in its hook."""
    uv_lock_file = Path(os.environ["TMPDIR"], f"uv-setuptools-{cache_digest(tree.path.resolve())}.lock")
    uv_lock_file.touch()
    ready = tree.make_gate("ready")
    # Like uv, this holds its lock in a process which is the ancestor of the build.
    holder = (
        "import fcntl, subprocess, sys; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX); "
        "sys.exit(subprocess.call(['sh', '-c', sys.argv[2]]))"
    )
    script = f"cat {ready.path}; exec {build_command(tree, 'uv')}"
    like_uv = tree.start_process(sys.executable, "-c", holder, str(uv_lock_file), script)
    wait_until(lambda: not is_free(uv_lock_file), "the lock of uv")
    plain = tree.start()
    assert plain.stderr is not None
    assert "Waiting for the lock" in plain.stderr.readline()
    ready.open()
    tree.assert_all_succeed(like_uv, plain)


def test_a_nested_build_that_outlives_its_hook_keeps_strangers_out(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    # The hook goes on and returns while the build that it has started in the background is inside of its own.
    nested = f"WITNESS_GATE={gate.path} {build_command(tree, 'nested')} >/dev/null 2>&1 & "
    nested += f"while ! grep -q ' build_wheel$' {tree.log_file}; do :; done"
    outer = tree.start(env=commands(nested))
    background = tree.wait_for_entry()
    assert tree.finish(outer)[0][0] == 0
    assert_locked(tree)
    assert ("leave", background, "build_wheel") not in tree.log()
    gate.open()
    assert tree.finish(tree.start(out_dir=tree.control / "after"))[0][0] == 0
    # Only the outer hook and the one in the background, which it has allowed, were in there together.
    inside = {pid for word, pid, _ in tree.log() if word == "overlap"}
    assert inside <= {background, tree.entered("build_wheel")[1]}
    assert wheels(tree, "out", "nested", "after") == [True, True, True]


def assert_locked(tree: WitnessTree) -> None:
    """Assert that a build which nobody has started in a hook does not get the lock."""
    stranger = tree.start("--wheel", "--lock-timeout", "0.5", out_dir=tree.control / "stranger")
    assert tree.finish(stranger)[0][0] == 75


@pytest.mark.parametrize("killed", ["frontend", "host"])
@pytest.mark.parametrize("wrapper", ["", "setsid -w "], ids=["same session", "session of its own"])
def test_the_lock_of_a_killed_build_outlives_the_builds_that_are_nested_in_it(
    tree: WitnessTree, wrapper: str, killed: str
) -> None:
    gate = tree.make_gate()
    nested = f"WITNESS_GATE={gate.path} {wrapper}{build_command(tree, 'nested')} >/dev/null 2>&1"
    outer = start_adopted(tree, env=commands(nested))
    nested_hook = tree.wait_for_entry()
    nested_host = parent(nested_hook)
    [host] = children(outer)
    [hook] = children(host)
    # Its host cannot end it now, though the build that it is nested in has long gone.
    os.kill(nested_host, signal.SIGSTOP)
    os.kill(outer if killed == "frontend" else host, signal.SIGKILL)
    wait_until(lambda: not is_running(hook), "the end of the outer hook")
    assert_locked(tree)
    assert is_running(nested_hook)
    os.kill(nested_host, signal.SIGCONT)
    if wrapper:
        # Nobody has killed this one.
        gate.open()
    tree.assert_all_succeed(tree.start())


@pytest.mark.slow
def test_a_setup_script_run_by_uv_may_run_lockbuild_on_its_own_tree(tmp_path: Path) -> None:
    tree = tmp_path / "project"
    tree.mkdir()
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (tree / "module.py").write_text("")
    nested = [*LOCKBUILD, "-n", "--wheel", "--outdir", str(tmp_path / "nested"), str(tree)]
    (tree / "setup.py").write_text(
        "import os, subprocess, sys\nfrom setuptools import setup\n"
        f"if 'NESTED' not in os.environ and 'bdist_wheel' in sys.argv:\n"
        f"    subprocess.run({nested!r}, check=True, env=os.environ | {{'NESTED': '1', 'PYTHONPATH': ''}})\n"
        "setup(name='project', version='1.0', py_modules=['module'])\n"
    )
    command = [str(Path(sys.executable).with_name("uv")), "build", "--wheel", "--no-build-isolation"]
    command += ["--python", sys.executable, "--out-dir", str(tmp_path / "out"), str(tree)]
    for number in range(2):
        for folder in ("nested", "out"):
            for wheel in (tmp_path / folder).glob("*.whl"):
                wheel.unlink()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (number, done.stderr)
        for folder in ("nested", "out"):
            assert [path.name for path in (tmp_path / folder).glob("*.whl")] == ["project-1.0-py3-none-any.whl"]


def test_a_nested_build_that_is_interrupted_ends_with_the_outer_one(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    outer = tree.start(env=commands(f"WITNESS_GATE={gate.path} {build_command(tree, 'nested')}"))
    hook = tree.wait_for_entry()
    outer.send_signal(signal.SIGTERM)
    assert outer.wait() == 128 + signal.SIGTERM
    wait_until(lambda: not Path(f"/proc/{hook}").exists(), "the end of the nested hook")
    tree.assert_all_succeed(tree.start())


def test_a_clean_up_removes_what_killed_builds_have_left_beside_lock_files_and_nothing_else(tree: WitnessTree) -> None:
    def lent() -> list[Path]:
        return list(Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.nested"))

    build = tree.start(gate=tree.make_gate().path)
    hook = tree.wait_for_entry()
    prune_left_behind()
    assert len(lent()) == 1
    assert [*lent()[0].parent.glob("*.lock.holder")]
    # No process is left that could take it back.
    os.kill(build.pid, signal.SIGSTOP)
    host = parent(hook)
    for pid in (host, hook, build.pid):
        os.kill(pid, signal.SIGKILL)
    build.wait()
    wait_until(lambda: not is_running(host) and not is_running(hook), "the end of host and hook")
    [path] = lent()
    # One that a build had left which was nested in a nested one that is gone.
    Path(f"{path}.1-3.nested").touch()
    path.with_name(f"{path.name}.holder").touch()
    prune_left_behind()
    # They belong to each other: one goes when the other has gone.
    prune_left_behind()
    assert [each.suffix for each in path.parent.iterdir()] == [".lock"]

"""``lockbuild-run``: a command under the lock on a tree, and that it is there as it is elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild import LockTimeoutError, SourceTreeLock
from machine import read_message, wait_until_it_waits
from witness import LOCKBUILD, PATIENCE, WitnessTree

RUN = (sys.executable, "-m", "lockbuild.commands.run")

# Says which signals it gets, one a line, until it is sent SIGTERM.
LISTENER = """
import os, signal, sys
def hear(number, _):
    # Not by print, which this may have interrupted.
    os.write(2, f"got {signal.Signals(number).name}\\n".encode())
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hear)
print("ready", os.getpid(), file=sys.stderr)
while True:
    signal.pause()
"""


def run(tree: WitnessTree, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*RUN, *words], cwd=tree.path, env=tree.environ(), capture_output=True, text=True, timeout=PATIENCE, **options
    )


@contextlib.contextmanager
def started(tree: WitnessTree, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start ``lockbuild-run`` in the tree; what is left of it and of its process group is killed at the end."""
    process = subprocess.Popen(
        [*RUN, *words],
        cwd=tree.path,
        env=tree.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def is_locked(tree: WitnessTree) -> bool:
    try:
        with SourceTreeLock(tree.path, timeout=0):
            return False
    except LockTimeoutError:
        return True


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 0"), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("sh", "-c", "kill -PIPE $$"), 128 + signal.SIGPIPE),
        (("no-such-command",), 127),
        (("./not-executable",), 126),
        ((), 2),
        (("-C", "no-such-tree", "true"), 1),
        (("--no-such-option", "true"), 2),
    ],
)
def test_the_exit_status_is_that_of_the_command_and_else_the_usual_one(
    witness_tree: WitnessTree, command: tuple[str, ...], status: int
) -> None:
    (witness_tree.path / "not-executable").touch()
    finished = run(witness_tree, *command)
    assert finished.returncode == status, finished.stderr
    if status in (0, 7):
        assert not finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_command_gets_its_arguments_as_they_are_and_the_standard_streams(witness_tree: WitnessTree) -> None:
    tell = "import sys; print(sys.argv[1:], sys.stdin.read()); print('error', file=sys.stderr)"
    words = ["--", "-C", "a b", "", "--lock-timeout"]
    finished = run(witness_tree, "--lock-timeout=5", "--", sys.executable, "-c", tell, *words, input="typed")
    assert (finished.stdout, finished.stderr) == (f"{words} typed\n", "error\n")


def test_the_command_runs_in_the_tree_that_is_named_and_that_one_is_locked(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    command = f"pwd; cat {shlex.quote(str(gate.path))}"
    with started(witness_tree, "-C", "../tree/.", "sh", "-c", command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{os.path.realpath(witness_tree.path)}\n"
        assert is_locked(witness_tree)
        build = witness_tree.start()
        assert "sh -c" in wait_until_it_waits(build)
        assert not witness_tree.entered("build_wheel")
        gate.open()
        assert process.wait(PATIENCE) == 0
    witness_tree.assert_all_succeed(build)


def test_a_folder_that_is_no_project_is_warned_of(witness_tree: WitnessTree, tmp_path: Path) -> None:
    finished = run(witness_tree, "-C", str(tmp_path), "pwd")
    assert finished.stdout == f"{tmp_path}\n"
    assert finished.stderr.startswith(f"WARNING {tmp_path} has no pyproject.toml, setup.py or setup.cfg")


def test_a_lock_that_is_not_free_in_time_is_status_75_and_the_command_does_not_run(witness_tree: WitnessTree) -> None:
    with SourceTreeLock(witness_tree.path):
        finished = run(witness_tree, "--lock-timeout", "0", "--", "touch", "was-run")
    assert finished.returncode == 75
    assert len(finished.stderr.splitlines()) == 1
    assert not (witness_tree.path / "was-run").exists()


def test_builds_in_the_command_go_on_under_its_lock_one_after_the_other(witness_tree: WitnessTree) -> None:
    words = (*LOCKBUILD, "-n", "--wheel", "--lock-timeout=60", "--outdir", str(witness_tree.out_dir))
    build = shlex.join(words)
    finished = run(witness_tree, "--", *RUN, "--", "sh", "-ec", f"{build} & first=$!; {build}; wait $first")
    assert finished.returncode == 0, finished.stderr
    assert len(witness_tree.entered("build_wheel")) == 2
    witness_tree.assert_no_overlap()
    assert not list(Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.nested"))


def test_a_build_that_the_command_leaves_running_keeps_the_lock(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    build = shlex.join([*LOCKBUILD, "-n", "--wheel", "--outdir", str(witness_tree.out_dir)])
    witness = witness_tree.log_file
    waits = f"while ! grep -q 'enter .* build_wheel' {witness}; do sleep 0.01; done"
    command = f"WITNESS_GATE={gate.path} {build} >/dev/null 2>&1 & {waits} 2>/dev/null; echo left"
    with started(witness_tree, "--", "sh", "-c", command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "left\n"
        stranger = witness_tree.start()
        wait_until_it_waits(stranger)
        gate.open()
        assert process.wait(PATIENCE) == 0
    witness_tree.assert_all_succeed(stranger)


def test_signals_are_passed_on_once_and_the_command_decides_what_comes_of_them(witness_tree: WitnessTree) -> None:
    with started(witness_tree, "--", sys.executable, "-c", LISTENER) as process:
        read_message(process, "ready")
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGTERM"):
            process.send_signal(signal.Signals[name])
            assert read_message(process, "") == f"got {name}"
        assert process.wait(PATIENCE) == 9
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert not is_locked(witness_tree)


def test_a_signal_while_it_waits_for_the_lock_ends_it_with_the_status_for_that(witness_tree: WitnessTree) -> None:
    with SourceTreeLock(witness_tree.path), started(witness_tree, "--", "touch", "was-run") as process:
        wait_until_it_waits(process)
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not (witness_tree.path / "was-run").exists()


def test_a_terminals_ctrl_c_reaches_the_command_once(witness_tree: WitnessTree) -> None:
    master, slave = pty.openpty()
    with open(slave, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*RUN, "--", sys.executable, "-c", LISTENER],
            cwd=witness_tree.path,
            env=witness_tree.environ(),
            stdin=terminal,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    try:
        read_message(process, "ready")
        # Stopped, so that what it may want to pass on comes when the command has heard of the first one.
        process.send_signal(signal.SIGSTOP)
        os.write(master, b"\x03")
        assert read_message(process, "") == "got SIGINT"
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert read_message(process, "") == "got SIGTERM"
        assert process.wait(PATIENCE) == 9
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
        os.close(master)


def test_the_command_of_a_killed_lockbuild_run_keeps_the_lock_until_it_ends(witness_tree: WitnessTree) -> None:
    with started(witness_tree, "--", sys.executable, "-c", LISTENER) as process:
        command = int(read_message(process, "ready").removeprefix("ready "))
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        build = witness_tree.start()
        assert f"held by {command} " in wait_until_it_waits(build)
        os.kill(command, signal.SIGTERM)
        read_message(build, "Got the lock")
    witness_tree.assert_all_succeed(build)


def test_a_program_that_the_command_leaves_running_does_not_keep_the_lock(witness_tree: WitnessTree) -> None:
    with started(witness_tree, "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!") as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        assert process.wait(PATIENCE) == 0
        os.kill(left, 0)
        assert not is_locked(witness_tree)


def test_what_was_ignored_around_it_is_ignored_in_the_command_and_nothing_else(witness_tree: WitnessTree) -> None:
    def ignored(wrapper: str) -> int:
        script = f"trap '' HUP; {wrapper} grep SigIgn: /proc/self/status"
        told = subprocess.run(["sh", "-c", script], cwd=witness_tree.path, capture_output=True, text=True).stdout
        # Signals 32 and 33 are the C library's own.
        return int(told.split()[1], 16) & (1 << 31) - 1

    assert ignored(shlex.join(RUN)) == ignored("") & ~(1 << signal.SIGPIPE - 1) != 0

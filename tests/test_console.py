"""What a person sees: the wait for a lock, steps, errors; on a terminal and elsewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.console import Console
from lockbuild.errors import LockTimeoutError, shown
from lockbuild.events import Holder, LockWait
from lockbuild.request import Artifact, BuildResult
from screen import on_screen, terminal
from witness import LOCKBUILD, PATIENCE, WitnessTree, wait_until

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow

RUN = (sys.executable, "-m", "lockbuild.commands.run")

Captured = pytest.CaptureFixture[str]

SOMEBODY = Holder(1234, "lockbuild --wheel", None)


def a_wait(
    waited: float, holder: Holder | None = SOMEBODY, timeout: float | None = None, subject: str = "/tree"
) -> LockWait:
    return LockWait(subject, "/cache/locks/x.lock", holder, waited, timeout)


def told(capsys: Captured) -> list[str]:
    out, error = capsys.readouterr()
    assert out == ""
    return error.splitlines()


def test_a_wait_is_told_when_it_begins_with_its_holder(capsys: Captured) -> None:
    Console(0).waiting(a_wait(0.5))
    [line] = told(capsys)
    assert line.startswith("* Waiting for the lock on /tree, held by 1234 (lockbuild --wheel)")
    assert "waiting without a limit, --lock-timeout sets one" in line


def test_a_wait_with_a_limit_says_the_limit(capsys: Captured) -> None:
    Console(0).waiting(a_wait(0.5, timeout=90))
    [line] = told(capsys)
    assert "waiting for up to 90 s" in line
    assert "without a limit" not in line


def test_a_wait_is_told_again_every_15_seconds_and_not_in_between(capsys: Captured) -> None:
    console = Console(0)
    lines = {}
    for half_seconds in range(1, 100):
        console.waiting(a_wait(half_seconds / 2))
        if said := told(capsys):
            lines[half_seconds / 2] = said
    assert list(lines) == [0.5, 15.5, 30.5, 45.5]
    assert all(len(said) == 1 for said in lines.values())
    assert "limit" in lines[0.5][0]
    assert "limit" not in lines[15.5][0]


def test_a_wait_is_told_again_when_the_holder_changes(capsys: Captured) -> None:
    console = Console(0)
    console.waiting(a_wait(0.5))
    told(capsys)
    console.waiting(a_wait(1.0, Holder(77, "uv build", None)))
    [line] = told(capsys)
    assert "held by 77 (uv build)" in line
    console.waiting(a_wait(1.5, Holder(77, "uv build", None)))
    assert told(capsys) == []
    console.waiting(a_wait(2.0, None))
    [line] = told(capsys)
    assert "held by a process that cannot be seen from here" in line
    # The quarter of a minute counts from the last line.
    console.waiting(a_wait(16.9, None))
    assert told(capsys) == []
    console.waiting(a_wait(17.0, None))
    assert len(told(capsys)) == 1


def test_how_long_somebody_has_held_the_lock_is_said_where_it_is_known(capsys: Captured) -> None:
    import time

    Console(0).waiting(a_wait(0.5, Holder(1234, "x", time.time() - 12.2)))
    [line] = told(capsys)
    assert re.search(r"held by 1234 \(x\) for 1[23] s", line)


def test_the_end_of_a_wait_is_told_with_its_length(capsys: Captured) -> None:
    console = Console(0)
    console.waiting(a_wait(0.5))
    console.got_lock("/tree", 14.2)
    assert told(capsys)[1:] == ["* Got the lock on /tree after 14 s"]
    # The next wait is a new one.
    console.waiting(a_wait(0.5))
    assert "limit" in told(capsys)[0]


def test_with_q_twice_there_are_only_errors(capsys: Captured) -> None:
    console = Console(-2)
    console.waiting(a_wait(0.5))
    console.got_lock("/tree", 14)
    console.warn("a warning")
    console.log("a step", ("step",))
    console.log("a word")
    console.detail("a detail")
    console.succeeded(BuildResult((Artifact("x.whl", "x.whl", "wheel", 1, ""),)))
    assert told(capsys) == []
    console.error("what went wrong")
    assert told(capsys) == ["ERROR what went wrong"]


def test_with_q_once_a_wait_is_still_told(capsys: Captured) -> None:
    console = Console(-1)
    console.waiting(a_wait(0.5))
    console.got_lock("/tree", 1)
    console.warn("a warning")
    assert len(told(capsys)) == 3


def test_a_detail_is_for_those_who_ask(capsys: Captured) -> None:
    Console(0).detail("a detail")
    assert told(capsys) == []
    Console(1).detail("a detail")
    assert told(capsys) == ["  a detail"]


def test_a_warning_is_told_once(capsys: Captured) -> None:
    console = Console(0)
    for _ in range(3):
        console.warn("a warning")
    console.warn("another")
    assert told(capsys) == ["WARNING a warning", "WARNING another"]


ODD_PATHS = ["/a\nb", "/a\r\33[2Kb", "/a\tb", "/a\u2028b", "/a\x85b", os.fsdecode(b"/a\xffb"), "/a\u202eb", "/ü"]


@pytest.mark.parametrize("path", ODD_PATHS, ids=ascii)
def test_a_message_with_an_odd_path_is_one_line_that_any_stream_can_print(capsys: Captured, path: str) -> None:
    console = Console(0)
    console.waiting(a_wait(0.5, subject=path))
    console.got_lock(path, 1)
    console.error(str(LockTimeoutError(path, path, SOMEBODY, 1)))
    lines = told(capsys)
    assert len(lines) == 3
    for line in lines:
        line.encode()
        assert line.isprintable()
    if path != "/ü":
        assert path not in shown(path)
    else:
        assert all(path in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"a\nb", b"a\xffb", b"a\33[31mb"], ids=["newline", "no text", "escape"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_build_of_a_tree_with_an_odd_name_works_and_its_messages_stay_lines(
    witness_tree: WitnessTree, name: bytes, encoding: str
) -> None:
    tree = witness_tree.path.rename(os.fsdecode(os.fsencode(witness_tree.path.parent) + b"/" + name))
    environ = {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "1"}
    gate = witness_tree.make_gate()
    holder = witness_tree.start("-w", source=tree, env=environ, gate=gate.path)
    witness_tree.wait_for_entry()
    options = ("-w", "-v", "--lock-timeout", "0.7")
    [(status, _, error)] = witness_tree.finish(witness_tree.start(*options, source=tree, env=environ))
    assert status == 75, error
    assert "Traceback" not in error
    waiting, end = (line for line in error.splitlines() if line.startswith(("* Waiting", "ERROR")))
    assert str(holder.pid) in waiting
    assert end.startswith("ERROR Gave up after 0.7 s: ")
    assert "\33" not in error
    gate.open()
    witness_tree.assert_all_succeed(holder)
    [(status, _, error)] = witness_tree.finish(witness_tree.start("-w", source=Path(f"{tree}/none"), env=environ))
    assert status == 1
    assert len(error.splitlines()) == 1
    assert error.startswith("ERROR Source ")
    # The traceback of the backend names its file, and is printed on standard output.
    with (tree / "witness_backend.py").open("a") as file:
        file.write("\n\nimport no_such_module\n")
    [(status, out, error)] = witness_tree.finish(witness_tree.start("-w", source=tree, env=environ))
    assert status == 1
    assert "No module named 'no_such_module'" in out
    reason = "ModuleNotFoundError: No module named 'no_such_module'"
    assert error.splitlines()[-1] == f"ERROR Backend 'witness_backend' is not available: {reason}"


def test_on_a_terminal_a_wait_is_one_line_that_counts_up_and_is_erased(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    with terminal() as (error, received):
        waiter = subprocess.Popen(
            [*LOCKBUILD, "-n", "-w", "-o", str(witness_tree.control / "second"), str(witness_tree.path)],
            stdout=subprocess.PIPE,
            stderr=error,
            env=witness_tree.environ({"COLUMNS": "80"}),
        )
        try:
            wait_until(lambda: b"* Waiting 2 s " in b"".join(received), "the line to count up to two seconds")
            during = on_screen(b"".join(received))
            gate.open()
            out, _ = waiter.communicate(timeout=PATIENCE)
        finally:
            waiter.kill()
    witness_tree.assert_all_succeed(holder)
    assert waiter.returncode == 0
    assert out.decode().splitlines()[-1].startswith("Successfully built ")
    [line] = during
    assert line.startswith(f"* Waiting 2 s for {holder.pid} (lockbuild ")
    assert line.endswith("/tree")
    assert len(line) < 80
    counted = re.findall(rb"Waiting (\d+) s", b"".join(received))
    assert {b"1", b"2"} <= set(counted)
    after = [line for line in on_screen(b"".join(received)) if line]
    assert not any("Waiting" in line for line in after)
    assert re.fullmatch(r"\* Got the lock on .* after [2-9]\d* s", after[0])
    assert after[1:] == ["* Getting build dependencies for wheel...", "* Building wheel..."]


CONSOLE_ON_A_TERMINAL = """
import sys
from lockbuild.console import Console
from lockbuild.events import LockWait
from lockbuild.events import Holder
from lockbuild.request import Artifact, BuildResult
console = Console(0)
for waited in (0.5, 1.0, 1.5):
    console.waiting(LockWait(sys.argv[1], "x.lock", Holder(7, "y" * 300, None), waited, None))
{}
"""


@pytest.mark.parametrize(
    ("then", "shows"),
    [
        ("console.got_lock('/tree', 2)", ["* Got the lock on /tree after 2 s"]),
        ("console.error('no')", ["ERROR no"]),
        ("console.warn('no')", ["WARNING no"]),
        ("console.log('on we go', ('step',))", ["* on we go"]),
        ("console.traceback('words')", []),
        ("console.succeeded(BuildResult((Artifact('x', 'x', 'wheel', 1, ''),)))", []),
        ("console.metadata({})", []),
    ],
)
def test_whatever_comes_next_the_line_of_a_wait_on_a_terminal_is_erased_first(then: str, shows: list[str]) -> None:
    with terminal() as (error, received):
        subprocess.run(
            [sys.executable, "-c", CONSOLE_ON_A_TERMINAL.format(then), "/tree"],
            stdout=subprocess.DEVNULL,
            stderr=error,
            env=os.environ | {"COLUMNS": "60"},
            check=True,
        )
    written = b"".join(received)
    assert b"Waiting" in written
    assert [line for line in on_screen(written) if line] == shows


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (120, f"* Waiting 2 s for 7 ({'y' * 38}…): /srv/a\\n/projects/tree"),
        (80, f"* Waiting 2 s for 7 ({'y' * 25}…): /srv/a\\n/projects/tree"),
        (60, f"* Waiting 2 s for 7 ({'y' * 18}…): …/projects/tree"),
        (40, f"* Waiting 2 s for 7 ({'y' * 11}…)"),
        (20, "* Waiting 2 s for…"),
    ],
)
def test_the_line_of_a_wait_keeps_time_process_and_command_and_the_end_of_the_tree(columns: int, line: str) -> None:
    with terminal(columns) as (error, received):
        subprocess.run(
            [sys.executable, "-c", CONSOLE_ON_A_TERMINAL.format(""), "/srv/a\n/projects/tree"],
            stdout=subprocess.DEVNULL,
            stderr=error,
            env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
            check=True,
        )
    assert on_screen(b"".join(received)) == [line]


def test_the_line_of_a_wait_stays_after_ctrl_c(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    # Both commands of which people see the wait.
    for command in ([*LOCKBUILD, "-n", "-w", str(witness_tree.path)], [*RUN, "-C", str(witness_tree.path), "true"]):
        with terminal() as (error, received):
            waiter = subprocess.Popen(command, stderr=error, stdout=subprocess.DEVNULL, env=witness_tree.environ())
            try:
                wait_until(lambda: b"* Waiting 1 s " in b"".join(received), "the line of the wait")
                waiter.send_signal(signal.SIGINT)
                assert waiter.wait(PATIENCE) == 130
            finally:
                waiter.kill()
        line, rest = on_screen(b"".join(received))
        assert line.startswith(f"* Waiting 1 s for {holder.pid} ")
        assert rest == ""
    gate.open()
    witness_tree.assert_all_succeed(holder)

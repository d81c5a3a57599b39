"""The line on a terminal that tells what goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from screen import on_screen, terminal
from wheelhouse import Wheelhouse, make_probe_tree
from witness import LOCKBUILD, PATIENCE, end_all, wait_until

# Has a console at standard error, and does what its first argument says; "pause" lasts until a line comes in.
_SCRIPT = """
import sys, time
from lockbuild.console import Console
console = Console(0, hooks_write={hooks_write})
pause = sys.stdin.readline
exec(sys.argv[1])
"""


def start(
    code: str,
    error: int,
    *,
    hooks_write: bool = True,
    env: dict[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> subprocess.Popen[str]:
    script = _SCRIPT.format(hooks_write=hooks_write)
    return subprocess.Popen(
        [sys.executable, "-c", script, code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=error,
        env=os.environ | (env or {}),
        text=True,
    )


def resume(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_a_step_that_lasts_has_a_line_that_counts_and_is_gone_when_it_is_over() -> None:
    code = "console.began('environment'); pause(); console.ended('environment', 1); console.log('next', ('step',))"
    # Nor is it drawn once more by a thread that has not heard yet.
    code += "; time.sleep(0.3)"
    with terminal() as (error, received):
        process = start(code, error)
        wait_until(lambda: b"* Making the build environment, 1 s" in b"".join(received), "the line")
        resume(process)
        finish(process)
    assert on_screen(b"".join(received)) == ["* next", ""]


def test_progress_is_a_bar() -> None:
    code = "console.began('environment'); console.progress(2, 3); pause(); console.ended('environment', 1)"
    with terminal() as (error, received):
        process = start(code, error)
        wait_until(lambda: b" 2/3, " in b"".join(received), "the bar")
        resume(process)
        finish(process)
    written = b"".join(received)
    assert b"* Making the build environment \33[92m################\33[0m-------- 2/3, " in written
    assert on_screen(written) == [""]


def test_without_color_the_line_is_there() -> None:
    code = "console.began('environment'); console.progress(2, 3); pause(); console.ended('environment', 1)"
    with terminal() as (error, received):
        process = start(code, error, env={"NO_COLOR": "1"})
        wait_until(lambda: b"################-------- 2/3, " in b"".join(received), "the bar")
        resume(process)
        finish(process)
    assert not re.search(rb"\x1b\[\d", b"".join(received))


def test_what_is_said_meanwhile_has_a_line_of_its_own() -> None:
    code = "console.began('environment'); pause(); console.warn('a word'); pause(); console.ended('environment', 1)"
    with terminal() as (error, received):
        process = start(code, error)
        wait_until(lambda: b"Making" in b"".join(received), "the line")
        resume(process)
        wait_until(lambda: b"Making" in b"".join(received).partition(b"a word")[2], "the line again")
        resume(process)
        finish(process)
    assert on_screen(b"".join(received)) == ["WARNING a word", ""]


def test_the_line_of_a_wait_is_not_drawn_over() -> None:
    code = (
        "from lockbuild.events import LockWait\n"
        "console.began('environment'); console.waiting(LockWait('/tree', 'x', None, 3, None)); time.sleep(0.8)\n"
        "console.got_lock('/tree', 4); pause(); console.ended('environment', 1)"
    )
    with terminal() as (error, received):
        process = start(code, error)
        wait_until(lambda: b"Making" in b"".join(received).partition(b"Got the lock")[2], "the line after the wait")
        resume(process)
        finish(process)
    assert b"Making" not in b"".join(received).partition(b"Got the lock")[0]


@pytest.mark.parametrize(
    ("step", "hooks_write", "env", "has_line"),
    [
        ("environment", True, {}, True),
        ("unpack", True, {}, True),
        ("environment", True, {"CI": "true"}, False),
        ("environment", True, {"TERM": "dumb"}, False),
        # What a hook writes would go into the line.
        ("build_wheel", True, {}, False),
        ("build_wheel", False, {}, True),
    ],
)
def test_there_is_a_line_only_where_nobody_else_writes_and_a_person_looks(
    step: str, hooks_write: bool, env: dict[str, str], has_line: bool
) -> None:
    code = f"console.began({step!r}); time.sleep(0.8); console.ended({step!r}, 0.8)"
    with terminal() as (error, received):
        finish(start(code, error, hooks_write=hooks_write, env=env))
    assert (b"\r" in b"".join(received)) == has_line


def test_a_step_that_is_soon_over_is_not_told_of() -> None:
    code = (
        "import lockbuild.live; lockbuild.live._DELAY_SECONDS = 3600\n"
        "console.began('environment'); time.sleep(0.5); console.ended('environment', 0.5)"
    )
    with terminal() as (error, received):
        finish(start(code, error))
    assert b"".join(received) == b""


def test_an_installation_tells_how_many_wheels_are_in_their_place(tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path)
    wheels = [str(house.add_wheel(name, files={f"{name}/__init__.py": ""})) for name in ("one", "two", "three")]
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=os.name != "nt")
    # The thread that links into one of the directories pauses there.
    code = (
        "sys.addaudithook(lambda event, words: event == 'os.link' and '/two/' in words[1] and pause())\n"
        "import lockbuild; console.began('filling'); lockbuild.install_wheels(sys.argv[3:], sys.argv[2], "
        "reporter=console, link_mode='hardlink'); console.ended('filling', 1)"
    )
    with terminal() as (error, received):
        process = start(code, error, arguments=[str(environment), *wheels])
        wait_until(lambda: b" 1/3, " in b"".join(received) or b" 2/3, " in b"".join(received), "the bar")
        assert b" 3/3, " not in b"".join(received)
        resume(process)
        finish(process)
    assert on_screen(b"".join(received)) == [""]


@pytest.mark.slow
def test_a_build_tells_of_an_environment_that_takes_long(tmp_path: Path) -> None:
    tree = make_probe_tree(tmp_path / "probe")
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    with terminal() as (error, received):
        build = subprocess.Popen(
            [*LOCKBUILD, "--wheel", "--outdir", str(tree.out_dir), str(tree.path)],
            env=tree.environ({"SDIST_GATE_SLOW": str(gate.path)}),
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
        )
        tree.started.append(build)
        try:
            line = b"* Finding and fetching the build requirements, 1 s"
            wait_until(lambda: line in b"".join(received), "the line")
            gate.open()
            build.communicate(timeout=PATIENCE)
        finally:
            end_all(tree.started)
    assert build.returncode == 0
    shown = on_screen(b"".join(received))
    assert not any("Making" in line or "Finding" in line for line in shown)
    assert "* Building wheel..." in shown

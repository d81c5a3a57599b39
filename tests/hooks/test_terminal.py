"""Builds at a terminal: Ctrl-C, Ctrl-Z, and hooks that read what a person types.

The terminal is a pseudo-terminal, the build the foreground job of a small shell that leads its session. The tests see
what the kernel sees: which process group is in the foreground, and which processes are stopped.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import pytest

from machine import is_running, state
from witness import LOCKBUILD, PATIENCE, PLAIN, WitnessTree, wait_until

CTRL_C = b"\x03"
CTRL_Z = b"\x1a"

# What a shell with job control does for one job. It is told "fg" or "bg" when the job has stopped, and tells each
# change of the job: "stopped SIGNAL", "exited STATUS", "killed SIGNAL".
SHELL = """
import fcntl, os, signal, sys, termios
terminal, commands, events, *job = sys.argv[1:]
commands, events = os.fdopen(int(commands)), os.fdopen(int(events), "w", 1)
descriptor = os.open(terminal, os.O_RDWR)
fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
for number in (0, 1, 2):
    os.dup2(descriptor, number)
os.set_inheritable(descriptor, False)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(job[0], job)
try:
    os.setpgid(child, child)
except PermissionError:
    pass  # The child was quicker, and has executed its program.
print(f"started {child}", file=events)
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        break
    print(f"stopped {os.WSTOPSIG(status)}", file=events)
    if commands.readline() == "fg\\n":
        os.tcsetpgrp(0, child)
    os.killpg(child, signal.SIGCONT)
os.write(1, b"the job has ended")
print(f"killed {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exited {os.WEXITSTATUS(status)}", file=events)
"""

# The same without a shell, as in a container: the build itself leads the session.
NO_SHELL = """
import fcntl, os, sys, termios
terminal, commands, events, *job = sys.argv[1:]
descriptor = os.open(terminal, os.O_RDWR)
fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
for number in (0, 1, 2):
    os.dup2(descriptor, number)
os.close(descriptor)
os.write(int(events), f"started {os.getpid()}\\n".encode())
os.execv(job[0], job)
"""


class Terminal:
    """A terminal with a build as its foreground job; a context manager that hangs up."""

    def __init__(
        self, tree: WitnessTree, shell: str, env: dict[str, str | None] | None, options: Sequence[str]
    ) -> None:
        self.screen = b""
        self._master, slave = pty.openpty()
        commands, self._commands = os.pipe()
        events, event_writer = os.pipe()
        words = [*LOCKBUILD, "-n", *options, "--outdir", str(tree.out_dir), str(tree.path)]
        self.shell = subprocess.Popen(
            [sys.executable, "-c", shell, os.ttyname(slave), str(commands), str(event_writer), *words],
            pass_fds=(commands, event_writer),
            env=tree.environ(env),
            start_new_session=True,
        )
        os.close(commands)
        os.close(event_writer)
        self._events = os.fdopen(events)
        self.frontend = int(self.event().removeprefix("started "))
        # Not before somebody else has it open: a terminal that nobody has open reads as one that has gone.
        os.close(slave)
        self._is_open = True
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # A terminal at which nobody looks stops those who write. While a read waits, the terminal cannot be closed.
        with contextlib.suppress(OSError):
            while self._is_open:
                if select.select([self._master], [], [], 0.02)[0]:
                    self.screen += os.read(self._master, 65536)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        os.close(self._commands)
        self.shell.wait(PATIENCE)
        self._events.close()

    def hang_up(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reader.join()
            os.close(self._master)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def event(self) -> str:
        """Wait for the next change of the job. When it has ended, all that it has written is on the screen."""
        told = self._events.readline().rstrip("\n")
        if told.startswith(("exited", "killed")) and self._is_open:
            self.wait_for_text(b"the job has ended")
        return told

    def tell_shell(self, command: str) -> None:
        os.write(self._commands, command.encode() + b"\n")

    @property
    def foreground(self) -> int:
        """The process group that may read the terminal, and gets its Ctrl-C."""
        return os.tcgetpgrp(self._master)

    def wait_for_text(self, text: bytes) -> None:
        wait_until(lambda: text in self.screen, f"{text!r} on the screen")


def wait_until_gone(*pids: int) -> None:
    wait_until(lambda: not any(map(is_running, pids)), f"the end of {pids}")


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.__exit__()


def start(
    terminals: list[Terminal],
    tree: WitnessTree,
    *options: str,
    shell: str = SHELL,
    env: dict[str, str | None] | None = None,
) -> Terminal:
    terminals.append(Terminal(tree, shell, env, options or ("--wheel",)))
    return terminals[-1]


ASK = "tell('answer', input('name? '))"
SLEEP = """
compiler = subprocess.Popen(["sleep", "1000"])
tell("compiler", str(compiler.pid))
time.sleep(1000)
"""


def test_a_hook_reads_what_a_person_types(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook(ASK)
    terminal = start(terminals, witness_tree)
    terminal.wait_for_text(b"name? ")
    terminal.type(b"Ada\n")
    assert terminal.event() == "exited 0"
    assert witness_tree.told("answer") == "Ada"
    assert b"Successfully built" in terminal.screen


def test_what_a_hook_has_started_reads_what_a_person_types(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    witness_tree.use_hook(
        """subprocess.run(["sh", "-c", "printf 'name? '; read name; echo hello $name"], check=True)"""
    )
    terminal = start(terminals, witness_tree)
    terminal.wait_for_text(b"name? ")
    terminal.type(b"Ada\n")
    terminal.wait_for_text(b"hello Ada")
    assert terminal.event() == "exited 0"


def test_a_hook_may_read_again_and_so_may_the_next_one(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook("tell('answer', input('one? ') + input('two? '))")
    terminal = start(terminals, witness_tree, "--wheel", "--wheel")
    for _ in range(2):
        terminal.screen = b""
        for question in (b"one? ", b"two? "):
            terminal.wait_for_text(question)
            terminal.type(b"yes\n")
    assert terminal.event() == "exited 0"
    assert witness_tree.told("answer") == "yesyes"


def test_the_terminal_is_taken_back_when_the_hook_has_ended(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    gate = witness_tree.make_gate()
    witness_tree.use_hook(ASK, "get_requires_for_build_wheel")
    terminal = start(terminals, witness_tree, env={"WITNESS_GATE": str(gate.path)})
    terminal.wait_for_text(b"name? ")
    hook = int(witness_tree.told("hook"))
    wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(b"Ada\n")
    # The next hook waits at its gate, and has not asked for the terminal.
    witness_tree.wait_for_entry("build_wheel")
    assert terminal.foreground == terminal.frontend
    gate.open()
    assert terminal.event() == "exited 0"


def test_a_hook_that_does_not_read_is_not_in_the_foreground(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    gate = witness_tree.make_gate()
    terminal = start(terminals, witness_tree, env={"WITNESS_GATE": str(gate.path)})
    witness_tree.wait_for_entry("build_wheel")
    assert terminal.foreground == terminal.frontend
    gate.open()
    assert terminal.event() == "exited 0"


def test_ctrl_c_ends_the_hook_and_the_frontend(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook(SLEEP)
    terminal = start(terminals, witness_tree)
    hook, compiler = int(witness_tree.told("hook")), int(witness_tree.told("compiler"))
    terminal.type(CTRL_C)
    assert terminal.event() == "exited 130"
    assert not is_running(hook)
    assert not is_running(compiler)
    assert b"Traceback" not in terminal.screen
    assert not witness_tree.out_dir.exists() or not any(witness_tree.out_dir.iterdir())


INTERRUPTIBLE = {
    "input": "input('name? ')",
    "a handler of its own": "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))\ninput('name? ')",
    "the default action": "signal.signal(signal.SIGINT, signal.SIG_DFL)\ninput('name? ')",
    "a child that resists": (
        "child = subprocess.Popen(['sh', '-c', 'trap \"\" INT TERM HUP; sleep 1000'])\n"
        "tell('child', str(child.pid))\ninput('name? ')"
    ),
}


@pytest.mark.parametrize("how", ["input", "the default action", "a child that resists"])
def test_ctrl_c_while_the_hook_has_the_terminal_ends_everything(
    witness_tree: WitnessTree, terminals: list[Terminal], how: str
) -> None:
    witness_tree.use_hook(INTERRUPTIBLE[how])
    terminal = start(terminals, witness_tree)
    terminal.wait_for_text(b"name? ")
    hook = int(witness_tree.told("hook"))
    wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(CTRL_C)
    assert terminal.event() == "exited 130"
    wait_until_gone(hook)
    if how == "a child that resists":
        assert not is_running(int(witness_tree.told("child")))
    assert b"Traceback" not in terminal.screen
    assert b"ERROR" not in terminal.screen


def test_a_hook_that_handles_ctrl_c_itself_decides_how_it_ends(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    witness_tree.use_hook(INTERRUPTIBLE["a handler of its own"])
    terminal = start(terminals, witness_tree)
    terminal.wait_for_text(b"name? ")
    hook = int(witness_tree.told("hook"))
    wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(CTRL_C)
    assert terminal.event() == "exited 1"
    assert b"ERROR" in terminal.screen


def test_ctrl_z_stops_the_frontend_and_its_hook_and_both_go_on(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    witness_tree.use_hook("while not os.path.exists(os.environ['GO']):\n    time.sleep(0.005)")
    go = witness_tree.control / "go"
    terminal = start(terminals, witness_tree, env={"GO": str(go)})
    hook = int(witness_tree.told("hook"))
    for _ in range(2):
        terminal.type(CTRL_Z)
        assert terminal.event() == f"stopped {int(signal.SIGTSTP)}"
        assert state(terminal.frontend) == "T"
        wait_until(lambda: state(hook) == "T", "the hook stopped")
        terminal.tell_shell("fg")
        wait_until(lambda: state(hook) != "T" and state(terminal.frontend) != "T", "both going on")
        wait_until(lambda: terminal.foreground == terminal.frontend, "the foreground")
    go.touch()
    assert terminal.event() == "exited 0"


def test_ctrl_z_while_the_hook_has_the_terminal(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook(ASK)
    terminal = start(terminals, witness_tree)
    terminal.wait_for_text(b"name? ")
    hook = int(witness_tree.told("hook"))
    for _ in range(2):
        wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
        terminal.type(CTRL_Z)
        assert terminal.event() == f"stopped {int(signal.SIGTSTP)}"
        assert state(hook) == "T"
        assert state(terminal.frontend) == "T"
        assert terminal.foreground == terminal.shell.pid
        terminal.tell_shell("fg")
    wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(b"Ada\n")
    assert terminal.event() == "exited 0"
    assert witness_tree.told("answer") == "Ada"


def test_a_build_in_the_background_whose_hook_reads_stops_until_it_is_brought_to_the_foreground(
    witness_tree: WitnessTree, terminals: list[Terminal]
) -> None:
    witness_tree.use_hook(f"while not os.path.exists(os.environ['GO']):\n    time.sleep(0.005)\n{ASK}")
    go = witness_tree.control / "go"
    terminal = start(terminals, witness_tree, env={"GO": str(go)})
    hook = int(witness_tree.told("hook"))
    terminal.type(CTRL_Z)
    assert terminal.event() == f"stopped {int(signal.SIGTSTP)}"
    terminal.tell_shell("bg")
    wait_until(lambda: state(hook) != "T", "the hook going on")
    go.touch()
    assert terminal.event() == f"stopped {int(signal.SIGTTIN)}"
    assert terminal.foreground == terminal.shell.pid
    assert state(hook) == "T"
    terminal.tell_shell("fg")
    wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(b"Ada\n")
    assert terminal.event() == "exited 0"
    assert witness_tree.told("answer") == "Ada"


@pytest.mark.parametrize("body", [SLEEP, f"tell('compiler', str(os.getpid()))\n{ASK}"], ids=["sleeps", "reads"])
def test_a_terminal_that_goes_away_takes_the_build_with_it(
    witness_tree: WitnessTree, terminals: list[Terminal], body: str
) -> None:
    witness_tree.use_hook(body)
    terminal = start(terminals, witness_tree)
    hook, compiler = int(witness_tree.told("hook")), int(witness_tree.told("compiler"))
    if body != SLEEP:
        wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.hang_up()
    wait_until_gone(terminal.frontend, hook, compiler)
    assert not witness_tree.out_dir.exists() or not any(witness_tree.out_dir.iterdir())
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", env=PLAIN))


def test_a_stopped_build_whose_terminal_goes_away_ends(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook(SLEEP)
    terminal = start(terminals, witness_tree)
    hook, compiler = int(witness_tree.told("hook")), int(witness_tree.told("compiler"))
    terminal.type(CTRL_Z)
    assert terminal.event() == f"stopped {int(signal.SIGTSTP)}"
    wait_until(lambda: state(hook) == "T", "the hook stopped")
    terminal.hang_up()
    wait_until_gone(terminal.frontend, hook, compiler)


def test_without_a_shell_a_hook_reads_what_a_person_types(witness_tree: WitnessTree, terminals: list[Terminal]) -> None:
    witness_tree.use_hook(ASK)
    terminal = start(terminals, witness_tree, shell=NO_SHELL)
    terminal.wait_for_text(b"name? ")
    # Nobody could let a stopped build go on: Ctrl-Z does nothing.
    terminal.type(CTRL_Z)
    terminal.type(b"Ada\n")
    assert terminal.shell.wait(PATIENCE) == 0
    assert witness_tree.told("answer") == "Ada"


@pytest.mark.parametrize("body", [SLEEP, f"tell('compiler', str(os.getpid()))\n{ASK}"], ids=["sleeps", "reads"])
def test_without_a_shell_ctrl_c_ends_the_build(witness_tree: WitnessTree, terminals: list[Terminal], body: str) -> None:
    witness_tree.use_hook(body)
    terminal = start(terminals, witness_tree, shell=NO_SHELL)
    hook, compiler = int(witness_tree.told("hook")), int(witness_tree.told("compiler"))
    if body != SLEEP:
        wait_until(lambda: terminal.foreground == os.getpgid(hook), "the hook in the foreground")
    terminal.type(CTRL_C)
    assert terminal.shell.wait(PATIENCE) == 130
    wait_until_gone(hook, compiler)
    assert b"Traceback" not in terminal.screen

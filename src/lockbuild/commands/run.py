"""``lockbuild-run``: runs any command under the lock on a source tree, as ``flock DIR COMMAND`` does.

The command is a child in this process's own process group: Ctrl-C and Ctrl-Z at a terminal reach both, as they reach
``flock`` and its command. This process stays until the command has ended, passes on signals that were sent to it alone,
and ends with the command's status.

The command inherits the open files that carry the lock. When this process is killed with SIGKILL, the command runs on,
as under ``flock``, and keeps the tree locked until it ends. Otherwise the lock is free as soon as the command and the
lockbuild builds that it started have ended. Other programs that it leaves running do not keep the lock.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from lockbuild import __version__
from lockbuild.commands.parser import Parser
from lockbuild.commands.program import run_as_process
from lockbuild.console import Console
from lockbuild.errors import Interrupted, LockbuildError, shown
from lockbuild.interruption import interruptible
from lockbuild.locks import SourceTreeLock
from lockbuild.settings import LOCK_TIMEOUT_VARIABLE, from_environment, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The exit statuses of env(1) and shells for a command that cannot be run, and for one that is not found.
_CANNOT_RUN = 126
_NOT_FOUND = 127

# A tree that setuptools builds has at least one of these.
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


def entrypoint() -> NoReturn:
    """Run the console script ``lockbuild-run``."""
    run_as_process(lambda: main(sys.argv[1:]))


def main(arguments: Sequence[str], prog: str = "lockbuild-run") -> int:
    """
    Run a command under the lock on a tree; return the exit status.

    That is the command's, or 128 + N when signal N killed it; 2 for wrong usage; 75 when the lock was not free in time;
    1 when the tree cannot be locked; 126 when the command cannot be run, 127 when it is not found.
    """
    parser = make_parser(prog)
    parsed = parser.parse_args(arguments)
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not command:
        parser.error("a command is required, for example: lockbuild-run -- python setup.py build_ext --inplace")
    console = Console(0)
    try:
        with interruptible():
            return _run(command, parsed, console)
    except Interrupted as interruption:
        console.interrupted()
        return interruption.exit_status
    except LockbuildError as error:
        console.error(str(error))
        return error.exit_status


def make_parser(prog: str = "lockbuild-run") -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        usage="%(prog)s [options] [--] COMMAND [ARGUMENT ...]",
        description="Run a command under the lock on a source tree. Builds with lockbuild or uv wait\n"
        "for it. Builds that the command itself starts with lockbuild do not wait.",
        epilog="The exit status is that of the command; 128 + N when signal N killed it; 75 when\n"
        "the lock was not free in time; 1 when the tree cannot be locked; 126 when the\n"
        "command cannot be run, 127 when it is not found; 2 for wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"lockbuild {__version__}")
    parser.add_argument(
        "-C",
        "--directory",
        metavar="TREE",
        default=os.curdir,
        help="lock this source tree and run the command in it (default: the working directory)",
    )
    parser.add_argument(
        "--tree",
        choices=("shared", "private", "clean"),
        default="shared",
        help="private: run the command in a view of the tree, so that it does not write to the tree; clean: also "
        "without the files that git ignores (default: shared)",
    )
    parser.add_argument(
        "--lock-timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"give up with exit status 75 when the lock is not free after this time (default: "
        f"{LOCK_TIMEOUT_VARIABLE}, else wait forever)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="the cache folder, which has the lock files (default: LOCKBUILD_CACHE_DIR, else the platform's cache "
        "folder)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _run(command: list[str], parsed: argparse.Namespace, console: Console) -> int:
    timeout = parsed.lock_timeout
    if timeout is None:
        timeout = from_environment(LOCK_TIMEOUT_VARIABLE, seconds, "a number of seconds")
    # Before the change of directory: the path is relative to the old one.
    cache_dir = os.path.abspath(parsed.cache_dir) if parsed.cache_dir else None
    try:
        os.chdir(parsed.directory)
        tree = os.getcwd()
    except OSError as error:
        console.error(f"{shown(parsed.directory)} is not a source tree: {error.strerror}; name one with -C")
        return 1
    if not any(os.path.exists(name) for name in _PROJECT_FILES):
        console.warn(
            f"{shown(tree)} has no {', '.join(_PROJECT_FILES[:-1])} or {_PROJECT_FILES[-1]}; builds lock the "
            "folder that has one: name it with -C"
        )
    with ExitStack() as stack:
        is_private = parsed.tree != "shared"
        if is_private:
            command = [*_enter_view(tree, cache_dir, stack, clean=parsed.tree == "clean"), *command]
        lock = stack.enter_context(
            SourceTreeLock(tree, cache_dir=cache_dir, timeout=timeout, reporter=console, shared=is_private)
        )
        environ = os.environ | stack.enter_context(lock.lent())
        try:
            if os.name == "posix":
                status = _run_child(command, environ, lock.descriptors)
            else:
                status = subprocess.run(command, env=environ, check=False).returncode
            lock.confirm()
            return status
        except FileNotFoundError:
            console.error(f"{shown(command[0])}: command not found")
            return _NOT_FOUND
        except OSError as error:
            console.error(f"{shown(command[0])} cannot be run: {error.strerror}")
            return _CANNOT_RUN


def _enter_view(tree: str, cache_dir: str | None, stack: ExitStack, *, clean: bool) -> list[str]:
    """Return the words that enter a private view of the tree before a command. Raises `TreeViewError`."""
    from lockbuild.staging import Staging
    from lockbuild.views import Folders, check, view_of

    staging = stack.enter_context(Staging(cache_dir)).path
    scratch, probe = os.path.join(staging, "view"), os.path.join(staging, "probe")
    os.mkdir(scratch)
    os.mkdir(probe)
    view = view_of(tree, scratch, Folders(cache_dir, None, (staging,)), clean=clean)
    check(view._replace(scratch=probe))
    return view.command()


def _run_child(command: list[str], environ: Mapping[str, str], descriptors: Sequence[int]) -> int:
    """Run a command that inherits these descriptors; return its exit status as a shell reports it."""
    passed_on = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    # The command inherits signals that are ignored; they are not passed on. SIGCHLD needs a handler, because some
    # systems discard it without one.
    ignored = {number for number in passed_on if signal.getsignal(number) == signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # From here on signals are blocked, and waited for below. None is lost between the start of the command and the
    # moment when its process ID is known.
    waited_for = (passed_on - ignored) | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    # Python ignores these two signals in its own process.
    child = os.posix_spawnp(command[0], command, environ, setsigmask=before, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        number, came_to_the_group = _wait_for_signal(waited_for)
        if number != signal.SIGCHLD and not came_to_the_group:
            os.kill(child, number)


def _wait_for_signal(numbers: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a signal; return it, and whether a terminal sent it, and so sent it to the command as well."""
    if sys.platform == "darwin":
        # macOS does not say where a signal comes from. These two mostly come from the terminal.
        number = signal.sigwait(numbers)
        return number, number in (signal.SIGINT, signal.SIGQUIT)
    information = signal.sigwaitinfo(numbers)
    # A positive code: sent by the kernel. Zero or less: sent by a process (SI_USER in sigaction(2)).
    return information.si_signo, information.si_code > 0


if __name__ == "__main__":
    run_as_process(lambda: main(sys.argv[1:], prog="python -m lockbuild.commands.run"))

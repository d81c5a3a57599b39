"""A frontend that is killed or interrupted: its hook ends with it, and the lock is held until that has happened.

Each build here has a hook that starts a "compiler" (a shell and a ``sleep`` below it) and then does nothing until it
is ended. The signals are sent while the build is known to be where the test wants it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import children, is_free, is_running, start_adopted, state
from witness import LOCKBUILD, PLAIN, WitnessTree, wait_until

# Each of them takes a second or two, and there are many.
pytestmark = pytest.mark.slow


# The limits, for a quiet machine: 0.3 s for an interrupted frontend, 2 s for an orphaned hook.
INTERRUPTION_SECONDS = 3.0
ORPHAN_SECONDS = 10.0

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# A hook that never ends by itself. A shell makes its background processes ignore SIGINT, as a compiler driver may.
ENDLESS = """
compiler = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $! > {control}/sleep.new; "
                             "mv {control}/sleep.new {control}/sleep; wait"])
while not os.path.exists("{control}/sleep"):
    time.sleep(0.005)
tell("pids", f"{{os.getpid()}} {{os.getppid()}} {{compiler.pid}}")
time.sleep(1000)
"""
DEAF = "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"


@pytest.fixture
def installed(witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the backend where Python looks for modules, and not in the tree: the host starts before the lock is had."""
    monkeypatch.setenv("PYTHONPATH", str(witness_tree.install_backend()))


@pytest.fixture(params=["in-tree", "installed"])
def each_place(request: pytest.FixtureRequest) -> None:
    """Run a test with an in-tree backend and with one that is installed."""
    if request.param == "installed":
        request.getfixturevalue("installed")


def endless(tree: WitnessTree, before: str = "") -> str:
    return before + ENDLESS.format(control=tree.control)


def kill_and_wait(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), f"the end of {pids}")


class Family:
    """The processes of a build that is inside `ENDLESS`: hook, host, and what the hook has started."""

    def __init__(self, tree: WitnessTree) -> None:
        self.hook, self.host, compiler = map(int, tree.told("pids").split())
        self.all = (self.hook, self.host, compiler, int(tree.told("sleep")))

    def wait_until_gone(self) -> float:
        """Return after how many seconds none of them ran any more."""
        start = time.monotonic()
        wait_until(lambda: not any(map(is_running, self.all)), f"the end of {self.all}")
        return time.monotonic() - start


def orphan_a_hook(tree: WitnessTree, before: str = DEAF) -> Family:
    """Kill the frontend of a build that is inside `ENDLESS`. As long as its host is stopped, the orphan lives."""
    tree.use_hook(endless(tree, before))
    frontend = start_adopted(tree)
    family = Family(tree)
    os.kill(family.host, signal.SIGSTOP)
    kill_and_wait(frontend)
    return family


def lock_files(tree: WitnessTree) -> list[Path]:
    """Return everything that a build of the tree holds a lock on: the tree, our lock file, uv's."""
    found = [tree.path]
    found += Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.lock")
    found += Path(os.environ["TMPDIR"]).glob("uv-setuptools-*.lock")
    assert len(found) == 3
    return found


def artifacts(tree: WitnessTree) -> list[str]:
    return (
        sorted(name for name in os.listdir(tree.out_dir) if not name.startswith(".")) if tree.out_dir.exists() else []
    )


def assert_next_build_succeeds(tree: WitnessTree, *options: str) -> None:
    tree.assert_all_succeed(tree.start(*options, env=PLAIN))
    assert "witness-1.0-py3-none-any.whl" in artifacts(tree)


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("before", ["", DEAF], ids=["", "deaf"])
def test_a_frontend_killed_in_mid_hook_takes_the_hook_and_its_compiler_with_it(
    witness_tree: WitnessTree, before: str
) -> None:
    witness_tree.use_hook(endless(witness_tree, before))
    first = witness_tree.start()
    family = Family(witness_tree)
    assert all(map(is_running, family.all))
    first.kill()
    second = witness_tree.start(env=PLAIN)
    assert family.wait_until_gone() < ORPHAN_SECONDS
    witness_tree.assert_all_succeed(second)
    assert first.wait() == -signal.SIGKILL


@pytest.mark.usefixtures("each_place")
def test_every_lock_is_held_until_the_orphaned_hook_has_gone(witness_tree: WitnessTree) -> None:
    family = orphan_a_hook(witness_tree)
    assert is_running(family.hook)
    assert [path for path in lock_files(witness_tree) if is_free(path)] == []
    # Not even the host's death frees them.
    kill_and_wait(family.host)
    assert is_running(family.hook)
    assert [path for path in lock_files(witness_tree) if is_free(path)] == []
    late = witness_tree.start("--wheel", "--lock-timeout", "0.2", env=PLAIN)
    assert witness_tree.finish(late)[0][0] == 75
    waiting = witness_tree.start(env=PLAIN)
    os.killpg(os.getpgid(family.hook), signal.SIGKILL)
    witness_tree.assert_all_succeed(waiting)
    assert all(map(is_free, lock_files(witness_tree)))


@pytest.mark.usefixtures("each_place")
def test_the_host_holds_the_locks_until_it_has_killed_what_the_hook_started(witness_tree: WitnessTree) -> None:
    # The hook itself has closed its copies of the locks, as a program does that makes itself a daemon.
    family = orphan_a_hook(witness_tree, DEAF + "os.closerange(3, 256)\n")
    assert [path for path in lock_files(witness_tree) if is_free(path)] == []
    os.kill(family.host, signal.SIGCONT)
    wait_until(lambda: all(map(is_free, lock_files(witness_tree))), "the release")
    assert [pid for pid in family.all if pid != family.host and is_running(pid)] == []
    assert_next_build_succeeds(witness_tree)


def test_a_stopped_orphan_goes_too(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(endless(witness_tree, DEAF))
    first = witness_tree.start()
    family = Family(witness_tree)
    for pid in family.all:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state(pid) == "T" for pid in family.all), "all of them stopped")
    first.kill()
    family.wait_until_gone()
    assert_next_build_succeeds(witness_tree)


def test_who_waits_for_an_orphaned_hook_is_never_told_of_a_process_that_is_gone(witness_tree: WitnessTree) -> None:
    family = orphan_a_hook(witness_tree)
    waiter = witness_tree.start(env=PLAIN)
    assert waiter.stderr is not None
    line = waiter.stderr.readline()
    assert any(f"held by {pid} (" in line for pid in (family.hook, family.host)), line
    os.kill(family.host, signal.SIGCONT)
    witness_tree.assert_all_succeed(waiter)


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_every_process_of_a_build_ends_a_hook_that_resists(
    witness_tree: WitnessTree, number: signal.Signals
) -> None:
    # systemd, Slurm and Jenkins end a job so.
    witness_tree.use_hook(endless(witness_tree, DEAF))
    first = witness_tree.start()
    family = Family(witness_tree)
    for pid in (*family.all, first.pid):
        os.kill(pid, number)
    assert first.wait() == 128 + number
    assert [pid for pid in family.all if is_running(pid)] == []
    assert_ended_quietly(witness_tree, first)
    assert_next_build_succeeds(witness_tree)


@pytest.mark.usefixtures("each_place")
@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "success"])
def test_a_daemon_that_a_hook_leaves_behind_keeps_no_lock(
    witness_tree: WitnessTree, ending: str, processes_to_kill: list[int]
) -> None:
    daemonize = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        tell("daemon", str(os.getpid()))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.execvp("sleep", ["sleep", "1000"])
    os._exit(0)
os.wait()
"""
    witness_tree.use_hook(daemonize if ending == "success" else endless(witness_tree, daemonize))
    first = witness_tree.start()
    daemon = int(witness_tree.told("daemon"))
    processes_to_kill.append(daemon)
    if ending == "success":
        witness_tree.assert_all_succeed(first)
    else:
        family = Family(witness_tree)
        first.send_signal(signal.Signals[ending])
        family.wait_until_gone()
        first.wait()
    assert is_running(daemon)
    assert Path(f"/proc/{daemon}/cmdline").read_bytes() == b"sleep\x001000\x00"
    wait_until(lambda: all(map(is_free, lock_files(witness_tree))), "the release")
    assert_next_build_succeeds(witness_tree)


@pytest.mark.parametrize("before", ["", DEAF], ids=["", "deaf"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_mid_hook_ends_everything_at_once(
    witness_tree: WitnessTree, number: signal.Signals, before: str
) -> None:
    witness_tree.use_hook(endless(witness_tree, before))
    first = witness_tree.start()
    family = Family(witness_tree)
    start = time.monotonic()
    first.send_signal(number)
    assert first.wait() == 128 + number
    seconds = time.monotonic() - start
    print(f"ended after {seconds:.3f} s")
    assert seconds < INTERRUPTION_SECONDS
    assert [pid for pid in family.all if is_running(pid)] == []
    assert_ended_quietly(witness_tree, first)
    assert_next_build_succeeds(witness_tree)


def assert_ended_quietly(
    tree: WitnessTree, process: subprocess.Popen[str], may_leave: tuple[str, ...] = ("uv-setuptools-",)
) -> None:
    """Assert that it left no artifact and no temporary file and printed no traceback."""
    [(_, out, err)] = tree.finish(process)
    assert "Traceback" not in err
    assert "Successfully" not in out
    assert artifacts(tree) == []
    assert [name for name in os.listdir(os.environ["TMPDIR"]) if not name.startswith(may_leave)] == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_waiting_for_the_lock(witness_tree: WitnessTree, number: signal.Signals) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(out_dir=witness_tree.control / "second")
    assert waiter.stderr is not None
    assert waiter.stderr.readline().startswith("* Waiting for the lock")
    start = time.monotonic()
    waiter.send_signal(number)
    assert waiter.wait() == 128 + number
    assert time.monotonic() - start < INTERRUPTION_SECONDS
    assert "Traceback" not in waiter.stderr.read()
    gate.open()
    witness_tree.assert_all_succeed(holder)
    assert len(witness_tree.entered("build_wheel")) == 1
    assert not (witness_tree.control / "second").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_the_host_of_a_build_that_waits_ends_with_it(
    witness_tree: WitnessTree, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it there is no host before the lock is taken.
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    witness_tree.use_hook("pass")
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(out_dir=witness_tree.control / "second")
    assert waiter.stderr is not None
    assert waiter.stderr.readline().startswith("* Waiting for the lock")
    [host] = children(waiter.pid)
    waiter.send_signal(number)
    waiter.wait()
    wait_until(lambda: not is_running(host), "the end of the host")
    gate.open()
    witness_tree.assert_all_succeed(holder)
    assert_next_build_succeeds(witness_tree)
    assert len(witness_tree.entered("build_wheel")) == 2


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", ["time.sleep(1000)", "sum(range(1 << 60))"], ids=["asleep", "in C code"])
def test_a_host_that_still_imports_the_backend_ends_with_its_build(
    witness_tree: WitnessTree, number: signal.Signals, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    # The import comes to no end, while the frontend has the lock and has sent its first request.
    endless = f"if 'WITNESS_PLAIN' not in os.environ:\n    tell('pid', str(os.getpid()))\n    {step}\n"
    # A name that is on the list of those that the host imports.
    witness_tree.use_backend("maturin", f"import os, time\nfrom witness_backend import *\n{endless}")
    first = witness_tree.start()
    host = int(witness_tree.told("pid"))
    wait_until(lambda: not is_free(witness_tree.path), "the lock")
    assert first.stderr is not None
    assert first.stderr.readline().startswith("* Getting build dependencies")
    start = time.monotonic()
    first.send_signal(number)
    assert first.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert time.monotonic() - start < INTERRUPTION_SECONDS
    wait_until(lambda: is_free(witness_tree.path), "the release")
    seconds = time.monotonic() - start
    print(f"the lock was free after {seconds:.3f} s")
    assert seconds < ORPHAN_SECONDS
    wait_until(lambda: not is_running(host), "the end of the host")
    assert_next_build_succeeds(witness_tree)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_backend_is_asked_for_its_requirements(
    witness_tree: WitnessTree, number: signal.Signals
) -> None:
    witness_tree.use_hook(endless(witness_tree), "get_requires_for_build_wheel")
    first = witness_tree.start()
    family = Family(witness_tree)
    first.send_signal(number)
    assert first.wait() == 128 + number
    assert [pid for pid in family.all if is_running(pid)] == []
    assert_ended_quietly(witness_tree, first)
    assert_next_build_succeeds(witness_tree)


LARGE_WHEEL = """
class BuildFirst:
    def __init__(self, build): self.build = build
    def __call__(self, directory, *arguments):
        name = self.build(directory)
        # The rest of a large wheel, ahead of what a ZIP file is read by.
        with open(os.path.join(directory, name), "rb") as file:
            content = file.read()
        with open(os.path.join(directory, name), "wb") as file:
            for _ in range(400):
                file.write(bytes(1 << 20))
            file.write(content)
        return name
witness_backend.build_wheel = BuildFirst(witness_backend.build_wheel)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_a_signal_while_the_artifact_is_published(witness_tree: WitnessTree, number: signal.Signals) -> None:
    witness_tree.use_hook(LARGE_WHEEL)
    witness_tree.out_dir.mkdir()
    # Staged in memory and published on a disk, the wheel has to be copied, which takes some time.
    with memory_folder() as memory:
        assert memory.stat().st_dev != witness_tree.out_dir.stat().st_dev
        for _ in range(20):
            first = witness_tree.start(env={"TMPDIR": str(memory)})
            wait_until(lambda p=first: any(witness_tree.out_dir.iterdir()) or p.poll() is not None, "publishing")  # type: ignore[misc]
            first.send_signal(signal.SIGSTOP)
            if first.poll() is None and not artifacts(witness_tree):
                break
            # We came too late. The next round may be luckier.
            first.send_signal(signal.SIGCONT)
            first.wait()
            (witness_tree.out_dir / "witness-1.0-py3-none-any.whl").unlink()
        first.send_signal(number)
        first.send_signal(signal.SIGCONT)
        assert first.wait() == (-number if number == signal.SIGKILL else 128 + number)
        assert artifacts(witness_tree) == []
        if number != signal.SIGKILL:
            assert list(witness_tree.out_dir.iterdir()) == []
        assert_next_build_succeeds(witness_tree)
        with zipfile.ZipFile(witness_tree.out_dir / "witness-1.0-py3-none-any.whl") as wheel:
            assert wheel.testzip() is None


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_the_three_signals_of_tox_leave_nothing_behind(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(endless(witness_tree, DEAF))
    first = witness_tree.start()
    family = Family(witness_tree)
    # tox gives a frontend 0.3 s after SIGINT and 0.2 s after SIGTERM.
    for number, patience in ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.2), (signal.SIGKILL, 60)):
        first.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            first.wait(patience)
    # A busy machine may need longer than tox has patience.
    assert first.returncode in (128 + signal.SIGINT, -signal.SIGKILL)
    family.wait_until_gone()
    assert "Traceback" not in witness_tree.finish(first)[0][2]
    assert artifacts(witness_tree) == []
    assert_next_build_succeeds(witness_tree)


def test_signals_that_were_ignored_at_the_start_stay_ignored(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    # nohup ignores SIGHUP; a shell without job control has its background jobs ignore SIGINT.
    start = ["sh", "-c", 'trap "" INT; exec nohup "$@"', "sh"]
    build = witness_tree.start(command=(*start, *LOCKBUILD), gate=gate.path)
    hook = witness_tree.wait_for_entry()
    for pid in (build.pid, hook):
        assert {signal.SIGHUP, signal.SIGINT} <= ignored_signals(pid)
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)
    gate.open()
    witness_tree.assert_all_succeed(build)


def ignored_signals(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


SLOW_DEPENDENCY = """
import os, subprocess, time

def get_requires_for_build_wheel(config_settings=None):
    compiler = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $! > {control}/sleep.new; "
                                 "mv {control}/sleep.new {control}/sleep; wait"])
    while not os.path.exists("{control}/sleep"):
        time.sleep(0.005)
    with open("{control}/pids.new", "w") as file:
        file.write(f"{{os.getpid()}} {{os.getppid()}} {{compiler.pid}}")
    os.rename("{control}/pids.new", "{control}/pids")
    time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_a_signal_while_requirements_are_installed(
    witness_tree: WitnessTree, number: signal.Signals, kept: bool
) -> None:
    dependency = witness_tree.control / "dependency"
    dependency.mkdir()
    (dependency / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
    )
    (dependency / "slow.py").write_text(SLOW_DEPENDENCY.format(control=witness_tree.control))
    (dependency / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: dependency\nVersion: 1.0\n")
    archive = witness_tree.control / "dependency-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(dependency, "dependency-1.0")
    # What an environment is made of is no secret to its key, except for what stands behind a URL.
    requirement = "dependency" if kept else f"dependency @ {archive.as_uri()}"
    (witness_tree.path / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["{requirement}"]\nbuild-backend = "witness_backend"\nbackend-path = ["."]\n'
    )
    words = ("--wheel", "--lock", "always", "--outdir", str(witness_tree.out_dir), str(witness_tree.path))
    process = witness_tree.start_process(
        *LOCKBUILD, *words, env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(witness_tree.control)}
    )
    # The hook of a requirement, run by pip, which is run by lockbuild.
    family = Family(witness_tree)
    start = time.monotonic()
    process.send_signal(number)
    assert process.wait() == 128 + number
    seconds = time.monotonic() - start
    print(f"ended after {seconds:.3f} s")
    assert seconds < INTERRUPTION_SECONDS
    family.wait_until_gone()
    # pip is killed, and leaves what it has in the folder for temporary files.
    assert_ended_quietly(witness_tree, process, may_leave=("uv-setuptools-", "pip-", "tmp"))
    assert witness_tree.log() == []

"""The hook host: each hook is a process of its own, whatever it does to itself, and a failure is one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lockbuild.hooks import client
from machine import is_running, parent
from witness import LOCKBUILD, PATIENCE, PLAIN, PYTHON_BUILD, WitnessTree, wait_until

WHEEL = "witness-1.0-py3-none-any.whl"


def assert_lock_is_free(tree: WitnessTree) -> None:
    tree.assert_all_succeed(tree.start("--wheel", "--lock-timeout", "0", env=PLAIN, out_dir=tree.control / "next"))


def assert_fails(tree: WitnessTree, build: subprocess.Popen[str]) -> str:
    """Assert that a build fails with one line and leaves nothing; return all that it has printed as errors."""
    [(status, out, error)] = tree.finish(build)
    assert status == 1
    assert "Successfully" not in out
    assert error.splitlines()[-1].startswith("ERROR ")
    assert not (tree.out_dir / WHEEL).exists()
    return error


def test_each_hook_is_a_fresh_process(witness_tree: WitnessTree) -> None:
    text = """
import os, sys
from witness_backend import *
import witness_backend

# Whether an earlier hook has been in this process, or has left anything in the memory that this one was forked from.
assert "been here" not in sys.argv
sys.argv.append("been here")

def note(hook):
    with open(os.environ["WITNESS_LOG"] + ".pids", "a") as file:
        file.write(f"{os.getpid()} {os.getppid()} {hook}\\n")

def get_requires_for_build_sdist(config_settings=None):
    note("get_requires_for_build_sdist")
    return []

def get_requires_for_build_wheel(config_settings=None):
    note("get_requires_for_build_wheel")
    return []

def build_sdist(*arguments):
    note("build_sdist")
    return witness_backend.build_sdist(*arguments)

def build_wheel(*arguments):
    note("build_wheel")
    return witness_backend.build_wheel(*arguments)
"""
    witness_tree.use_backend("variant", text)
    build = witness_tree.start("--sdist", "--wheel")
    witness_tree.assert_all_succeed(build)
    lines = [line.split() for line in Path(f"{witness_tree.log_file}.pids").read_text().splitlines()]
    assert [hook for _, _, hook in lines] == [
        "get_requires_for_build_sdist",
        "build_sdist",
        "get_requires_for_build_wheel",
        "build_wheel",
    ]
    assert len({pid for pid, _, _ in lines}) == 4
    assert len({host for _, host, _ in lines}) == 1


def test_a_hook_finds_the_process_that_python_m_build_gives_it(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(
        """
tell(os.environ["TELL"], json.dumps({
    "modules of ours": [name for name in sys.modules if name.partition(".")[0] in ("lockbuild", "host")],
    "path": [entry for entry in sys.path if not entry.endswith("_in_process")],
    "main": os.path.basename(sys.modules["__main__"].__file__),
    "name": sys.modules["__main__"].__name__,
    "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:2]],
    "flags": str(sys.flags),
    "cwd": os.getcwd(),
    "handlers": {number: str(signal.getsignal(number)) for number in sorted(signal.valid_signals())},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "wakeup": signal.set_wakeup_fd(-1),
    "stdin": os.readlink("/proc/self/fd/0"),
    "threads": threading.active_count(),
    "environment": sorted(name for name in os.environ if name not in ("TELL", "LOCKBUILD_HELD_LOCKS")),
    "umask": os.umask(0o22),
}))
""",
    )
    for name, command in (("ours", LOCKBUILD), ("theirs", PYTHON_BUILD)):
        build = witness_tree.start(command=command, stdin=subprocess.DEVNULL, env={"TELL": name})
        witness_tree.assert_all_succeed(build)
    assert json.loads(witness_tree.told("ours")) == json.loads(witness_tree.told("theirs"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by SIGSEGV"),
        ("os.abort()", "it was killed by SIGABRT"),
        ("os._exit(3)", "its exit status is 3"),
        ("sys.exit(4)", "its exit status is 4"),
        ("raise SystemExit('error: no')", "error: no"),
        ("raise ValueError('no\\nmore')", "ValueError: no"),
        ("raise ValueError", "ValueError"),
        ("exec('a b')", "SyntaxError: invalid syntax"),
        ("import nowhere.at_all", "ModuleNotFoundError: No module named 'nowhere'"),
        ("threading.Thread(target=os._exit, args=[5]).start()\ntime.sleep(1000)", "its exit status is 5"),
        ("os.execv('/bin/sh', ['sh', '-c', 'exit 6'])", "its exit status is 6"),
    ],
    ids=lambda text: text[:30],
)
def test_a_hook_that_ends_badly_fails_the_build_and_its_reason_is_the_last_line(
    witness_tree: WitnessTree, body: str, reason: str
) -> None:
    witness_tree.use_hook(body)
    error = assert_fails(witness_tree, witness_tree.start())
    assert error.splitlines()[-1] == f"ERROR Backend subprocess exited when trying to invoke build_wheel: {reason}"
    assert_lock_is_free(witness_tree)


def test_a_hook_that_ends_well_before_its_work_is_done_fails_the_build(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("os._exit(0)")
    assert_fails(witness_tree, witness_tree.start())
    assert_lock_is_free(witness_tree)


def test_a_thread_that_exits_ends_no_hook(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("thread = threading.Thread(target=sys.exit, args=[3])\nthread.start()\nthread.join()")
    witness_tree.assert_all_succeed(witness_tree.start())


def test_threads_and_exit_functions_of_a_hook_come_to_their_end(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(
        """
import atexit
atexit.register(tell, "exit", "")
threading.Thread(target=lambda: (time.sleep(0.2), tell("thread", ""))).start()
""",
    )
    witness_tree.assert_all_succeed(witness_tree.start())
    assert (witness_tree.control / "exit").exists()
    assert (witness_tree.control / "thread").exists()


def test_a_file_that_a_hook_has_left_open_is_written_out(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(
        f"""
global text, binary
text = open("{witness_tree.control}/text", "w")
text.write("text")
binary = open("{witness_tree.control}/binary", "wb")
binary.write(b"binary")
print("last words", end="")
""",
    )
    [(status, out, _)] = witness_tree.finish(witness_tree.start())
    assert status == 0
    assert (witness_tree.control / "text").read_text() == "text"
    assert (witness_tree.control / "binary").read_bytes() == b"binary"
    assert "last words" in out


@pytest.mark.parametrize(
    "body",
    [
        "os.chdir('/')",
        "os.environ.clear()",
        "os.umask(0o77)",
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
        "os.closerange(0, 256)",
        "os.setpgid(0, os.getpgid(os.getppid()))",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
        "del sys.modules['json'], sys.path[:]",
        "sys.stdout.close(); sys.stderr.close()",
    ],
    ids=lambda body: body[:24],
)
def test_what_a_hook_does_to_its_process_stays_in_there(witness_tree: WitnessTree, body: str) -> None:
    # The first hook does it; the second one, the host and the frontend go on.
    witness_tree.use_hook(body, "get_requires_for_build_wheel")
    text = (witness_tree.path / "variant.py").read_text()
    # What the witness needs for its own last words is what such a hook may have thrown away.
    text = text.replace('with witness_backend._witness("act"):', "if True:").replace(
        "return witness_backend.get_requires_for_build_wheel(*arguments, **options)", "return []"
    )
    (witness_tree.path / "variant.py").write_text(text)
    build = witness_tree.start()
    witness_tree.assert_all_succeed(build)
    assert_lock_is_free(witness_tree)


def test_a_hook_that_has_joined_another_process_group_ends_with_its_frontend(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("os.setpgid(0, os.getpgid(os.getppid()))\ntell('pid', str(os.getpid()))\ntime.sleep(1000)")
    build = witness_tree.start()
    hook = int(witness_tree.told("pid"))
    build.kill()
    wait_until(lambda: not is_running(hook), "the end of the hook")
    assert_lock_is_free(witness_tree)


def test_a_child_of_a_hook_may_start_a_session(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("subprocess.run(['true'], check=True, start_new_session=True)")
    witness_tree.assert_all_succeed(witness_tree.start())


@pytest.mark.parametrize("how", ["a program", "a fork"])
def test_what_a_hook_leaves_running_lives_on_and_holds_up_nothing(
    witness_tree: WitnessTree, how: str, processes_to_kill: list[int]
) -> None:
    start = {
        "a program": "pid = subprocess.Popen(['sleep', '1000'], stdout=null, stderr=null).pid",
        "a fork": "pid = os.fork()\nif not pid:\n    os.dup2(null, 1); os.dup2(null, 2); time.sleep(1000)",
    }[how]
    witness_tree.use_hook(f"null = os.open(os.devnull, os.O_RDWR)\n{start}\ntell('pid', str(pid))")
    build = witness_tree.start()
    left = int(witness_tree.told("pid"))
    processes_to_kill.append(left)
    witness_tree.assert_all_succeed(build)
    assert_lock_is_free(witness_tree)
    assert is_running(left)


def test_what_a_failed_hook_leaves_running_ends_before_the_lock_is_free(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(
        "compiler = subprocess.Popen(['sh', '-c', 'trap \"\" INT TERM; sleep 1000'])\n"
        "tell('pid', str(compiler.pid))\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    build = witness_tree.start()
    compiler = int(witness_tree.told("pid"))
    build.wait()
    assert not is_running(compiler)
    assert_fails(witness_tree, build)
    assert_lock_is_free(witness_tree)


LARGE = "for number in range(20000):\n    print('x' * 100, number)\n    print('y' * 100, number, file=sys.stderr)\n"


def test_large_output_passes_through(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(LARGE)
    [(status, out, err)] = witness_tree.finish(witness_tree.start())
    assert status == 0
    assert out.count("x" * 100) == 20000
    assert err.count("y" * 100) == 20000
    assert out.splitlines()[-1] == f"Successfully built {WHEEL}"


def test_with_q_large_output_is_taken_in_and_not_shown(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook(LARGE)
    [(status, out, err)] = witness_tree.finish(witness_tree.start("--wheel", "-q"))
    assert status == 0
    assert "xxx" not in out + err
    assert "yyy" not in out + err


def test_metadata_shows_the_output_of_a_hook_only_when_it_fails(witness_tree: WitnessTree) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*LOCKBUILD, "-n", "--metadata", *options, str(witness_tree.path)]
        return subprocess.run(command, env=witness_tree.environ(), capture_output=True, text=True, check=False)

    witness_tree.use_hook(LARGE, "prepare_metadata_for_build_wheel")
    done = run()
    assert done.returncode == 0
    assert json.loads(done.stdout)["name"] == "witness"
    assert "xxx" not in done.stderr
    witness_tree.use_hook(
        "os.write(1, b'one\\n'); os.write(2, b'two\\n'); os._exit(3)", "prepare_metadata_for_build_wheel"
    )
    done = run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "< one\n< two\n" in done.stderr


def test_standard_input_reaches_the_hook(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("tell('read', sys.stdin.read())")
    build = witness_tree.start(stdin=subprocess.PIPE)
    out, err = build.communicate("a line\nand another\n", timeout=60)
    assert build.returncode == 0, err
    assert out.splitlines()[-1] == f"Successfully built {WHEEL}"
    assert witness_tree.told("read") == "a line\nand another\n"


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_a_host_that_is_killed_takes_its_hook_along_and_fails_the_build(
    witness_tree: WitnessTree, options: tuple[str, ...]
) -> None:
    witness_tree.use_hook(
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
        "compiler = subprocess.Popen(['sleep', '1000'])\n"
        "tell('pids', f'{os.getpid()} {compiler.pid}')\ntime.sleep(1000)",
    )
    build = witness_tree.start("--wheel", *options)
    hook, compiler = map(int, witness_tree.told("pids").split())
    os.kill(parent(hook), signal.SIGKILL)
    error = assert_fails(witness_tree, build)
    assert "Traceback" not in error
    wait_until(lambda: not is_running(hook) and not is_running(compiler), "the end of the hook")
    witness_tree.assert_all_succeed(witness_tree.start(env=PLAIN, out_dir=witness_tree.control / "next"))


def test_the_lock_is_not_free_before_the_hook_of_a_killed_host_has_gone(witness_tree: WitnessTree) -> None:
    """The host dies while a stopped frontend cannot notice; the frontend then may not free what the hook still uses."""
    # A child of the hook that was forked and moved to a group of its own survives the end of the hook's group.
    witness_tree.use_hook(
        """
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1); os.dup2(null, 2)
    tell("pids", f"{os.getppid()} {os.getpid()}")
    time.sleep(1000)
time.sleep(1000)
""",
    )
    build = witness_tree.start()
    hook, worker = map(int, witness_tree.told("pids").split())
    try:
        os.kill(parent(hook), signal.SIGKILL)
        assert_fails(witness_tree, build)
        late = witness_tree.start("--wheel", "--lock-timeout", "0.2", out_dir=witness_tree.control / "late")
        assert witness_tree.finish(late)[0][0] == 75
    finally:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_running(worker), "the end of the worker")
    assert_lock_is_free(witness_tree)


def test_a_build_that_was_started_with_signals_blocked_ends(witness_tree: WitnessTree) -> None:
    # Whoever starts us may block any signal, SIGCHLD as well, and that is inherited.
    blocking = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGUSR1}); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    witness_tree.use_hook("tell('blocked', json.dumps(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))")
    build = witness_tree.start(command=(sys.executable, "-c", blocking, *LOCKBUILD))
    witness_tree.assert_all_succeed(build)
    assert json.loads(witness_tree.told("blocked")) == sorted([signal.SIGCHLD, signal.SIGUSR1])


def test_a_hook_that_kills_its_host_fails_the_build(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1000)", "get_requires_for_build_wheel")
    build = witness_tree.start()
    hook = witness_tree.wait_for_entry("act")
    assert_fails(witness_tree, build)
    wait_until(lambda: not is_running(hook), "the end of the hook")
    assert_lock_is_free(witness_tree)


def test_no_hook_runs_in_a_folder_that_has_replaced_the_locked_tree(witness_tree: WitnessTree) -> None:
    # A build that comes later would lock that folder.
    witness_tree.use_hook(
        """
        import shutil
        os.rename(os.getcwd(), os.getcwd() + ".old")
        shutil.copytree(os.getcwd(), os.getcwd().removesuffix(".old"))
        """,
        "get_requires_for_build_wheel",
    )
    [(status, _, error)] = witness_tree.finish(witness_tree.start())
    assert status == 1
    assert "was moved or replaced while it was built" in error.splitlines()[-1]
    assert not witness_tree.entered("build_wheel")


def test_a_host_whose_environment_is_being_removed_says_nothing(environment: Path) -> None:
    # It imports a backend that leaves a thread, and so has to start itself anew. By then its interpreter is gone.
    [packages] = environment.glob("lib/*/site-packages")
    removing = "import os, sys, threading\nos.unlink(sys.executable)\n"
    removing += "threading.Thread(target=threading.Event().wait).start()\n"
    (packages / "removing.py").write_text(removing)
    lifeline, (ours, theirs) = os.pipe(), socket.socketpair()
    inherited = (lifeline[0], theirs.fileno())
    words = [
        str(environment / "bin" / "python"),
        "-c",
        client._EXECUTE,
        client._HOST,
        "-",
        "removing",
        "-",
        *map(str, inherited),
    ]
    ended = subprocess.run(words, pass_fds=inherited, capture_output=True, text=True, timeout=PATIENCE, check=False)
    for descriptor in (*lifeline, ours.detach(), theirs.detach()):
        os.close(descriptor)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


# Python imports it at its start. A host then waits, after its second fork, until the hook runs, and kills itself.
DYING_HOST = """
import os, signal, sys, time
forks = []

def die():
    forks.append(None)
    # The first is the leader of the hook's group.
    if len(forks) == 2:
        while not os.path.exists({hook!r}):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)

if any("hook host" in word for word in sys.orig_argv):
    os.register_at_fork(after_in_parent=die)
"""


def test_a_hook_ends_with_its_host_that_is_killed_as_soon_as_the_hook_runs(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("time.sleep(1000)", "get_requires_for_build_wheel")
    site = witness_tree.control / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DYING_HOST.format(hook=str(witness_tree.control / "hook")))
    build = witness_tree.start(env={"PYTHONPATH": str(site)})
    hook = int(witness_tree.told("hook"))
    assert "killed by SIGKILL" in assert_fails(witness_tree, build)
    wait_until(lambda: not is_running(hook), "the end of the hook")
    assert_lock_is_free(witness_tree)


# Python imports it at its start. A host then waits, before its first fork, for a request and for the test.
LATE_HOST = """
import os, select, sys, time

def wait():
    if not os.path.exists({sent!r}):
        select.select([int(sys.orig_argv[-1])], [], [])
        open({sent!r}, "w").close()
        while not os.path.exists({receive!r}):
            time.sleep(0.005)

if any("hook host" in word for word in sys.orig_argv):
    os.register_at_fork(before=wait)
"""


def test_the_lock_outlives_a_frontend_that_is_killed_before_its_host_has_received_the_request(
    witness_tree: WitnessTree,
) -> None:
    sent, receive = witness_tree.control / "sent", witness_tree.control / "receive"
    site = witness_tree.control / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LATE_HOST.format(sent=str(sent), receive=str(receive)))
    build = witness_tree.start(env={"PYTHONPATH": str(site)})
    wait_until(sent.exists, "a request that the host has not received")
    build.kill()
    build.wait()
    [(status, _, _)] = witness_tree.finish(witness_tree.start("--wheel", "--lock-timeout", "0", env=PLAIN))
    assert status == 75
    receive.touch()
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", env=PLAIN, out_dir=witness_tree.control / "next"))

"""A backend that changes its process when it is imported finds in each hook what `python -m build` gives it."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

import pytest

from machine import linux_only
from witness import LOCKBUILD, PYTHON_BUILD, WitnessTree

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no hook host"), pytest.mark.slow]

# What is done at import, and what a hook then looks at.
_STATES = {
    "a temporary folder": ("folder = tempfile.TemporaryDirectory()", "os.path.isdir(folder.name)"),
    "a lock": (
        "file = open(os.environ['NOTES'] + '.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX)",
        "subprocess.run([sys.executable, '-c', TRY, file.name], stderr=subprocess.DEVNULL).returncode",
    ),
    "an exit function": ("atexit.register(lambda: note('exit'))", "None"),
    "a timer": (
        "signal.signal(signal.SIGALRM, lambda *_: note('alarm'))",
        "callable(signal.getsignal(signal.SIGALRM))",
    ),
    "a running timer": ("signal.signal(signal.SIGALRM, print); signal.alarm(1000)", "signal.alarm(0) > 900"),
    "a handler of children": (
        "signal.signal(signal.SIGCHLD, lambda *_: None)",
        "callable(signal.getsignal(signal.SIGCHLD))",
    ),
    "a wake-up": (
        "pipe = os.pipe(); os.set_blocking(pipe[1], False); signal.set_wakeup_fd(pipe[1])",
        "signal.set_wakeup_fd(-1) == pipe[1]",
    ),
    "a filter": ("warnings.simplefilter('error', BytesWarning)", "str(warnings.filters[0])"),
    "captured warnings": (
        "logging.basicConfig(filename=os.environ['NOTES'] + '.log'); logging.captureWarnings(True)",
        "warnings.showwarning.__module__",
    ),
    "a warning": ("warnings.warn('careful')", "None"),
    "no garbage collection": ("gc.disable()", "gc.isenabled()"),
    "a rare garbage collection": ("gc.set_threshold(5)", "gc.get_threshold()"),
    "a thread": ("thread = threading.Thread(target=event.wait, daemon=True); thread.start()", "thread.is_alive()"),
    "a child": ("child = subprocess.Popen(['sleep', '0.01'])", "child.wait()"),
    "an open file": ("file = open(__file__); file.readline()", "file.tell()"),
    "its arguments": ("words = [os.path.basename(sys.argv[0]), *sys.argv[1:2]]", "words"),
    "an error": ("raise ImportError('not here')", "None"),
}

_BACKEND = """
import atexit, fcntl, gc, json, logging, os, signal, subprocess, sys, tempfile, threading, warnings
import witness_backend
from witness_backend import *

TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
event = threading.Event()

def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps(words) + "\\n")

{at_import}

def get_requires_for_build_wheel(config_settings=None):
    note("get_requires", {in_hook})
    return []

def build_wheel(*arguments):
    note("build", {in_hook})
    return witness_backend.build_wheel(*arguments)
"""


@pytest.mark.parametrize(
    ("state", "name"),
    # What is imported ahead cannot know of which hook; the backends that are do not look.
    [
        (state, name)
        for name in ("mesonpy", "unknown")
        for state in _STATES
        if (state, name) != ("its arguments", "mesonpy")
    ],
)
def test_each_hook_finds_what_the_import_has_left(
    witness_tree: WitnessTree, state: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_import, in_hook = _STATES[state]
    monkeypatch.setenv("PYTHONPATH", str(witness_tree.install_backend()))
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    witness_tree.use_backend(name, _BACKEND.format(at_import=at_import, in_hook=in_hook))
    seen = []
    for command in (LOCKBUILD, PYTHON_BUILD):
        notes = witness_tree.control / command[-1]
        build = witness_tree.start(command=command, env={"NOTES": str(notes)})
        [(status, out, error)] = witness_tree.finish(build)
        lines = notes.read_text().splitlines() if notes.exists() else []
        seen.append((status, [json.loads(line) for line in lines], "careful" in error, out.splitlines()[-1:]))
    assert seen[0] == seen[1]
    assert len(seen[0][1]) >= 2 or state == "an error"


# What a hook leaves to the end of its interpreter, which has to be in the file `left` afterwards.
_ENDS = {
    "a ZipFile in a global": "global z; z = zipfile.ZipFile(left, 'w'); z.writestr('a', 'b')",
    "a ZipFile in a cycle": "z = zipfile.ZipFile(left, 'w'); z.writestr('a', 'b'); z.me = [z]",
    "a GzipFile in a global": "global z; z = gzip.open(left, 'wt'); z.write('text')",
    "a finalizer of a module": """
class Last:
    def __del__(self, write=os.write, descriptor=os.open(left, os.O_CREAT | os.O_WRONLY)):
        write(descriptor, b"x")
global last
last = Last()
""",
    "a garbage collection that imports": """
class Last:
    def __del__(self):
        import logging
        open(left, "w").write(str(logging is self.module))
def leave():
    import logging
    last = Last()
    last.me, last.module = last, logging
import atexit
atexit.register(leave)
""",
    "a temporary file": """
import tempfile
global temporary
temporary = tempfile.NamedTemporaryFile(dir=os.path.dirname(left))
open(left, "w").write("x")
""",
}


@pytest.mark.parametrize("end", _ENDS)
@pytest.mark.parametrize("is_setuptools", [False, True], ids=["in-tree backend", "setuptools"])
def test_the_interpreter_of_a_hook_shuts_down_as_python_does(
    witness_tree: WitnessTree, end: str, is_setuptools: bool
) -> None:
    body = f"import gzip, zipfile\nleft = os.environ['LEFT'] + '/left'\n{_ENDS[end]}"
    if is_setuptools:
        witness_tree.use_setuptools()
        setup = witness_tree.path / "setup.py"
        function = f"import os\ndef act():\n{textwrap.indent(body, '    ')}\n"
        called = '"bdist_wheel" in sys.argv:'
        setup.write_text(f"{function}{setup.read_text().replace(called, f'{called}{chr(10)}    act()')}")
    else:
        witness_tree.use_hook(body)
    left: dict[str, list[tuple[str, bytes]]] = {}
    for command in (LOCKBUILD, PYTHON_BUILD):
        folder = witness_tree.control / f"{command[-1]}-left"
        folder.mkdir()
        build = witness_tree.start(command=command, env={"LEFT": str(folder), "SOURCE_DATE_EPOCH": "1700000000"})
        witness_tree.assert_all_succeed(build)
        left[command[-1]] = [(path.name, _content(path)) for path in sorted(folder.iterdir())]
    assert left["lockbuild"] == left["build"]
    assert [name for name, _ in left["build"]] == ["left"]


def _content(path: Path) -> bytes:
    """Return what is in a file, of an archive what does not depend on the time."""
    import gzip
    import zipfile

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return repr([(each.filename, archive.read(each)) for each in archive.infolist()]).encode()
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def test_a_hook_may_start_a_session(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("os.setsid(); tell('session', str(os.getsid(0) == os.getpid()))")
    witness_tree.assert_all_succeed(witness_tree.start())
    assert witness_tree.told("session") == "True"


@linux_only
def test_what_one_hook_leaves_running_is_not_ended_with_the_next(
    witness_tree: WitnessTree, processes_to_kill: list[int]
) -> None:
    witness_tree.use_backend(
        "variant",
        """
import os, subprocess
from witness_backend import *

def get_requires_for_build_wheel(config_settings=None):
    null = subprocess.DEVNULL
    tell("left", str(subprocess.Popen(["sleep", "1000"], stdout=null, stderr=null).pid))
    return []

def build_wheel(*arguments):
    os._exit(3)
""",
    )
    [(status, _, _)] = witness_tree.finish(witness_tree.start())
    left = int(witness_tree.told("left"))
    processes_to_kill.append(left)
    assert status == 1
    os.kill(left, 0)
    assert Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_without_isolation_and_checks_the_backend_is_not_asked_what_it_requires(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("raise ValueError('not to be asked')", "get_requires_for_build_wheel")
    for command in (PYTHON_BUILD, LOCKBUILD):
        witness_tree.assert_all_succeed(witness_tree.start("--wheel", "-x", command=command))
    # It was locked all the same: it may have been about to ask for setuptools.
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "-x", "-v"))
    assert status == 0
    assert "Locking" in error
    assert "Not locking" not in error

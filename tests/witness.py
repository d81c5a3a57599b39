"""A source tree whose hooks notice each other, and the processes that build it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOCKBUILD = (sys.executable, "-m", "lockbuild")
PYTHON_BUILD = (sys.executable, "-m", "build")

# After how many seconds an event that has to come is given up. Long, because the machine may be busy with other tests;
# no test is slower for it, because what is waited for ends the wait.
PATIENCE = 60.0

# For builds that leave out what `WitnessTree.use_hook` has put before a hook.
PLAIN: Mapping[str, str | None] = {"WITNESS_PLAIN": "1"}

_SETUP = """\
import sys
sys.path.insert(0, ".")
from setuptools import setup
from witness_backend import _wait_at_gate, _witness

if "bdist_wheel" in sys.argv:
    with _witness("build_wheel"):
        _wait_at_gate()
        setup(name="witness", version="1.0", py_modules=["witness_backend"])
else:
    setup(name="witness", version="1.0", py_modules=["witness_backend"])
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for an event that another process brings about (a file, a line in a log)."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE:g} s in vain for {what}")
        time.sleep(0.005)


def complete_lines(log: Path) -> list[str]:
    """Return the lines of a log, without one that is just being written; none while there is no log."""
    return log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []


def changed(environ: Mapping[str, str], changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return an environment with other values of these variables, and without those that are ``None``."""
    return {name: value for name, value in {**environ, **(changes or {})}.items() if value is not None}


@dataclass
class WitnessTree:
    """
    A tree with `witness_backend` as its in-tree backend, which requires setuptools and so is locked.

    Built with ``--no-isolation`` its hooks take milliseconds. `start` starts builds, `log` says what hooks have seen.
    """

    path: Path
    control: Path
    """A folder outside the tree for the witness log, gates and out-dirs."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    site: Path | None = None
    """The folder on Python's path that the backend is in; ``None`` for one that is in the tree."""

    @property
    def log_file(self) -> Path:
        return self.control / "witness.log"

    @property
    def out_dir(self) -> Path:
        return self.control / "out"

    def install_backend(self) -> Path:
        """Move the backend out of the tree; return the folder that has to be on Python's path from now on."""
        self.site = self.control / "site"
        self.site.mkdir()
        (self.path / "witness_backend.py").rename(self.site / "witness_backend.py")
        self.use_backend("witness_backend")
        return self.site

    def use_backend(self, name: str, source: str | None = None) -> None:
        """Have the tree built by a module that is where the witness is, written there if its source is given."""
        if source is not None:
            ((self.site or self.path) / f"{name}.py").write_text(source)
        in_tree = "" if self.site else 'backend-path = ["."]\n'
        (self.path / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "{name}"\n{in_tree}'
        )

    def use_setuptools(self) -> None:
        """Have the tree built by setuptools itself; its builds of wheels are witnesses."""
        (self.path / "setup.py").write_text(_SETUP)
        (self.path / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        )

    def use_hook(self, body: str, hook: str = "build_wheel") -> None:
        """
        Have a hook do ``body`` first, inside the witness; not in builds with `PLAIN` in their environment.

        It tells its process number as ``hook`` when it begins, and ``body`` may ``tell(name, text)`` more: see `told`.
        """
        variant = f"""
import json, os, signal, subprocess, sys, threading, time
import witness_backend
from witness_backend import *

def act():
{textwrap.indent(textwrap.dedent(body), "    ")}

def {hook}(*arguments, **options):
    if "WITNESS_PLAIN" not in os.environ:
        with witness_backend._witness("act"):
            tell("hook", str(os.getpid()))
            act()
    return witness_backend.{hook}(*arguments, **options)
"""
        self.use_backend("variant", variant)

    def told(self, name: str) -> str:
        """Wait until a hook has told something under a name; return that."""
        wait_until((self.control / name).exists, name)
        return (self.control / name).read_text()

    def environ(self, extra: Mapping[str, str | None] | None = None, gate: Path | None = None) -> dict[str, str]:
        ours = {"WITNESS_LOG": str(self.log_file)} | ({"WITNESS_GATE": str(gate)} if gate else {})
        return changed(os.environ | ours, extra)

    def start(
        self,
        *options: str,
        source: str | Path | None = None,
        out_dir: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        gate: Path | None = None,
        command: tuple[str, ...] = LOCKBUILD,
        cwd: Path | None = None,
        **popen: object,
    ) -> subprocess.Popen[str]:
        """Start ``lockbuild -n --wheel`` (or what ``options`` say) on the tree; ended when the test ends."""
        words = [*command, "-n", *(options or ("--wheel",)), "--outdir", str(out_dir or self.out_dir)]
        return self.start_process(*words, str(source or self.path), env=env, gate=gate, cwd=cwd, **popen)

    def start_process(
        self, *words: str, env: Mapping[str, str | None] | None = None, gate: Path | None = None, **popen: object
    ) -> subprocess.Popen[str]:
        """Start any command, with a build's environment; it is ended when the test ends."""
        process: subprocess.Popen[str] = subprocess.Popen(
            words,
            env=self.environ(env, gate),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,  # type: ignore[call-overload]
        )
        self.started.append(process)
        return process

    def make_gate(self, name: str = "gate") -> Gate:
        """Make a gate at which the build hooks of those who are given it wait."""
        return Gate(self.control / name)

    def log(self) -> list[tuple[str, int, str]]:
        """Return what the hooks have written so far: (word, pid, hook or other pid)."""
        return [(w, int(p), h) for w, p, h in (line.split() for line in complete_lines(self.log_file))]

    def entered(self, hook: str) -> list[int]:
        """Return the process numbers of those that have entered a hook, in order."""
        return [pid for word, pid, name in self.log() if (word, name) == ("enter", hook)]

    def wait_for_entry(self, hook: str = "build_wheel", count: int = 1) -> int:
        """Wait until a hook has been entered for the ``count``-th time; return that hook's process number."""
        wait_until(lambda: len(self.entered(hook)) >= count, f"entry {count} of {hook}")
        return self.entered(hook)[count - 1]

    def assert_no_overlap(self) -> None:
        """Check that no hook ran beside one that writes to the tree. Two with private views do not write to it."""
        private = {pid for word, pid, _ in self.log() if word == "private"}
        overlaps = [line for line in self.log() if line[0] == "overlap" and not {line[1], int(line[2])} <= private]
        assert not overlaps, f"hooks overlapped: {overlaps}"

    def finish(self, *processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
        """Wait for the processes (default: all that were started); return (exit status, stdout, stderr) of each."""
        results = []
        for process in processes or tuple(self.started):
            out, err = process.communicate(timeout=PATIENCE)
            results.append((process.returncode, out, err))
        return results

    def assert_all_succeed(self, *processes: subprocess.Popen[str]) -> None:
        for status, out, err in self.finish(*processes):
            assert status == 0, err
            assert out.splitlines()[-1].startswith("Successfully built "), out
        self.assert_no_overlap()


@dataclass
class Gate:
    """A FIFO at which a hook waits until it is opened."""

    path: Path

    def __post_init__(self) -> None:
        os.mkfifo(self.path, 0o666)
        self.path.chmod(0o666)

    def open(self) -> None:
        """Let one hook that waits, or the next one that comes, go on."""
        with self.path.open("w"):
            pass


def end_all(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Kill the processes that still run."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        # Something that the test left behind may still have the pipes open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)


def make_witness_tree(folder: Path) -> WitnessTree:
    tree, control = folder / "tree", folder / "control"
    tree.mkdir(parents=True)
    control.mkdir()
    shutil.copy(Path(__file__).with_name("witness_backend.py"), tree)
    witness_tree = WitnessTree(tree, control)
    witness_tree.use_backend("witness_backend")
    return witness_tree

"""A source tree whose hooks notice each other, and the processes that build it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOCKBUILD = (sys.executable, "-m", "lockbuild")
PYTHON_BUILD = (sys.executable, "-m", "build")

# After how many seconds an event that has to come is given up. Long, because the machine may be busy with other tests;
# no test is slower for it, because what is waited for ends the wait.
PATIENCE = 60.0


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

    @property
    def log_file(self) -> Path:
        return self.control / "witness.log"

    @property
    def out_dir(self) -> Path:
        return self.control / "out"

    def environ(self, extra: Mapping[str, str | None] | None = None, gate: Path | None = None) -> dict[str, str]:
        environ = os.environ | {"WITNESS_LOG": str(self.log_file)}
        if gate is not None:
            environ["WITNESS_GATE"] = str(gate)
        for name, value in (extra or {}).items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        return environ

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
        process: subprocess.Popen[str] = subprocess.Popen(
            [*words, str(source or self.path)],
            env=self.environ(env, gate),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
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
        overlaps = [line for line in self.log() if line[0] == "overlap"]
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


def make_witness_tree(folder: Path) -> WitnessTree:
    tree, control = folder / "tree", folder / "control"
    tree.mkdir(parents=True)
    control.mkdir()
    shutil.copy(Path(__file__).with_name("witness_backend.py"), tree)
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "witness_backend"\nbackend-path = ["."]\n'
    )
    return WitnessTree(tree, control)

"""What a benchmark consists of: rows of contestants that do the same work, and how one of them runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from trees import make_tree

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "benchmarks" / ".venv"


@dataclass(frozen=True)
class Place:
    """Where everything of one benchmark is."""

    folder: Path
    bin: Path
    environ: Mapping[str, str]
    at_end: ExitStack
    """Ends what contestants have started for all their runs."""

    @property
    def lockbuild(self) -> str:
        return str(self.bin / "lockbuild")

    @property
    def uv(self) -> str:
        return str(self.bin / "uv")

    def run(self, command: Sequence[str], **more: object) -> None:
        subprocess.run(command, env=self.environ, check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Finished:
    """A run of a contestant that has succeeded."""

    seconds: float
    cpu_seconds: float
    output: str
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Contestant:
    """A command and how often it runs at once, each run with a tree and an out-dir of its own or a common tree."""

    name: str
    command: Sequence[str]
    at_once: int = 1
    trees: int = 1
    make: Callable[[Path], object] = make_tree
    """Makes a tree at this path."""
    prepare: Callable[[], Mapping[str, str]] = dict
    """Makes what a run needs, and returns variables for it."""
    value: Callable[[Finished], float] = attrgetter("seconds")
    """What is compared; the time, unless the row says otherwise."""


@dataclass(frozen=True)
class Row:
    title: str
    contestants: Sequence[Contestant]
    """The first one is compared with each of the others."""
    goals: Mapping[str, float | str]
    """The highest ratio of the first one's median to another's that we are content with."""
    rounds: int = 1
    """How many rounds of this row make up one round of the benchmark: more where a run is short."""


def measure(place: Place, row: Row, rounds: int) -> dict[str, list[float]]:
    """Run the contestants of a row in turn; return the value of each run, by contestant."""
    print(f"{row.title} ...", file=sys.stderr, flush=True)
    values: dict[str, list[float]] = {contestant.name: [] for contestant in row.contestants}
    for number in range(rounds + 1):
        for contestant in row.contestants:
            value = contestant.value(_run_once(place, contestant))
            # The first round is for the caches.
            if number:
                values[contestant.name].append(value)
    return values


def _run_once(place: Place, contestant: Contestant) -> Finished:
    folder = Path(tempfile.mkdtemp(dir=place.folder))
    trees = [folder / f"tree{number}" for number in range(contestant.trees)]
    for tree in trees:
        contestant.make(tree)
    commands = []
    for number in range(contestant.at_once):
        out = folder / f"out{number}"
        out.mkdir()
        words = {"OUT": str(out), "TREE": str(trees[number % len(trees)])}
        commands.append([words.get(word, word) for word in contestant.command])
    environ = {**place.environ, **contestant.prepare()}
    began, began_cpu = time.perf_counter(), _cpu_seconds()
    processes = [
        subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - began_cpu
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            sys.exit(f"{contestant.name} failed:\n{output}")
    return Finished(seconds, cpu_seconds, "".join(outputs), environ)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cores() -> int:
    """Return how many cores there are for the benchmark."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

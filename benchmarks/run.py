"""Measure lockbuild beside its peers, ``python -m build`` and ``uv build``, in one run.

    python3 benchmarks/run.py [--rounds N] [--only WORD] [--charts FOLDER]

It makes a virtual environment with the newest peers from PyPI and this checkout, runs every contestant of a row in
turn, round after round, and prints medians and their ratios. All caches are warm, except in the rows that say
otherwise. A run that fails ends the benchmark: a time of something that did not work is no time.

Nothing that a run has made is removed before the end, and an empty cache is a new folder. ext4 passes over inodes that
were freed in the last minutes, one by one (``recently_deleted`` in fs/ext4/ialloc.c): where thousands of files were
just removed, each new one may take half a millisecond in place of twenty microseconds, and every run would be slowed
down by what was removed after the runs before it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import many_builds
import one_build
import private_trees
from contest import ROOT, VENV, Place, Row, cores, measure
from trees import make_least_workspace, make_tree

# The rows of each picture.
PICTURES: Mapping[str, Sequence[Callable[[Place], list[Row]]]] = {
    "speed": (one_build.rows,),
    "many": (many_builds.rows, private_trees.rows),
}

Measured = Sequence[tuple[Row, Mapping[str, float]]]

# Tells the most memory that this process itself had.
WITH_MEMORY = """
import sys
from lockbuild.commands.build import main
try:
    main(sys.argv[1:])
finally:
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    print(int(line.split()[1]) // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often each contestant runs, short runs more often (default: 7)"
    )
    parser.add_argument(
        "--only", metavar="WORD", action="append", help="only the rows that have this in their title; repeatable"
    )
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="write bar charts, speed.svg and many.svg")
    options = parser.parse_args()

    def is_wanted(title: str) -> bool:
        return options.only is None or any(word in title for word in options.only)

    set_up_peers()
    # All that is still running is ended before the folder is removed.
    with tempfile.TemporaryDirectory(prefix="lockbuild-benchmark-") as folder, ExitStack() as at_end:
        place = make_place(Path(folder), at_end)
        print(describe_machine(place))
        measured = {
            picture: [
                (row, medians(place, row, options.rounds))
                for rows in groups
                for row in rows(place)
                if is_wanted(row.title)
            ]
            for picture, groups in PICTURES.items()
        }
        print_table([pair for pairs in measured.values() for pair in pairs])
        if is_wanted("memory"):
            print_memory(place)
    if options.charts:
        for picture, pairs in measured.items():
            if pairs:
                draw(pairs, options.charts / f"{picture}.svg")


def set_up_peers() -> None:
    if not VENV.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip", "build", "uv", "matplotlib", f"{ROOT}[dask,python]"], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", ROOT], check=True)


def make_place(folder: Path, at_end: ExitStack) -> Place:
    unset = ("LOCKBUILD_", "PYTHONDONT", "MAKEFLAGS")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    environ |= {"LOCKBUILD_CACHE_DIR": str(folder / "cache"), "UV_CACHE_DIR": str(folder / "uv-cache")}
    # The interpreter is named, or uv would look for another one.
    environ |= {"VIRTUAL_ENV": str(VENV), "UV_PYTHON": str(VENV / "bin" / "python")}
    return Place(folder, VENV / "bin", environ, at_end)


def medians(place: Place, row: Row, rounds: int) -> Mapping[str, float]:
    return {name: statistics.median(values) for name, values in measure(place, row, rounds * row.rounds).items()}


def print_table(measured: Measured) -> None:
    print("\n| run | contestant | median | ratio of the first to it | goal |\n|---|---|---|---|---|")
    for row, values in measured:
        first, *_ = values
        for name, median in values.items():
            ratio = "" if name == first else f"{values[first] / median:.2f}"
            goal = row.goals.get(name, "")
            print(f"| {row.title} | {name} | {median * 1000:.0f} ms | {ratio} | {goal and f'≤ {goal}'} |")


def print_memory(place: Place) -> None:
    """Print the most memory that a frontend process has in a warm build, and in runs of many builds."""
    runs: list[tuple[str, Callable[[Path], object], list[str], int]] = [("a warm build", make_tree, [], 32)]
    for number in (50, 200):
        make = partial(make_least_workspace, packages=number)
        runs.append((f"a run of {number} builds", make, ["--all-packages"], 120))
    print()
    for title, make, options, goal in runs:
        folder = Path(tempfile.mkdtemp(dir=place.folder))
        make(folder / "tree")
        words = ["--wheel", "-q", "-o", str(folder), *options, str(folder / "tree")]
        command = [place.bin / "python", "-c", WITH_MEMORY, *words]
        for _ in range(2):
            done = subprocess.run(command, env=place.environ, check=True, capture_output=True, text=True)
        print(f"Peak memory of the frontend in {title}: {done.stdout.splitlines()[-1]} MiB (goal: ≤ {goal} MiB)")


def describe_machine(place: Place) -> str:
    versions = subprocess.run(
        [place.bin / "python", "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wanted = ("build==", "uv==", "pip==", "filelock==", "distributed==")
    return (
        f"{platform.system()} {platform.machine()}, {cores()} cores, Python {platform.python_version()}, "
        + ", ".join(line.replace("==", " ") for line in versions if line.startswith(wanted))
    )


def draw(measured: Measured, path: Path) -> None:
    """Have matplotlib, which is in the benchmark's own environment, draw the medians."""
    data = [(row.title, values) for row, values in measured]
    subprocess.run(
        [VENV / "bin" / "python", ROOT / "benchmarks" / "chart.py", path], input=json.dumps(data), text=True, check=True
    )


if __name__ == "__main__":
    main()

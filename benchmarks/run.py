"""Measure lockbuild beside its peers, ``python -m build`` and ``uv build``, in one run.

    python3 benchmarks/run.py [--rounds N] [--only WORD] [--chart FILE.svg]

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
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "benchmarks" / ".venv"

SETUP_PY = 'from setuptools import setup\nsetup(name="three-lines", version="1.0", py_modules=["three_lines"])\n'

# What both hooks cost in one interpreter that does nothing else: no frontend can be faster.
FLOOR = """
import os, sys
tree, out = sys.argv[1:]
os.chdir(tree)
import setuptools.build_meta as backend
backend.get_requires_for_build_wheel({})
backend.build_wheel(out, {})
"""


# Installs a frontend into a new environment and builds with it, as a job in a fresh container does.
IN_A_CONTAINER = (
    '"$NEW/bin/python" -m pip install --quiet "$PACKAGE" && exec "$NEW/bin/python" -m "$0" --wheel -o "$1" "$2"'
)


# The packages of a workspace, one command after the other.
ONE_BY_ONE = 'for tree in "$2"/packages/*; do "$0" --wheel -o "$1" "$tree" || exit; done'


@dataclass(frozen=True)
class Contestant:
    """A command and how often it runs at once, each run with a tree and an out-dir of its own or a common tree."""

    name: str
    command: Sequence[str]
    at_once: int = 1
    trees: int = 1
    files: int = 1
    packages: int = 0
    """How many packages its tree has, which is then a workspace."""
    prepare: Callable[[], Mapping[str, str]] = dict
    """Makes what a run needs, and returns variables for it."""


@dataclass(frozen=True)
class Row:
    title: str
    contestants: Sequence[Contestant]
    goals: Mapping[str, float]
    """The highest ratio of lockbuild's median to a peer's that we are content with."""
    rounds: int = 1
    """How many rounds of this row make up one round of the benchmark: more where a run is short."""


@dataclass(frozen=True)
class Place:
    """Where everything of one benchmark is."""

    folder: Path
    bin: Path
    environ: Mapping[str, str]

    def run(self, command: Sequence[str], **more: object) -> None:
        subprocess.run(command, env=self.environ, check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often each contestant runs, short runs more often (default: 7)"
    )
    parser.add_argument("--only", metavar="WORD", default="", help="only the rows that have this in their title")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="write a bar chart (SVG or PNG)")
    options = parser.parse_args()
    set_up_peers()
    with tempfile.TemporaryDirectory(prefix="lockbuild-benchmark-") as folder:
        place = make_place(Path(folder))
        print(describe_machine(place))
        wanted = [row for row in rows(place) if options.only in row.title]
        measured = [(row, measure(place, row, options.rounds * row.rounds)) for row in wanted]
        print_table(measured)
        if options.only in "memory":
            print_memory(place)
    if options.chart:
        draw(measured, options.chart)


def set_up_peers() -> None:
    if not VENV.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip", "build", "uv", "matplotlib", ROOT], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", ROOT], check=True)


def make_place(folder: Path) -> Place:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LOCKBUILD_", "PYTHONDONT"))}
    environ |= {"LOCKBUILD_CACHE_DIR": str(folder / "cache"), "UV_CACHE_DIR": str(folder / "uv-cache")}
    # The interpreter is named, or uv would look for another one.
    environ |= {"VIRTUAL_ENV": str(VENV), "UV_PYTHON": str(VENV / "bin" / "python")}
    return Place(folder, VENV / "bin", environ)


def rows(place: Place) -> list[Row]:
    lockbuild, uv = str(place.bin / "lockbuild"), str(place.bin / "uv")
    build = [str(place.bin / "python"), "-m", "build"]
    floor = place.folder / "floor"

    def empty_cache() -> Mapping[str, str]:
        return {"LOCKBUILD_CACHE_DIR": tempfile.mkdtemp(dir=place.folder)}

    def without_bytecode() -> Mapping[str, str]:
        return {"PYTHONDONTWRITEBYTECODE": "1"}

    def fresh_container(package: str) -> Mapping[str, str]:
        new = tempfile.mkdtemp(dir=place.folder)
        place.run([sys.executable, "-m", "venv", f"{new}/venv"])
        folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCKBUILD_CACHE_DIR"), f"{new}/home")
        return {**without_bytecode(), **folders, "NEW": f"{new}/venv", "PACKAGE": package}

    def make_wheel() -> str:
        folder = place.folder / "wheel"
        if not folder.exists():
            place.run([lockbuild, "--wheel", "-o", str(folder), str(ROOT)])
        [wheel] = folder.iterdir()
        return str(wheel)

    def make_floor() -> Mapping[str, str]:
        if not floor.exists():
            place.run([sys.executable, "-m", "venv", str(floor)])
            place.run([str(floor / "bin" / "python"), "-m", "pip", "install", "-q", "-U", "setuptools"])
            (place.folder / "floor.py").write_text(FLOOR)
        return {}

    def three(*options: str, **more: int) -> list[Contestant]:
        return [
            Contestant("lockbuild", [lockbuild, *options, "-o", "OUT", "TREE"], **more),
            Contestant("uv build", [uv, "build", *options, "-o", "OUT", "TREE"], **more),
            Contestant("python -m build", [*build, *options, "-o", "OUT", "TREE"], **more),
        ]

    sdist = place.folder / "three_lines-1.0.tar.gz"

    def make_sdist() -> Mapping[str, str]:
        if not sdist.exists():
            place.run([lockbuild, "--sdist", "-o", str(place.folder), str(make_tree(place.folder / "sdist", 1))])
        return {}

    of_one_sdist = [
        Contestant(each.name, [*each.command[:-1], str(sdist)], each.at_once, prepare=make_sdist)
        for each in three("--wheel", at_once=8)
    ]
    workspace = ["--wheel", "--all-packages", "-o", "OUT", "TREE"]
    floor_command = [str(floor / "bin" / "python"), str(place.folder / "floor.py"), "TREE", "OUT"]
    return [
        Row(
            "one wheel",
            [*three("--wheel"), Contestant("floor", floor_command, prepare=make_floor)],
            {"uv build": 0.32, "python -m build": 0.17, "floor": 1.4},
            rounds=5,
        ),
        Row(
            "one wheel, PYTHONDONTWRITEBYTECODE",
            [replace(each, prepare=without_bytecode) for each in three("--wheel")],
            {"uv build": 0.32},
            rounds=3,
        ),
        Row("sdist, and wheel from it", three(), {"uv build": 0.35, "python -m build": 0.17}, rounds=2),
        Row(
            "one wheel, empty cache, pip",
            [
                Contestant("lockbuild", [lockbuild, "--wheel", "-o", "OUT", "TREE"], prepare=empty_cache),
                *three("--wheel")[1:],
            ],
            {"uv build": 1.15, "python -m build": 0.5},
            rounds=2,
        ),
        Row(
            "one wheel, empty cache, uv",
            [
                Contestant(
                    "lockbuild", [lockbuild, "--installer", "uv", "--wheel", "-o", "OUT", "TREE"], prepare=empty_cache
                ),
                Contestant("uv build", [uv, "build", "--wheel", "-o", "OUT", "TREE"]),
            ],
            {"uv build": 0.7},
            rounds=3,
        ),
        Row(
            "fresh container: pip install, one wheel",
            [
                Contestant(name, ["sh", "-c", IN_A_CONTAINER, module, "OUT", "TREE"], prepare=prepare)
                for name, module, prepare in (
                    ("lockbuild", "lockbuild", lambda: fresh_container(make_wheel())),
                    ("python -m build", "build", lambda: fresh_container("build")),
                )
            ],
            {"python -m build": 0.75},
        ),
        # python -m build loses some of them, so that its time would be no time.
        Row("10 at once of one tree", three("--wheel", at_once=10)[:2], {"uv build": 0.45}),
        Row("8 at once of 8 trees", three("--wheel", at_once=8, trees=8)[:2], {"uv build": 0.45}),
        Row(
            "30 packages of a workspace",
            [
                Contestant("lockbuild", [lockbuild, *workspace], packages=30),
                Contestant("uv build", [uv, "build", *workspace], packages=30),
                Contestant("one command each", ["sh", "-c", ONE_BY_ONE, lockbuild, "OUT", "TREE"], packages=30),
            ],
            {"uv build": 0.25, "one command each": 0.75},
        ),
        Row("8 at once of one sdist", of_one_sdist, {"uv build": 0.2, "python -m build": 0.1}),
        Row(
            "one wheel, 5,000 files",
            [*three("--wheel", files=5000)[:2], Contestant("floor", floor_command, files=5000)],
            {},
        ),
        Row(
            "--version",
            [Contestant("lockbuild", [lockbuild, "--version"]), Contestant("python -m build", [*build, "--version"])],
            {"python -m build": 0.6},
            rounds=5,
        ),
    ]


def measure(place: Place, row: Row, rounds: int) -> dict[str, list[float]]:
    """Run the contestants of a row in turn; return the seconds that each run took, by contestant."""
    print(f"{row.title} ...", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in row.contestants}
    for number in range(rounds + 1):
        for contestant in row.contestants:
            taken = run_once(place, contestant)
            # The first round is for the caches.
            if number:
                times[contestant.name].append(taken)
    return times


def run_once(place: Place, contestant: Contestant) -> float:
    folder = Path(tempfile.mkdtemp(dir=place.folder))
    trees = [folder / f"tree{number}" for number in range(contestant.trees)]
    for tree in trees:
        make_workspace(tree, contestant.packages) if contestant.packages else make_tree(tree, contestant.files)
    commands = []
    for number in range(contestant.at_once):
        out = folder / f"out{number}"
        out.mkdir()
        words = {"OUT": str(out), "TREE": str(trees[number % len(trees)])}
        commands.append([words.get(word, word) for word in contestant.command])
    environ = {**place.environ, **contestant.prepare()}
    started = time.perf_counter()
    processes = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    taken = time.perf_counter() - started
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            sys.exit(f"{contestant.name} failed:\n{output.decode()}")
    return taken


def make_tree(path: Path, files: int) -> Path:
    path.mkdir()
    if files == 1:
        (path / "setup.py").write_text(SETUP_PY)
        (path / "three_lines.py").write_text("value = 1\n")
    else:
        (path / "setup.py").write_text(SETUP_PY.replace("py_modules", "packages").replace("three_lines", "many"))
        (path / "many").mkdir()
        for number in range(files):
            (path / "many" / f"module{number}.py").write_text("")
    return path


def make_workspace(path: Path, packages: int) -> None:
    """Make a workspace of projects with setuptools that need nothing of each other."""
    path.mkdir()
    (path / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    for number in range(packages):
        tree = path / "packages" / f"package{number:02}"
        tree.mkdir(parents=True)
        (tree / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "{tree.name}"\nversion = "1.0"\n[tool.setuptools]\npy-modules = ["{tree.name}"]\n'
        )
        (tree / f"{tree.name}.py").write_text("value = 1\n")


def print_table(measured: Sequence[tuple[Row, dict[str, list[float]]]]) -> None:
    print("\n| run | contestant | median | ratio of lockbuild to it | goal |\n|---|---|---|---|---|")
    for row, times in measured:
        ours = statistics.median(times["lockbuild"])
        for name, taken in times.items():
            median = statistics.median(taken)
            ratio = "" if name == "lockbuild" else f"{ours / median:.2f}"
            goal = f"≤ {row.goals[name]:g}" if name in row.goals else ""
            print(f"| {row.title} | {name} | {median * 1000:.0f} ms | {ratio} | {goal} |")


def print_memory(place: Place) -> None:
    """Print the most memory that the frontend process itself had in a warm build."""
    script = (
        "import resource, sys\nfrom lockbuild.commands.build import main\ntry: main(sys.argv[1:])\nfinally: "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MiB', file=sys.stderr)"
    )
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        tree = make_tree(Path(folder, "tree"), 1)
        command = [str(place.bin / "python"), "-c", script, "--wheel", "-q", "-o", folder, str(tree)]
        for _ in range(2):
            done = subprocess.run(command, env=place.environ, check=True, capture_output=True, text=True)
        print(f"\nPeak memory of the frontend in a warm build: {done.stderr.splitlines()[-1]} (goal: ≤ 32 MiB)")


def describe_machine(place: Place) -> str:
    versions = subprocess.run(
        [place.bin / "python", "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wanted = ("build==", "uv==", "pip==", "filelock==")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(line.replace("==", " ") for line in versions if line.startswith(wanted))
    )


def draw(measured: Sequence[tuple[Row, dict[str, list[float]]]], path: Path) -> None:
    """Have matplotlib, which is in the benchmark's own environment, draw the medians."""
    import json

    data = [(row.title, {name: statistics.median(taken) for name, taken in times.items()}) for row, times in measured]
    subprocess.run(
        [VENV / "bin" / "python", ROOT / "benchmarks" / "chart.py", path], input=json.dumps(data), text=True, check=True
    )


if __name__ == "__main__":
    main()

"""The rows of runs that build many trees: on one machine, and on the workers of dask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from contest import Contestant, Finished, Place, Row, cores
from trees import make_least_workspace, make_meson_workspace, make_tree, make_workspace

# The packages of a workspace, one command after the other.
ONE_BY_ONE = 'for tree in "$2"/packages/*; do "$0" --wheel -o "$1" "$tree" || exit; done'

PACKAGES, LEVELS = 30, 5

COMPILER_SLOTS = 2

# Notes when it begins and ends.
COMPILER = '#!/bin/sh\necho + >>"$COMPILERS"\ncc "$@"\nstatus=$?\necho - >>"$COMPILERS"\nexit $status\n'


def rows(place: Place) -> list[Row]:
    all_packages = ["--wheel", "--all-packages", "-o", "OUT", "TREE"]
    lockbuild = [place.lockbuild, *all_packages]
    pure = partial(make_workspace, packages=PACKAGES)
    in_levels = partial(make_workspace, packages=PACKAGES, levels=LEVELS)
    return [
        Row(
            f"{PACKAGES} packages of a workspace",
            [
                Contestant("lockbuild", lockbuild, make=pure),
                Contestant("uv build", [place.uv, "build", *all_packages], make=pure),
                Contestant("one command each", ["sh", "-c", ONE_BY_ONE, place.lockbuild, "OUT", "TREE"], make=pure),
            ],
            {"uv build": 0.25, "one command each": 0.75},
        ),
        Row(
            f"{PACKAGES} packages in {LEVELS} levels",
            [
                Contestant("lockbuild", lockbuild, make=in_levels),
                Contestant("bound", [*lockbuild, "-j1", "--json"], make=in_levels, value=_bound),
            ],
            {"bound": 1.1},
        ),
        Row(
            "200 trees, for each",
            [
                Contestant(
                    "lockbuild" if number == 200 else f"{number} trees",
                    lockbuild,
                    make=partial(make_least_workspace, packages=number),
                    value=lambda run, number=number: run.seconds / number,  # type: ignore[misc]
                )
                for number in (200, 50)
            ],
            {"50 trees": 1.05},
        ),
        _with_compilers(place),
        _on_dask(place),
    ]


def _bound(run: Finished) -> float:
    """Return what a run with one job says of the least time: that of a chain of builds, or of the work on all cores."""
    events = [json.loads(line) for line in run.output.splitlines() if line.startswith("{")]
    seconds = sorted((event["source"], event["seconds"]) for event in events if event["event"] == "built")
    width = PACKAGES // LEVELS
    chains = [sum(taken for _, taken in seconds[column::width]) for column in range(width)]
    return max(*chains, run.cpu_seconds / cores())


def _with_compilers(place: Place) -> Row:
    """
    Return the row of trees with C code: more builds than cores, whose compilers have two slots.

    A stub stands for the make of the machine, because with one that does not know the jobserver there is none.
    """
    compiler = place.folder / "compiler"

    def prepare(make: str, *, below: bool) -> Mapping[str, str]:
        folder = Path(tempfile.mkdtemp(dir=place.folder))
        _write_script(compiler, COMPILER)
        _write_script(folder / "make", f"#!/bin/sh\necho GNU Make {make}\n")
        variables = {"PATH": f"{folder}{os.pathsep}{place.environ['PATH']}", "CC": str(compiler)}
        variables["COMPILERS"] = str(folder / "compilers")
        if below:
            variables["MAKEFLAGS"] = _outer_jobserver(place, folder)
        return variables

    make = partial(make_meson_workspace, packages=4, files=8, functions=15)
    words = [place.lockbuild, "--wheel", "--all-packages", "-o", "OUT", "TREE"]
    without = partial(prepare, "4.3", below=False)
    return Row(
        "4 trees with C code",
        [
            Contestant("lockbuild", [*words, "-j4"], 1, 1, make, partial(prepare, "4.4", below=True), _counted),
            Contestant("-j 4, no jobserver", [*words, "-j4"], make=make, prepare=without),
            Contestant("-j 1, no jobserver", [*words, "-j1"], make=make, prepare=without),
        ],
        {"-j 4, no jobserver": 1.05, "-j 1, no jobserver": 1.05},
    )


def _outer_jobserver(place: Place, folder: Path) -> str:
    """Return the flags of a make with two slots; one of them is that of the program that it starts."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)
    place.at_end.callback(os.close, descriptor)
    os.write(descriptor, b"+" * (COMPILER_SLOTS - 1))
    return f" -j{COMPILER_SLOTS} --jobserver-auth=fifo:{fifo}"


def _counted(run: Finished) -> float:
    """Return the time of a run in which there was a slot for each compiler."""
    running = most = 0
    for line in Path(run.environ["COMPILERS"]).read_text().splitlines():
        running += 1 if line == "+" else -1
        most = max(most, running)
    if most > COMPILER_SLOTS:
        sys.exit(f"{most} compilers ran at once on {COMPILER_SLOTS} slots")
    return run.seconds


def _on_dask(place: Place) -> Row:
    sdists = place.folder / "sdists"
    address = place.folder / "scheduler.json"

    def prepare() -> Mapping[str, str]:
        if not sdists.exists():
            sdists.mkdir()
            for number in range(20):
                tree = make_tree(place.folder / f"sdist{number}")
                script = (tree / "setup.py").read_text().replace("three-lines", f"three-lines{number}")
                (tree / "setup.py").write_text(script)
                place.run([place.lockbuild, "--sdist", "-o", str(sdists), str(tree)])
            _start_dask(place, address)
        return {"ADDRESS": json.loads(address.read_text())["address"], "SDISTS": str(sdists)}

    def command(options: str) -> list[str]:
        return ["sh", "-c", f'exec "$0" --wheel {options} -o "$1" "$SDISTS"/*', place.lockbuild, "OUT"]

    return Row(
        "20 sdists, 2 workers of dask",
        [
            Contestant("lockbuild", command('--executor "dask:$ADDRESS"'), prepare=prepare),
            Contestant("here, -j 2", command("-j2"), prepare=prepare),
        ],
        {"here, -j 2": 1.25},
    )


def _start_dask(place: Place, address: Path) -> None:
    """Start a scheduler and two workers, each of which runs one build at a time."""
    worker = ("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(place.folder))
    for kind, *options in (("scheduler", "--host", "127.0.0.1", "--port", "0"), worker, worker):
        command = [str(place.bin / "python"), "-m", f"distributed.cli.dask_{kind}", *options, "--no-dashboard"]
        with (place.folder / "dask.log").open("a") as log:
            process = subprocess.Popen(
                [*command, "--scheduler-file", str(address)], env=place.environ, stdout=log, stderr=log
            )
        place.at_end.callback(process.wait)
        place.at_end.callback(process.terminate)
        while not (address.exists() and address.read_text().endswith("}")):
            time.sleep(0.1)


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

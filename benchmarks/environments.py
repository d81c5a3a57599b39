"""Measure how fast a second environment is filled that has the same wheels as the first, beside pip and uv.

    python3 benchmarks/environments.py [--rounds N]

It runs in an environment that has this checkout and uv, downloads numpy, Cython and setuptools once, and fills an
empty virtual environment with them, round after round, by each contestant in turn: by `lockbuild.wheels` in this
process, as a build does it, and in a process of its own; by ``pip install --no-deps --no-compile``; by ``uv pip install
--no-deps``. All caches are warm, and no contestant asks an index. Then ten more are filled, and the disk is asked what
each costs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from lockbuild.events import Reporter
from lockbuild.paths import wheel_folder
from lockbuild.wheels.destination import virtual_environment
from lockbuild.wheels.install import install_archives
from lockbuild.wheels.plan import Installation
from lockbuild.wheels.store import WheelStore

PACKAGES = ("numpy", "cython", "setuptools")

PROCESS = "import sys; from lockbuild.wheels import install_wheels; install_wheels(sys.argv[2:], sys.argv[1])"

# The lowest, or highest, ratio of a contestant's median to ours that we are content with.
GOALS = {"pip": "at least 5.0", "uv": "at least 0.5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each fills one (default: 7)")
    rounds = parser.parse_args().rounds
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="lockbuild-benchmark-") as folder:
        os.environ["LOCKBUILD_CACHE_DIR"] = os.path.join(folder, "cache")
        os.environ["UV_CACHE_DIR"] = os.path.join(folder, "uv-cache")
        wheels = download(Path(folder))
        measure(Path(folder), wheels, rounds)
        print()
        measure_disk(Path(folder), wheels)


def download(folder: Path) -> list[str]:
    """Have pip download the wheels."""
    run(
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder / "w", *PACKAGES
    )
    return sorted(map(str, (folder / "w").iterdir()))


def measure(folder: Path, wheels: Sequence[str], rounds: int) -> None:
    """Fill environments and print the medians."""
    uv = shutil.which("uv", path=os.path.dirname(sys.executable)) or "uv"
    pip = (sys.executable, "-m", "pip", "--python")
    contestants: dict[str, Callable[[Path], object]] = {
        "lockbuild": lambda path: fill(path, wheels),
        "lockbuild, a process": lambda path: run(sys.executable, "-c", PROCESS, path, *wheels),
        "pip": lambda path: run(*pip, path, "install", "-q", "--no-deps", "--no-index", "--no-compile", *wheels),
        "uv": lambda path: run(uv, "pip", "install", "-q", "--no-deps", "--offline", "--python", path, *wheels),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for name, contestant in contestants.items():
            path = make_environment(folder / "measured")
            began = time.perf_counter()
            contestant(path)
            # The first round fills the caches.
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    ours = statistics.median(times["lockbuild"])
    print(f"{'contestant':22}{'median':>10}{'ratio':>9}   goal")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:22}{median * 1000:>7.0f} ms{median / ours:>9.2f}   {GOALS.get(name, '')}")


def measure_disk(folder: Path, wheels: Sequence[str]) -> None:
    """Fill ten environments and print what each of them costs."""
    store = used(folder / "cache")
    [numpy] = [wheel for wheel in wheels if os.path.basename(wheel).startswith("numpy")]
    paths = [make_environment(folder / f"environment{number}") for number in range(10)]
    empty = used(folder)
    for path in paths:
        fill(path, wheels)
    each = (used(folder) - empty) / len(paths)
    unpacked = used(paths[0] / "lib")
    print(f"the store of {len(wheels)} wheels: {store / 2**20:.1f} MiB; the wheel file of numpy:", end=" ")
    print(f"{os.path.getsize(numpy) / 2**20:.1f} MiB; an environment by itself: {unpacked / 2**20:.1f} MiB")
    print(f"each of ten environments adds {each / 2**20:.2f} MiB, {each / unpacked:.1%} of that")


def fill(path: Path, wheels: Sequence[str]) -> None:
    """Do what a build does when pip has resolved and fetched."""
    installation = Installation(virtual_environment(str(path)), Reporter(), installer="pip")
    install_archives(wheels, {}, WheelStore(wheel_folder(None), None, None, Reporter()), installation)


def make_environment(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    venv.EnvBuilder(symlinks=True).create(path)
    return path


def used(folder: Path) -> int:
    """Return the bytes on the disk, those of a file with several names once."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()

"""Measure how long a lock is idle between one holder's release and the next one's acquisition.

Processes that wait for the lock on one source tree take it, hold it for a moment and release it, ten times each. Each
writes when it had the lock and when it let go of it, by the clock that all processes share.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lockbuild.locks import SourceTreeLock

ROUNDS = 10

# How long a holder holds the lock, in seconds: long enough for all the others to be waiting again.
HOLD_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--waiters", type=int, nargs="+", default=[2, 10, 40], metavar="N", help="how many processes wait at once"
    )
    parser.add_argument("--worker", nargs=2, metavar=("TREE", "LOG"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        work(*map(Path, parsed.worker))
        return
    sys.stdout.write(f"{'waiters':>7} {'handovers':>9} {'median ms':>9} {'95th percentile ms':>18}\n")
    for count in parsed.waiters:
        idle = [seconds * 1000 for seconds in measure(count)]
        percentile = statistics.quantiles(idle, n=20)[-1]
        sys.stdout.write(f"{count:>7} {len(idle):>9} {statistics.median(idle):>9.1f} {percentile:>18.1f}\n")
        sys.stdout.flush()


def work(tree: Path, log: Path) -> None:
    """Take the lock again and again, and write down when."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    for _ in range(ROUNDS):
        with SourceTreeLock(tree):
            taken = time.monotonic()
            time.sleep(HOLD_SECONDS)
            released = time.monotonic()
        # One write to a file opened for appending: lines of several processes do not mix.
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(descriptor, f"{taken} {released} {os.getpid()}\n".encode())
        os.close(descriptor)
        # The others have waited for longer than we: we do not take it from them while it lies before us.
        time.sleep(2 * HOLD_SECONDS)


def measure(count: int) -> list[float]:
    """Return for how many seconds the lock was idle, each time it passed from one process to another."""
    with tempfile.TemporaryDirectory() as folder:
        tree, log = Path(folder, "tree"), Path(folder, "log")
        tree.mkdir()
        environ = os.environ | {"LOCKBUILD_CACHE_DIR": str(Path(folder, "cache"))}
        # One more than wait, for the one that holds it.
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", str(tree), str(log)],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(count + 1)
        ]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        # All of them are started and have imported what they need. Now they begin.
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        failed = [worker.args for worker in workers if worker.wait()]
        if failed:
            sys.exit(f"{len(failed)} workers failed")
        lines = [line.split() for line in log.read_text().splitlines()]
    turns = sorted((float(taken), float(released), pid) for taken, released, pid in lines)
    # The last turns of all, when fewer and fewer wait, would say little.
    contended = turns[: (count + 1) * ROUNDS - count]
    return [
        taken - released
        for (_, released, before), (taken, _, after) in itertools.pairwise(contended)
        if before != after
    ]


if __name__ == "__main__":
    main()

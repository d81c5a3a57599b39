"""Looking after the cache: what is in it, and the removal of what nobody uses. The console script ``lockbuild-cache``.

What a build uses is never removed, whoever asks: an environment is removed under its key's lock and only while no
process has a file of its users locked. Lock files are never removed by us: one could be open in a process that waits.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from lockbuild.environments.store import Generation, age_in_words, generations, remove_unused
from lockbuild.errors import LockbuildError, LockTimeoutError, shown
from lockbuild.locks import DirectoryLock
from lockbuild.paths import cache_folder, environment_folder, key_folders
from lockbuild.settings import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockbuild.sharing.wheels import KeptWheel

# Environments that no build has used for so long are removed, in seconds.
UNUSED_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class CachedEnvironment:
    """A complete environment in the store, as a person sees it."""

    generation: Generation
    size: int
    """In bytes, as far as it is not shared with others by hard links."""
    made: float
    """Seconds since the epoch."""
    last_used: float
    """Seconds since the epoch."""
    packages: tuple[str, ...]


def list_environments(cache_dir: str | None = None) -> list[CachedEnvironment]:
    """Return the complete environments in the store, the one last used first."""
    found = []
    for folder in key_folders(cache_dir, environment_folder):
        for generation in generations(folder):
            if manifest := generation.read_manifest():
                packages = tuple(f"{name} {version}" for name, version in sorted(manifest.packages.items()))
                size = _size(generation.path)
                found.append(CachedEnvironment(generation, size, manifest.made, generation.last_used(), packages))
    return sorted(found, key=lambda environment: -environment.last_used)


def prune(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> list[Generation]:
    """
    Remove the environments that were last used more than ``older_than`` seconds ago and are not in use.

    Returns what was removed. An environment that is just being made is left alone.
    """
    removed: list[Generation] = []
    oldest = time.time() - older_than
    for folder in key_folders(cache_dir, environment_folder):
        # Whoever has the lock is making an environment here; it is no time to clean up.
        with contextlib.suppress(LockTimeoutError), DirectoryLock(folder, cache_dir=cache_dir, timeout=0, create=True):
            removed += remove_unused(folder, keep=lambda generation: generation.last_used() > oldest)
            if not generations(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return removed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the console script ``lockbuild-cache`` and exit: 0, 1 after an error, 2 for wrong usage."""
    parsed = _make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        parsed.run(parsed)
    except LockbuildError as error:
        print(f"ERROR {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        print(f"ERROR {error.strerror}: {error.filename!r}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lockbuild-cache", description="Look after the cache of lockbuild.")
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="the cache folder (default: LOCKBUILD_CACHE_DIR, else the platform's place)"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("dir", help="print the path of the cache folder")
    command.set_defaults(run=_print_folder)
    command = commands.add_parser("list", help="list what is in the cache")
    command.set_defaults(run=_print_list)
    command = commands.add_parser("prune", help="remove environments and wheels that were not used for 30 days")
    command.add_argument(
        "--older-than",
        type=duration,
        default=UNUSED_SECONDS,
        metavar="TIME",
        help="remove what was last used so long ago: seconds, or a number with s, m, h or d behind it (default: 30d)",
    )
    command.set_defaults(run=_prune)
    command = commands.add_parser("clear", help="remove everything that is not in use")
    command.set_defaults(run=_prune, older_than=-1.0)
    return parser


def _print_folder(parsed: argparse.Namespace) -> None:
    print(shown(cache_folder(parsed.cache_dir) or ""))


def _print_list(parsed: argparse.Namespace) -> None:
    from lockbuild.sharing.wheels import list_wheels

    environments, wheels = list_environments(parsed.cache_dir), list_wheels(parsed.cache_dir)
    if environments:
        _print_environments(environments)
    if wheels:
        _print_wheels(wheels)
    if not environments and not wheels:
        print("The cache is empty.")


def _print_environments(environments: Sequence[CachedEnvironment]) -> None:
    rows = [("ENVIRONMENT", "SIZE", "MADE", "LAST USED", "PACKAGES")]
    for each in environments:
        name = f"{os.path.basename(each.generation.folder)}/{each.generation.name}"
        rows.append((name, *_figures(each), ", ".join(each.packages)))
    _print_table(rows)


def _print_wheels(wheels: Sequence[KeptWheel]) -> None:
    _print_table(
        [
            ("WHEEL", "SIZE", "BUILT", "LAST USED", "FILE"),
            *((os.path.basename(each.path), *_figures(each), shown(each.path)) for each in wheels),
        ]
    )


def _figures(each: CachedEnvironment | KeptWheel) -> tuple[str, str, str]:
    made, used = (f"{age_in_words(moment)} ago" for moment in (each.made, each.last_used))
    return f"{each.size / 1024**2:.1f} MiB", made, used


def _print_table(rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip())


def _prune(parsed: argparse.Namespace) -> None:
    from lockbuild.sharing.wheels import list_wheels, prune_wheels

    removed = prune(parsed.older_than, parsed.cache_dir)
    _print_removed(len(removed), len(list_environments(parsed.cache_dir)), "environment")
    # After their environments, without which they are of no use.
    removed_wheels = prune_wheels(parsed.older_than, parsed.cache_dir)
    left = len(list_wheels(parsed.cache_dir))
    if removed_wheels or left:
        _print_removed(removed_wheels, left, "wheel")


def _print_removed(removed: int, left: int, what: str) -> None:
    print(f"Removed {removed} {what}{'' if removed == 1 else 's'}; {left} left")


def _size(path: str) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(folder, name))
                total += status.st_size // max(1, status.st_nlink)
    return total


if __name__ == "__main__":
    main()

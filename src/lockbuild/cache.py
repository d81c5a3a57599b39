"""Looking after the cache: what is in it, and the removal of what nobody uses. The console script ``lockbuild-cache``.

What a build uses is never removed, whoever asks: an environment is removed under its key's lock and only while no
process has a file of its users locked. An unpacked wheel may go while it is installed; its installer unpacks it again,
and environments keep their files. Lock files are never removed by us: one could be open in a process that waits.
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
from lockbuild.paths import cache_folder, environment_folder, wheel_folder
from lockbuild.settings import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    for folder in _key_folders(cache_dir):
        for generation in generations(folder):
            if manifest := generation.read_manifest():
                packages = tuple(f"{name} {version}" for name, version in sorted(manifest.packages.items()))
                size = _size(generation.path)
                found.append(CachedEnvironment(generation, size, manifest.made, generation.last_used(), packages))
    return sorted(found, key=lambda environment: -environment.last_used)


@dataclass(frozen=True)
class CachedWheel:
    """An unpacked wheel in the store, as a person sees it."""

    folder: str
    name: str
    """The distribution and its version."""
    size: int
    """In bytes, as far as it is not shared with environments by hard links."""
    last_used: float
    """When it was last installed, in seconds since the epoch."""


def list_wheels(cache_dir: str | None = None) -> list[CachedWheel]:
    """Return the unpacked wheels in the store, the one last installed first."""
    from lockbuild.wheels.store import last_used, read, wheel_folders

    found = [
        CachedWheel(folder, f"{wheel.name} {wheel.version}", _size(wheel.path), last_used(folder))
        for store in _stores(cache_dir, wheel_folder)
        for folder in wheel_folders(store)
        if (wheel := read(folder))
    ]
    return sorted(found, key=lambda wheel: -wheel.last_used)


def prune_wheels(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> int:
    """Remove the unpacked wheels that were last installed more than ``older_than`` seconds ago; return how many."""
    from lockbuild.wheels.store import remove_unused

    return sum(remove_unused(store, cache_dir, older_than) for store in _stores(cache_dir, wheel_folder))


def prune(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> list[Generation]:
    """
    Remove the environments that were last used more than ``older_than`` seconds ago and are not in use.

    Returns what was removed. An environment that is just being made is left alone.
    """
    removed: list[Generation] = []
    oldest = time.time() - older_than
    for folder in _key_folders(cache_dir):
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
    command = commands.add_parser(
        "prune", help="remove environments and unpacked wheels that were not used for 30 days"
    )
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
    environments, wheels = list_environments(parsed.cache_dir), list_wheels(parsed.cache_dir)
    if not environments and not wheels:
        print("The cache is empty.")
    if environments:
        rows = [("ENVIRONMENT", "SIZE", "MADE", "LAST USED", "PACKAGES")]
        for each in environments:
            name = f"{os.path.basename(each.generation.folder)}/{each.generation.name}"
            rows.append((name, _in_mib(each.size), _ago(each.made), _ago(each.last_used), ", ".join(each.packages)))
        _print_table(rows)
    if wheels:
        _print_table(
            [
                ("WHEEL", "SIZE", "LAST USED"),
                *((each.name, _in_mib(each.size), _ago(each.last_used)) for each in wheels),
            ]
        )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _in_mib(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"


def _ago(moment: float) -> str:
    return f"{age_in_words(moment)} ago"


def _prune(parsed: argparse.Namespace) -> None:
    # Environments first: what only they and the store had is then given back as a whole.
    removed = prune(parsed.older_than, parsed.cache_dir)
    _print_removed(len(removed), "environment", len(list_environments(parsed.cache_dir)))
    _print_removed(prune_wheels(parsed.older_than, parsed.cache_dir), "wheel", len(list_wheels(parsed.cache_dir)))


def _print_removed(removed: int, what: str, left: int) -> None:
    print(f"Removed {removed} {what}{'' if removed == 1 else 's'}; {left} left")


def _key_folders(cache_dir: str | None) -> Iterator[str]:
    for store in _stores(cache_dir, environment_folder):
        for name in sorted(os.listdir(store)):
            if os.path.isdir(os.path.join(store, name)):
                yield os.path.join(store, name)


def _stores(cache_dir: str | None, find: Callable[[str | None], str]) -> list[str]:
    """Return the folder that ``find`` finds, unless there is no cache yet: it would be made."""
    cache = cache_folder(cache_dir)
    return [] if cache is None or not os.path.isdir(cache) else [find(cache_dir)]


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

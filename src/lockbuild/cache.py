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
from lockbuild.files import open_standard_streams
from lockbuild.locks import DirectoryLock
from lockbuild.paths import disk_use, environment_folder, hosts_folder, key_folders
from lockbuild.settings import duration
from lockbuild.user_folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

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
                size = disk_use(generation.path)
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
    _prune_notes(oldest, cache_dir)
    return removed


def _prune_notes(oldest: float, cache_dir: str | None) -> None:
    """Remove the notes on hook hosts that are older than that; the next build writes one again if it needs it."""
    cache = cache_folder(cache_dir)
    folder = hosts_folder(environment_folder(cache_dir)) if cache and os.path.isdir(cache) else None
    for name in os.listdir(folder) if folder else ():
        path = os.path.join(folder or "", name)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_mtime < oldest:
                os.unlink(path)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the console script ``lockbuild-cache`` and exit: 0, 1 after an error, 2 for wrong usage."""
    open_standard_streams()
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
    from lockbuild.sharing.wheels import list_wheels as list_built_wheels
    from lockbuild.wheels.cached import list_wheels as list_unpacked_wheels

    environments = [
        (
            f"{os.path.basename(each.generation.folder)}/{each.generation.name}",
            *(_mebibytes(each.size), _ago(each.made), _ago(each.last_used)),
            ", ".join(each.packages),
        )
        for each in list_environments(parsed.cache_dir)
    ]
    unpacked = [
        (each.name, _mebibytes(each.size), _ago(each.last_used)) for each in list_unpacked_wheels(parsed.cache_dir)
    ]
    built = [
        (
            os.path.basename(each.path),
            *(_mebibytes(each.size), _ago(each.made), _ago(each.last_used)),
            shown(each.path),
        )
        for each in list_built_wheels(parsed.cache_dir)
    ]
    _print_table(("ENVIRONMENT", "SIZE", "MADE", "LAST USED", "PACKAGES"), environments)
    _print_table(("UNPACKED WHEEL", "SIZE", "LAST USED"), unpacked)
    _print_table(("BUILT WHEEL", "SIZE", "BUILT", "LAST USED", "FILE"), built)
    if not environments and not unpacked and not built:
        print("The cache is empty.")


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"


def _ago(moment: float) -> str:
    return f"{age_in_words(moment)} ago"


def _prune(parsed: argparse.Namespace) -> None:
    from lockbuild.sharing import wheels as built
    from lockbuild.wheels import cached as unpacked

    older_than, cache_dir = parsed.older_than, parsed.cache_dir
    # Environments first: without them the wheels that were built in them are of no use, and what only they and the
    # unpacked wheels had is then given back as a whole.
    _print_removed(len(prune(older_than, cache_dir)), "environment", len(list_environments(cache_dir)))
    _print_removed(unpacked.prune_wheels(older_than, cache_dir), "unpacked wheel", len(unpacked.list_wheels(cache_dir)))
    _print_removed(built.prune_wheels(older_than, cache_dir), "built wheel", len(built.list_wheels(cache_dir)))


def _print_removed(removed: int, what: str, left: int) -> None:
    print(f"Removed {removed} {what}{'' if removed == 1 else 's'}; {left} left")


if __name__ == "__main__":
    main()

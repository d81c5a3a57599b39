"""The console script ``lockbuild-cache``: lists the cache, and removes what is not used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from lockbuild.commands.parser import Parser
from lockbuild.commands.program import run_as_process
from lockbuild.environments.store import age_in_words
from lockbuild.errors import LockbuildError, shown
from lockbuild.garbage_collection import (
    UNUSED_SECONDS,
    list_built_artifacts,
    list_environments,
    list_unpacked_wheels,
    prune_built_artifacts,
    prune_environments,
    prune_left_behind,
    prune_unpacked_wheels,
)
from lockbuild.paths import cache_folder
from lockbuild.settings import duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def entrypoint() -> NoReturn:
    """Run the console script ``lockbuild-cache``."""
    run_as_process(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 for success, 1 for an error. Exits with 2 for wrong usage."""
    parsed = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        parsed.run(parsed)
    except LockbuildError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.filename is None:
            # Of a standard stream.
            raise
        print(f"ERROR {error.strerror}: {error.filename!r}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lockbuild-cache", description="List and clean the cache of lockbuild.")
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="the cache folder (default: LOCKBUILD_CACHE_DIR, else the platform's cache folder)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("dir", help="print the path of the cache folder")
    command.set_defaults(run=_print_folder)
    command = commands.add_parser("list", help="list the contents of the cache")
    command.set_defaults(run=_print_list)
    command = commands.add_parser("prune", help="remove environments and wheels that no build has used for 30 days")
    command.add_argument(
        "--older-than",
        type=duration,
        default=UNUSED_SECONDS,
        metavar="TIME",
        help="remove what no build has used for this long: seconds, or a number followed by s, m, h or d "
        "(default: 30d)",
    )
    command.add_argument(
        "--ci",
        action="store_true",
        help="before CI stores the cache: also remove all but the newest environment for each set of requirements, "
        "and all that is not needed to make these again without a network",
    )
    command.set_defaults(run=_prune)
    command = commands.add_parser("clear", help="remove everything that is not in use")
    command.set_defaults(run=_prune, older_than=-1.0, ci=False)
    return parser


def _print_folder(parsed: argparse.Namespace) -> None:
    print(shown(cache_folder(parsed.cache_dir) or ""))


def _print_list(parsed: argparse.Namespace) -> None:
    environments = [
        (each.name, _mebibytes(each.size), _ago(each.made), _ago(each.last_used), ", ".join(each.packages))
        for each in list_environments(parsed.cache_dir)
    ]
    unpacked = [
        (each.name, _mebibytes(each.size), _ago(each.last_used)) for each in list_unpacked_wheels(parsed.cache_dir)
    ]
    built = [
        (each.name, _mebibytes(each.size), _ago(each.made), _ago(each.last_used), shown(each.path))
        for each in list_built_artifacts(parsed.cache_dir)
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
    older_than, cache_dir = parsed.older_than, parsed.cache_dir
    older_than_for_rest = -1.0 if parsed.ci else older_than
    # Environments first: without its environment, a built wheel is of no use. Files that environments share with
    # unpacked wheels take space until both are removed.
    removed = prune_environments(older_than, cache_dir, only_newest=parsed.ci)
    _print_removed(removed, "environment", len(list_environments(cache_dir)))
    removed = prune_unpacked_wheels(older_than_for_rest, cache_dir)
    _print_removed(removed, "unpacked wheel", len(list_unpacked_wheels(cache_dir)))
    removed = prune_built_artifacts(older_than_for_rest, cache_dir)
    _print_removed(removed, "built wheel", len(list_built_artifacts(cache_dir)))
    if killed := prune_left_behind(older_than, cache_dir):
        print(f"Removed what {killed} killed build{'' if killed == 1 else 's'} had left")


def _print_removed(removed: int, what: str, left: int) -> None:
    print(f"Removed {removed} {what}{'' if removed == 1 else 's'}; {left} left")


if __name__ == "__main__":
    entrypoint()

"""The options of the command line, those of ``build`` and a few more: words in, parsed values out."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from lockbuild import __version__
from lockbuild.settings import (
    DEFAULT_MAX_SDIST_SIZE,
    ENV_MAX_AGE_VARIABLE,
    INSTALLER_VARIABLE,
    LINK_MODE_VARIABLE,
    LOCK_TIMEOUT_VARIABLE,
    REUSE_VARIABLE,
    duration,
    seconds,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# The options that `build` has too, in its order. Only these can be abbreviated: ours would make its abbreviations
# ambiguous, today's or those of a later version.
_BUILD_OPTIONS = (
    *("--help", "--version", "--quiet", "--verbose", "--outdir", "--sdist-extract-dir", "--sdist", "--wheel"),
    *("--metadata", "--report", "--config-setting", "--config-json", "--installer", "--no-isolation", "--env-dir"),
    *("--dependency-constraints-txt", "--skip-dependency-check"),
)


def parse(arguments: Sequence[str], prog: str = "lockbuild") -> argparse.Namespace:
    """Return what words mean. Exits with status 2 where they are wrong usage."""
    parser = make_parser(prog)
    parsed = parser.parse_args(_spelled_out(parser, arguments))
    _check_usage(parser, parsed)
    return parsed


def make_parser(prog: str = "lockbuild") -> argparse.ArgumentParser:
    """Return the parser. Every option of ``build`` is in it, with the same defaults; a test compares the two."""
    more: dict[str, Any] = {"suggest_on_error": True} if sys.version_info >= (3, 14) else {}
    parser = argparse.ArgumentParser(
        prog=prog,
        add_help=False,
        # `parse` completes abbreviations.
        allow_abbrev=False,
        description=(
            "Build a source distribution (sdist) from a source tree, then a wheel from it, as `python -m build` does.\n"
            "Any number of builds may run at once, in one tree or in many: those of setuptools wait for each other.\n\n"
            "With `--sdist` or `--wheel` only that is built, directly from the tree."
        ),
        formatter_class=_make_formatter,
        **more,
    )
    parser.add_argument(
        "srcdir",
        nargs="?",
        default=_working_directory(),
        help="source directory, .tar.gz source distribution, or (with --metadata) a .whl "
        "(default: the current working directory)",
    )
    _add_general_options(parser.add_argument_group("general options"))
    _add_build_options(parser.add_argument_group("build options"))
    _add_environment_options(parser.add_argument_group("build environment options"))
    _add_lock_options(parser.add_argument_group("lock options"))
    _add_sharing_options(parser.add_argument_group("sharing options"))
    return parser


def _make_formatter(prog: str) -> argparse.HelpFormatter:
    # Without a width argparse imports `shutil` for it, and asks for a formatter for each option.
    return argparse.RawDescriptionHelpFormatter(prog, width=_width())


@functools.cache
def _width() -> int:
    """Return how wide help is, as argparse has it: ``COLUMNS``, else the terminal's width, without two columns."""
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
    except (ValueError, OSError):
        columns = 80
    return (columns or 80) - 2


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        # It was removed. That it is no source tree will be said in one line.
        return os.curdir


def _add_general_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help message and exit")
    group.add_argument(
        "--version",
        "-V",
        action="version",
        version=f"lockbuild {__version__} ({os.path.dirname(__file__)})",
        help="show the version and exit",
    )
    verbosity = group.add_mutually_exclusive_group()
    verbosity.add_argument(
        "--quiet", "-q", dest="verbosity", action=_CountDown, default=0, help="show less; twice: only errors"
    )
    verbosity.add_argument(
        "--verbose",
        "-v",
        dest="verbosity",
        action="count",
        default=0,
        help="show more: what is locked and why, and the installer's output",
    )


def _add_build_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--outdir",
        "-o",
        metavar="PATH",
        help="folder for what is built, also spelled --out-dir (default: dist in the source directory)",
    )
    group.add_argument(
        "--sdist-extract-dir",
        metavar="PATH",
        help="unpack the sdist there, and keep it, when a wheel is built from an sdist (default: a temporary folder)",
    )
    group.add_argument(
        "--sdist",
        "-s",
        dest="distributions",
        action="append_const",
        const="sdist",
        help="build a source distribution, directly from the tree",
    )
    group.add_argument(
        "--wheel",
        "-w",
        dest="distributions",
        action="append_const",
        const="wheel",
        help="build a wheel, directly from the tree",
    )
    group.add_argument(
        "--editable",
        dest="distributions",
        action="append_const",
        const="editable",
        help="build an editable wheel, which leads to the tree and is for an installer (PEP 660)",
    )
    group.add_argument(
        "--metadata",
        action="store_true",
        help="print the wheel's metadata as JSON instead of building; not together with --sdist or --wheel",
    )
    group.add_argument(
        "--report",
        metavar="PATH",
        help="write a JSON report of what was built (name, path, kind, size, SHA-256); with - to standard output, and "
        "all other output to standard error",
    )
    group.add_argument(
        "--timings",
        action="store_true",
        help="print how long each step took; with --report, write that into the report, too",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print events, and at last the result or the error, as JSON lines on standard output, and nothing else "
        "there; what hooks print goes to standard error",
    )
    group.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="end the build when standard input ends, as it does when the program that has started it is killed",
    )
    group.add_argument(
        "--clear",
        action="store_true",
        help="once the new artifacts are complete, remove the project's older ones from the output folder",
    )
    settings = group.add_mutually_exclusive_group()
    settings.add_argument(
        "--config-setting",
        "-C",
        dest="config_settings",
        action="append",
        metavar="KEY=[VALUE]",
        help="setting for the backend; may be given several times. For one that begins with a hyphen write "
        "--config-setting=--my-setting or -C--my-setting",
    )
    settings.add_argument("--config-json", metavar="JSON_STRING", help="settings for the backend, as a JSON object")


def _add_environment_options(group: argparse._ArgumentGroup) -> None:
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--installer",
        choices=("pip", "uv"),
        default=os.environ.get(INSTALLER_VARIABLE) or "pip",
        help=f"installer of the build requirements (default: {INSTALLER_VARIABLE}, else pip)",
    )
    kind.add_argument(
        "--no-isolation",
        "-n",
        action="store_true",
        help="build in the environment that lockbuild runs in, which must have the build requirements",
    )
    group.add_argument(
        "--env-dir",
        metavar="PATH",
        help="make the build environment in this folder, which must be empty; it is removed after a success and kept "
        "after a failure",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="make a build environment for this build alone, instead of using one that is kept",
    )
    group.add_argument(
        "--env-max-age",
        type=duration,
        metavar="TIME",
        help="resolve the requirements of a kept build environment again when it is older: seconds, or a number with "
        f"s, m, h or d behind it (default: {ENV_MAX_AGE_VARIABLE}, else 24h)",
    )
    group.add_argument(
        "--refresh", action="store_true", help="resolve the requirements of a kept build environment again"
    )
    group.add_argument(
        "--link-mode",
        choices=("auto", "hardlink", "copy"),
        default=os.environ.get(LINK_MODE_VARIABLE) or "auto",
        help="how wheels get from the cache into a kept build environment; auto is the first of reflink, hard link and "
        f"copy that works (default: {LINK_MODE_VARIABLE}, else auto)",
    )
    group.add_argument(
        "--dependency-constraints-txt", metavar="PATH", help="constraints.txt for the build requirements"
    )
    group.add_argument(
        "--skip-dependency-check",
        "-x",
        action="store_true",
        help="with --no-isolation: do not check that the build requirements are installed",
    )


def _add_lock_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lock",
        choices=("auto", "always", "never"),
        help="lock the source tree; auto does so where a hook may run setuptools (default: tool.lockbuild.lock in "
        "pyproject.toml, else auto)",
    )
    group.add_argument(
        "--lock-timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"give up, with exit status 75, when a lock is not free by then (default: {LOCK_TIMEOUT_VARIABLE}, else "
        "wait for ever)",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="lockbuild's cache folder, for lock files, build environments and wheels (default: LOCKBUILD_CACHE_DIR, "
        "else the platform's place for caches)",
    )


def _add_sharing_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reuse",
        action=argparse.BooleanOptionalAction,
        help="of an sdist, take the wheel that was built of it before with the same settings and environment (default: "
        f"{REUSE_VARIABLE}, else only one whose build was under way)",
    )
    group.add_argument(
        "--coalesce",
        action="store_true",
        help="of a tree, take what another process with --coalesce has begun to build after this one was started",
    )
    group.add_argument(
        "--max-sdist-size",
        type=size,
        metavar="SIZE",
        default=DEFAULT_MAX_SDIST_SIZE,
        help="refuse an sdist that unpacks to more: bytes, or a number with K, M, G or T behind it, or none for no "
        "limit (default: 4G)",
    )


class _CountDown(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, default: int = 0, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, default=default, help=help)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest) - 1)


def _spelled_out(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """
    Complete abbreviated options, and replace uv's ``--out-dir`` by ``--outdir``.

    As a second name in the parser it would make ``--out``, which `build` accepts as an abbreviation, ambiguous.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return [*(_complete(parser, word) for word in options), *arguments[len(options) :]]


def _complete(parser: argparse.ArgumentParser, word: str) -> str:
    option, equals, value = word.partition("=")
    if option == "--out-dir":
        option = "--outdir"
    elif option.startswith("--") and option not in _BUILD_OPTIONS:
        matches = [each for each in _BUILD_OPTIONS if each.startswith(option)]
        if len(matches) > 1:
            parser.error(f"ambiguous option: {word} could match {', '.join(matches)}")
        option = matches[0] if matches else option
    return f"{option}{equals}{value}"


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Exit with status 2 where options exclude each other, in the words of ``build``."""
    if parsed.json and parsed.report == "-":
        parser.error("--report -: not allowed with --json, whose last line is the report")
    if parsed.json:
        # A program is told by the build itself what cannot be: as an event, and in the words of the Python API.
        return
    if parsed.env_dir is not None and parsed.no_isolation:
        parser.error("--env-dir: not allowed with --no-isolation")
    if parsed.report is not None and parsed.metadata:
        parser.error("--report: not allowed with --metadata")
    is_file = os.path.isfile(parsed.srcdir)
    if is_file and parsed.srcdir.lower().endswith(".whl") and not parsed.metadata:
        parser.error("a wheel can only be used with --metadata, to read its metadata; it cannot be built from")
    if parsed.metadata and parsed.distributions:
        parser.error("--metadata: not allowed with --sdist or --wheel")
    if is_file and parsed.srcdir.lower().endswith(".tar.gz") and "sdist" in (parsed.distributions or ()):
        parser.error(
            "cannot build a source distribution from a source distribution; "
            "pass --wheel to build a wheel from the sdist (see https://github.com/pypa/build/issues/311)"
        )
    folders = (parsed.env_dir, parsed.sdist_extract_dir)
    if None not in folders and len({os.path.realpath(folder) for folder in folders}) == 1:
        parser.error("--env-dir and --sdist-extract-dir: each needs a folder of its own")

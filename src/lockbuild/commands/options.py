"""The options of ``lockbuild``: those of ``build`` and a few more."""

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

# The options of `build`, in its order. Only these can be abbreviated: our own would make abbreviations that `build`
# accepts, now or in a later version, ambiguous.
_BUILD_OPTIONS = (
    *("--help", "--version", "--quiet", "--verbose", "--outdir", "--sdist-extract-dir", "--sdist", "--wheel"),
    *("--metadata", "--report", "--config-setting", "--config-json", "--installer", "--no-isolation", "--env-dir"),
    *("--dependency-constraints-txt", "--skip-dependency-check"),
)


def parse(arguments: Sequence[str], prog: str = "lockbuild") -> argparse.Namespace:
    """Parse arguments. Exits with status 2 for wrong usage."""
    parser = make_parser(prog)
    parsed, rest = parser.parse_known_args(_spelled_out(parser, arguments))
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.more_sources = rest
    parsed.words = arguments
    _check_usage(parser, parsed)
    return parsed


def make_parser(prog: str = "lockbuild") -> argparse.ArgumentParser:
    """Return the parser. It has every option of ``build``, with the same default; a test compares the two."""
    more: dict[str, Any] = {"suggest_on_error": True} if sys.version_info >= (3, 14) else {}
    parser = argparse.ArgumentParser(
        prog=prog,
        add_help=False,
        # `parse` completes abbreviations.
        allow_abbrev=False,
        description=(
            "Build a source distribution (sdist) from a source tree, then a wheel from it, as `python -m build` does.\n"
            "Any number of builds may run at once. With setuptools, builds of one tree wait for each other.\n\n"
            "With `--sdist` or `--wheel`, build only that, directly from the tree."
        ),
        formatter_class=_make_formatter,
        **more,
    )
    parser.add_argument(
        "srcdir",
        nargs="?",
        default=_working_directory(),
        help="source directory, .tar.gz source distribution, or (with --metadata) .whl "
        "(default: the current working directory)",
    )
    # argparse would not find further ones after an option.
    parser.set_defaults(more_sources=[])
    _add_general_options(parser.add_argument_group("general options"))
    _add_build_options(parser.add_argument_group("build options"))
    _add_environment_options(parser.add_argument_group("build environment options"))
    _add_lock_options(parser.add_argument_group("lock options"))
    _add_sharing_options(parser.add_argument_group("sharing options"))
    _add_many_options(parser.add_argument_group("options for many builds"))
    return parser


def _make_formatter(prog: str) -> argparse.HelpFormatter:
    # Without a width, argparse imports `shutil` to find one. It makes a formatter for each option.
    return argparse.RawDescriptionHelpFormatter(prog, width=_width())


@functools.cache
def _width() -> int:
    """Return the width of the help as argparse computes it: ``COLUMNS`` or the terminal's width, less two columns."""
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
    except (ValueError, OSError):
        columns = 80
    return (columns or 80) - 2


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        # It was removed. The build will report that this is not a source tree.
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
        help="show more: what lockbuild locks and why, and the installer's output",
    )


def _add_build_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--outdir",
        "-o",
        metavar="PATH",
        help="folder for the artifacts, also spelled --out-dir (default: dist in the source directory)",
    )
    group.add_argument(
        "--sdist-extract-dir",
        metavar="PATH",
        help="when building a wheel from an sdist, unpack the sdist there and keep it (default: a temporary folder)",
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
        help="build an editable wheel, which refers to the tree and is meant for an installer (PEP 660)",
    )
    group.add_argument(
        "--metadata",
        action="store_true",
        help="print the wheel's metadata as JSON instead of building; not allowed with --sdist or --wheel",
    )
    group.add_argument(
        "--report",
        metavar="PATH",
        help="write a JSON report of the artifacts (name, path, kind, size, SHA-256) to this file; - writes it to "
        "standard output, and everything else to standard error",
    )
    group.add_argument(
        "--timings",
        action="store_true",
        help="print how long each step took; with --report, add the times to the report",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print events, then the result or the error, as JSON lines on standard output; the output of hooks goes "
        "to standard error",
    )
    group.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="end the build when standard input ends, which happens when the program that started the build is killed",
    )
    group.add_argument(
        "--clear",
        action="store_true",
        help="remove the project's older artifacts from the output folder once the new ones are complete",
    )
    settings = group.add_mutually_exclusive_group()
    settings.add_argument(
        "--config-setting",
        "-C",
        dest="config_settings",
        action="append",
        metavar="KEY=[VALUE]",
        help="setting for the backend; may be repeated. For one that begins with a hyphen, write "
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
        help="build in the environment that lockbuild runs in, where the build requirements must be installed",
    )
    group.add_argument(
        "--python",
        dest="pythons",
        action="append",
        metavar="PYTHON",
        help="build with this Python, a path or a version, 3.11 or newer; may be repeated: a wheel that serves all of "
        "them is built once (default: the one that runs lockbuild)",
    )
    group.add_argument(
        "--env-dir",
        metavar="PATH",
        help="make the build environment in this folder, which must be empty; lockbuild removes it after a success "
        "and keeps it after a failure",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="make a build environment for this build alone instead of using a kept one",
    )
    group.add_argument(
        "--env-max-age",
        type=duration,
        metavar="TIME",
        help="resolve the requirements again when the kept build environment is older than this: seconds, or a number "
        f"followed by s, m, h or d (default: {ENV_MAX_AGE_VARIABLE}, else 24h)",
    )
    group.add_argument(
        "--refresh", action="store_true", help="resolve the requirements again, even if the kept environment is new"
    )
    group.add_argument(
        "--link-mode",
        choices=("auto", "hardlink", "copy"),
        default=os.environ.get(LINK_MODE_VARIABLE) or "auto",
        help="how to put wheels from the cache into a kept build environment; auto uses the first of reflink, hard "
        f"link and copy that works (default: {LINK_MODE_VARIABLE}, else auto)",
    )
    group.add_argument(
        "--dependency-constraints-txt", metavar="PATH", help="constraints file for the build requirements"
    )
    group.add_argument(
        "--source",
        dest="sources",
        action="append",
        metavar="NAME=WHEEL",
        help="when a build requirement needs this project, install this wheel instead of a release; may be repeated",
    )
    group.add_argument(
        "--skip-dependency-check",
        "-x",
        action="store_true",
        help="with --no-isolation, do not check that the build requirements are installed",
    )


def _add_lock_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lock",
        choices=("auto", "always", "never"),
        help="whether to lock the source tree; auto locks it when a hook may run setuptools (default: "
        "tool.lockbuild.lock in pyproject.toml, else auto)",
    )
    group.add_argument(
        "--lock-timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"give up with exit status 75 when a lock is not free after this time (default: {LOCK_TIMEOUT_VARIABLE}, "
        "else wait forever)",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="folder for lock files, build environments and wheels (default: LOCKBUILD_CACHE_DIR, else the platform's "
        "cache folder)",
    )


def _add_sharing_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reuse",
        action=argparse.BooleanOptionalAction,
        help="when the source is an sdist, take the wheel of an earlier build with the same sdist, settings and "
        f"environment (default: {REUSE_VARIABLE}, else only that of a build that is still running)",
    )
    group.add_argument(
        "--coalesce",
        action="store_true",
        help="when the source is a tree, take the artifact of another --coalesce build that began after this one was "
        "started",
    )
    group.add_argument(
        "--max-sdist-size",
        type=size,
        metavar="SIZE",
        default=DEFAULT_MAX_SDIST_SIZE,
        help="refuse an sdist that unpacks to more than this: bytes, a number followed by K, M, G or T, or none for no "
        "limit (default: 4G)",
    )


def _add_many_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--jobs",
        "-j",
        type=_number_of_jobs,
        metavar="N",
        help="build all sources that are named, N at a time (default for more than one: the number of cores)",
    )
    group.add_argument(
        "--all-packages",
        action="store_true",
        help="build all packages of the workspace that the source directory is in, into its dist",
    )
    group.add_argument(
        "--package",
        dest="packages",
        action="append",
        metavar="NAME",
        help="build this package of the workspace, and those that it needs for its build; may be repeated",
    )
    group.add_argument(
        "--no-sources",
        action="store_true",
        help="do not use the fresh wheels of sources that others require for their build",
    )
    group.add_argument("--fail-fast", action="store_true", help="start no further build after one has failed")
    group.add_argument(
        "--logs", metavar="DIR", help="folder for the log of each build (default: logs in the cache folder)"
    )


def _number_of_jobs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_number_of_jobs.__name__ = "number of jobs"


class _CountDown(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, default: int = 0, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, default=default, help=help)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest) - 1)


def _spelled_out(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """
    Complete abbreviated options, and replace uv's ``--out-dir`` by ``--outdir``.

    In the parser, ``--out-dir`` would make ``--out`` ambiguous, which `build` accepts as an abbreviation.
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


def asks_for_many(parsed: argparse.Namespace) -> bool:
    """Tell whether a command line asks for a run of builds, rather than for one build in this process."""
    several_pythons = len(parsed.pythons or ()) > 1
    return bool(parsed.more_sources or parsed.all_packages or parsed.packages or parsed.jobs or several_pythons)


def without_python(words: Sequence[str]) -> list[str]:
    """Return the words of a command line less the option ``--python``."""
    left = []
    waiting = iter(words)
    for word in waiting:
        if word == "--python":
            next(waiting)
        elif not word.startswith("--python="):
            left.append(word)
        if word == "--":
            return [*left, *waiting]
    return left


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Exit with status 2 for options that exclude each other, in the words of ``build``."""
    if parsed.json and parsed.report == "-":
        parser.error("--report -: not allowed with --json, whose last line is the report")
    if parsed.json:
        # The build itself reports wrong usage to a program, as an event with the message of the Python API.
        return
    if parsed.pythons and parsed.no_isolation:
        parser.error("--python: not allowed with --no-isolation; run lockbuild in the environment of that Python")
    if asks_for_many(parsed):
        for option in ("--metadata", "--env-dir", "--sdist-extract-dir"):
            if getattr(parsed, option[2:].replace("-", "_")):
                parser.error(f"{option}: not allowed with many builds")
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
        parser.error("--env-dir and --sdist-extract-dir: not allowed to be the same folder")

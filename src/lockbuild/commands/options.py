"""The options of ``lockbuild``: those of ``build`` and a few more."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from lockbuild import __version__
from lockbuild.commands.parser import Parser
from lockbuild.request import TREE_MODES
from lockbuild.settings import (
    DEFAULT_MAX_SDIST_SIZE,
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
    parser = Parser(
        prog=prog,
        usage="%(prog)s [options] [srcdir ...]",
        add_help=False,
        description=(
            "Build an sdist from a source tree, then a wheel from it, as `python -m build`\n"
            "does. With --sdist or --wheel, build only that. Any number may run at once."
        ),
        epilog="More: https://lockbuild.readthedocs.io/en/latest/command-line.html",
    )
    parser.add_argument(
        "srcdir", nargs="?", default=_working_directory(), help="a tree (default: .), an sdist, or a wheel"
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


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        # It was removed. The build will report that this is not a source tree.
        return os.curdir


def _add_general_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument(
        "--version",
        "-V",
        action="version",
        version=f"lockbuild {__version__} ({os.path.dirname(os.path.dirname(__file__))})",
        help="show the version and exit",
    )
    verbosity = group.add_mutually_exclusive_group()
    verbosity.add_argument(
        "--quiet", "-q", dest="verbosity", action=_CountDown, default=0, help="show less; twice: only errors"
    )
    verbosity.add_argument(
        "--verbose", "-v", dest="verbosity", action="count", default=0, help="show more: the lock, the installer"
    )


def _add_build_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--outdir", "-o", metavar="PATH", help="folder for artifacts (default: dist)")
    group.add_argument("--sdist-extract-dir", metavar="PATH", help="unpack the sdist there, and keep it")
    group.add_argument(
        "--sdist",
        "-s",
        dest="distributions",
        action="append_const",
        const="sdist",
        help="build an sdist, directly from the tree",
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
        help="build an editable wheel (PEP 660)",
    )
    group.add_argument("--metadata", action="store_true", help="print metadata as JSON, build nothing")
    group.add_argument("--report", metavar="PATH", help="write a JSON report; -: standard output")
    group.add_argument("--timings", action="store_true", help="print how long each step took")
    group.add_argument("--json", action="store_true", help="print events and result as JSON lines")
    group.add_argument("--clear", action="store_true", help="remove older artifacts after a success")
    settings = group.add_mutually_exclusive_group()
    settings.add_argument(
        "--config-setting",
        "-C",
        dest="config_settings",
        action="append",
        metavar="KEY=[VALUE]",
        help="setting for the backend; may be repeated",
    )
    settings.add_argument("--config-json", metavar="JSON_STRING", help="settings for the backend, as JSON")


def _add_environment_options(group: argparse._ArgumentGroup) -> None:
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--installer",
        choices=("pip", "uv"),
        help="installs requirements (default: pip)",
    )
    kind.add_argument("--no-isolation", "-n", action="store_true", help="build in the environment of lockbuild")
    group.add_argument(
        "--python", dest="pythons", action="append", metavar="PYTHON", help="build with this Python; may be repeated"
    )
    group.add_argument("--env-dir", metavar="PATH", help="make the build environment there")
    group.add_argument("--no-cache", action="store_true", help="make an environment for this build only")
    group.add_argument("--env-max-age", type=duration, metavar="TIME", help="resolve again when older (default: 24h)")
    group.add_argument("--refresh", action="store_true", help="resolve the requirements again now")
    group.add_argument(
        "--link-mode",
        choices=("auto", "hardlink", "copy"),
        metavar="MODE",
        help="place wheels by: auto, hardlink, copy",
    )
    group.add_argument("--dependency-constraints-txt", metavar="PATH", help="constraints for the build requirements")
    group.add_argument(
        "--source", dest="sources", action="append", metavar="NAME=WHEEL", help="install this wheel of a requirement"
    )
    group.add_argument(
        "--skip-dependency-check", "-x", action="store_true", help="with -n, do not check the requirements"
    )


def _add_lock_options(group: argparse._ArgumentGroup) -> None:
    modes = ", ".join(TREE_MODES)
    group.add_argument("--tree", choices=TREE_MODES, metavar="MODE", help=f"build in: {modes}")
    group.add_argument("--lock", choices=("auto", "always", "never"), help="whether to lock the tree (default: auto)")
    group.add_argument(
        "--lock-timeout", type=seconds, metavar="SECONDS", help="give up when a lock is not free by then"
    )
    group.add_argument("--cache-dir", metavar="DIR", help="folder for locks, environments, wheels")


def _add_sharing_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--reuse", action=argparse.BooleanOptionalAction, help="of an sdist, take an earlier wheel")
    group.add_argument("--coalesce", action="store_true", help="share a build of the tree with others")
    group.add_argument(
        "--max-sdist-size",
        type=size,
        metavar="SIZE",
        default=DEFAULT_MAX_SDIST_SIZE,
        help="refuse a larger sdist (default: 4G)",
    )


def _add_many_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--jobs", "-j", type=_number_of_jobs, metavar="N", help="build N of the sources at a time")
    group.add_argument("--all-packages", action="store_true", help="build all packages of the workspace")
    group.add_argument(
        "--package", dest="packages", action="append", metavar="NAME", help="build this package and what it needs"
    )
    group.add_argument("--no-sources", action="store_true", help="do not use wheels of this run for others")
    group.add_argument("--fail-fast", action="store_true", help="start no build after one has failed")
    group.add_argument(
        "--executor", type=_dask_address, metavar="dask:ADDR", help="build on the workers of a dask scheduler"
    )
    group.add_argument("--pass-env", action="append", metavar="NAME", help="pass this variable on; may be repeated")
    group.add_argument("--logs", metavar="DIR", help="folder for the log of each build")


def _number_of_jobs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_number_of_jobs.__name__ = "number of jobs"


def _dask_address(text: str) -> str:
    engine, _, address = text.partition(":")
    if engine != "dask" or not address:
        raise ValueError(text)
    return address


_dask_address.__name__ = "executor"


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
    several_sources = parsed.more_sources or parsed.all_packages or parsed.packages
    return bool(several_sources or parsed.jobs or several_pythons or parsed.executor)


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

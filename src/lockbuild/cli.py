"""The command line: words in, a `BuildRequest`, an exit status out. It is that of ``build``, and a little more.

Only what it takes to read the command line is imported here; `_run` imports the frontend. What most builds do without
has modules of its own, which are imported when they are needed: `lockbuild.config_settings`, `lockbuild.failures`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from lockbuild import __version__
from lockbuild.errors import Interrupted, LockbuildError
from lockbuild.settings import (
    DEFAULT_MAX_SDIST_SIZE,
    ENV_MAX_AGE_VARIABLE,
    INSTALLER_VARIABLE,
    LINK_MODE_VARIABLE,
    LOCK_TIMEOUT_VARIABLE,
    REUSE_VARIABLE,
    duration,
    make_request,
    seconds,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from lockbuild.console import Console
    from lockbuild.hooks.early import EarlyHost

# The options that `build` does not have.
_OWN_OPTIONS = frozenset(
    {
        *("--cache-dir", "--clear", "--coalesce", "--env-max-age", "--link-mode", "--lock", "--lock-timeout"),
        *("--max-sdist-size", "--no-cache", "--no-reuse", "--refresh", "--reuse", "--timings"),
    }
)


def main(arguments: Sequence[str] | None = None, prog: str = "lockbuild", early: EarlyHost | None = None) -> NoReturn:
    """
    Run the command line and exit with its status: 0, 1 for a failed build, 2 for wrong usage, 75 for a timeout.

    ``early`` is a hook host that was started in the expectation that the build needs it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(prog)
    parsed = parser.parse_args(_spell_as_build_does(arguments))
    _check_usage(parser, parsed)
    for stream in (sys.stdout, sys.stderr):
        # Paths may hold bytes that are no text; they are shown, not a reason to fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _run(parsed, early)
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def make_parser(prog: str = "lockbuild") -> argparse.ArgumentParser:
    """Return the parser. Every option of ``build`` is in it, with the same defaults; a test compares the two."""
    make: Any = _Parser
    more: dict[str, Any] = {"suggest_on_error": True} if sys.version_info >= (3, 14) else {}
    parser: argparse.ArgumentParser = make(
        prog=prog,
        add_help=False,
        description=(
            "Build a source distribution (sdist) from a source tree, then a wheel from it, as `python -m build` does.\n"
            "Any number of builds may run at once, in one tree or in many: those of setuptools wait for each other.\n\n"
            "With `--sdist` or `--wheel` only that is built, directly from the tree."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


class _Parser(argparse.ArgumentParser):
    """A parser that abbreviates only the options of ``build``; ours would make its abbreviations ambiguous."""

    def _get_option_tuples(self, option_string: str) -> list[tuple[argparse.Action, str, str | None]]:
        found = super()._get_option_tuples(option_string)
        return [match for match in found if not _OWN_OPTIONS.intersection(match[0].option_strings)]


class _CountDown(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, default: int = 0, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, default=default, help=help)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest) - 1)


def _spell_as_build_does(arguments: Sequence[str]) -> list[str]:
    """
    Replace uv's ``--out-dir`` by ``--outdir``.

    As a second name in the parser it would make ``--out``, which `build` accepts as an abbreviation, ambiguous.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    spelled = [
        f"--outdir{word.removeprefix('--out-dir')}" if word == "--out-dir" or word.startswith("--out-dir=") else word
        for word in options
    ]
    return [*spelled, *arguments[len(options) :]]


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Exit with status 2 where options exclude each other, in the words of ``build``."""
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


def _run(parsed: argparse.Namespace, early: EarlyHost | None) -> int:
    from lockbuild.console import Console
    from lockbuild.interruption import interruptible

    _prepare_windows_console()
    # With --quiet their output is dropped, with --metadata it is kept back.
    console = Console(parsed.verbosity, hooks_write=parsed.verbosity >= 0 and not parsed.metadata)
    try:
        with interruptible():
            _build(parsed, console, early)
    except Interrupted as interruption:
        return interruption.exit_status
    except LockbuildError as error:
        console.error(str(error), getattr(error, "__notes__", ()))
        return error.exit_status
    except Exception as error:  # noqa: BLE001 - whatever it is, a person gets one line
        from lockbuild.failures import report_failure

        report_failure(error, parsed, console)
        return 1
    return 0


def _build(parsed: argparse.Namespace, console: Console, early: EarlyHost | None) -> None:
    import time
    import warnings

    # What the interpreter and the imports have taken until now. They do not wait for anything.
    start = time.process_time()
    from lockbuild import frontend
    from lockbuild.request import Timing

    warnings.showwarning = lambda message, *_, **__: console.warn(str(message))
    request = make_request(parsed)
    if parsed.metadata:
        console.result(_as_json(frontend.metadata(request, console)))
        return
    output = None
    if parsed.report == "-":
        # An early host has our standard output already, and would write there.
        output, early = _take_standard_output(), None
    result = frontend.build(request, console, early)
    timings = (Timing("start", start), *result.timings) if parsed.timings else ()
    if parsed.report is not None:
        from lockbuild.artifacts import report, write_report

        content = report(result.artifacts, timings)
        if output is None:
            write_report(parsed.report, content)
        else:
            with output:
                output.write(content)
    console.timings(timings)
    console.built([artifact.name for artifact in result.artifacts])
    if request.isolation and request.use_cache:
        from lockbuild.daily import prune_once_a_day

        prune_once_a_day(request.cache_dir)


def _take_standard_output() -> BinaryIO:
    """Return standard output for the report alone. What else is written there goes to standard error from now on."""
    kept = open(os.dup(1), "wb")  # noqa: SIM115 - for who asked
    os.dup2(2, 1)
    return kept


def _as_json(metadata: bytes) -> str:
    import json

    from packaging.metadata import parse_email

    return json.dumps(parse_email(metadata)[0], ensure_ascii=False, indent=2)


def _prepare_windows_console() -> None:
    if sys.platform == "win32":
        import colorama

        colorama.just_fix_windows_console()

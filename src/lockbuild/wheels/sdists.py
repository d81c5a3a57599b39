"""Build requirements that are only there as sdists: pip finds and unpacks them, and lockbuild builds their wheels.

While pip runs for a build environment, it is told not to isolate builds (``--no-build-isolation``), and the processes
in which it would call the hooks of a backend (PEP 517) become processes of ours. They build the wheel as any sdist is
built: once, however many processes want it at that moment, in a kept build environment, with circles found. What pip
is good at stays its own: which version is taken, whether its hash is right, its cache of wheels that were built before.

The other way would be ``pip download``, and then to build what it leaves. But pip wants metadata before it goes on, and
calls the backend for that, in an environment that it makes for each run; it does not look into its cache of built
wheels then; and the wheel of a backend that has no hook for metadata (meson-python's: numpy, scipy) is built for its
metadata by every run of pip, thrown away, and built once more. Here the wheel is built when pip asks for metadata, and
given to it when it asks for the wheel. What that costs: the wheel of a version that pip then decides against is built,
too.

The protocol is that of pyproject-hooks' own script, ``_in_process.py HOOK FOLDER``, in the source tree: its arguments
are in ``FOLDER/input.json``, and what is returned goes to ``FOLDER/output.json``. A ``.pth`` file in the environment
that is being filled starts us instead of that script. It is there while pip runs, and no hook of the project's own
does. pip keeps to itself what we write; so what a person has to know is passed on through a file beside the
instructions.

The sdist is packed again from what pip has unpacked, in a way that gives the same bytes each time, unless it was a
``.zip``, whose files have no times any more. One that lockbuild does not read is built by pip, as pip would do it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lockbuild.errors import Interrupted, LockbuildError, SdistError
from lockbuild.events import LockWait, Reporter
from lockbuild.interruption import interruptible

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator, Mapping

    from lockbuild.request import BuildRequest

# Set for the pip whose hooks are ours: the path of a file for these. Not for a pip that is run by one of them.
_VARIABLE = "LOCKBUILD_HOOKS_OF_PIP"

# The file of events, beside that.
_EVENTS = "events"

# How often they are passed on, in seconds.
_PASS_ON_SECONDS = 0.1

_INTERCEPTION = (
    f"import os, sys; {_VARIABLE!r} in os.environ and len(sys.orig_argv) == 4"
    " and sys.orig_argv[1].endswith('_in_process.py')"
    " and os._exit(__import__('subprocess').call({command!a} + sys.orig_argv[2:]))\n"
)


class PipCommand(NamedTuple):
    """How pip is run for an environment."""

    words: list[str]
    variables: dict[str, str]
    """What its environment has beside ours."""


@contextlib.contextmanager
def building_for_pip(
    site_packages: str, pip: PipCommand, variables: Mapping[str, str], request: BuildRequest, reporter: Reporter
) -> Iterator[dict[str, str]]:
    """
    Build the sdists that a pip in here asks for; yield the variables that it has to be run with.

    ``site_packages`` is the folder of the environment that it is run for, ``pip`` how it is run. ``variables`` tell
    what is built there of the locks around it. ``request`` is that of the build for which the environment is made,
    whose key is the last of ``request.building``; its ``reporter`` hears of waits and warnings, in another thread.
    """
    of_requirements = request._replace(constraints_file=None, reuse=True, config_settings={}, max_sdist_size=math.inf)
    instructions = {
        "directory": os.getcwd(),
        "environ": {**os.environ, **variables},
        "pip": pip,
        "request": of_requirements._asdict(),
    }
    # Without the working directory on the path: it is the sdist's tree.
    command = [sys.executable, "-P", "-m", "lockbuild.wheels.sdists"]
    interception = os.path.join(site_packages, "lockbuild-hooks.pth")
    with tempfile.TemporaryDirectory(prefix="lockbuild-hooks-", ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "instructions.json")
        with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(instructions, file)
        with open(interception, "x", encoding="ascii") as file:
            file.write(_INTERCEPTION.format(command=command))
        events = os.path.join(folder, _EVENTS)
        open(events, "xb").close()
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            try:
                passing_on = pool.submit(_pass_on, events, reporter, over)
                yield {_VARIABLE: path}
            finally:
                over.set()
                # With all of the cache, somebody may have removed it.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(interception)
            # An exception of the reporter.
            passing_on.result()


def main() -> NoReturn:
    """Answer one call of a hook by pip."""
    hook, folder = sys.argv[1:]
    path = os.environ[_VARIABLE]
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        instructions = json.load(file)
    with open(os.path.join(folder, "input.json"), encoding="utf-8") as file:
        arguments = json.load(file)["kwargs"]
    tree = os.getcwd()
    # As if we had been started by the build for which pip runs: paths are relative to that, and what pip sets for its
    # hooks would be part of the key of the build.
    os.chdir(instructions["directory"])
    os.environ.clear()
    os.environ.update(instructions["environ"])
    # What is left here when this process is killed is removed by the one for which pip runs.
    tempfile.tempdir = os.path.dirname(path)
    from build import BuildBackendException, BuildException, FailedProcessError

    from lockbuild.console import Console
    from lockbuild.request import BuildRequest

    request = BuildRequest(**instructions["request"])
    request = request._replace(building=tuple(request.building))
    pip = PipCommand(*instructions["pip"])
    console = Console(request.verbosity)
    failures = (LockbuildError, BuildException, BuildBackendException, FailedProcessError, OSError)
    try:
        with interruptible():
            reporter = _Requirement(console, os.path.join(os.path.dirname(path), _EVENTS))
            answer = _answer(hook, tree, arguments, pip, request, reporter)
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)
    except (*failures, subprocess.CalledProcessError) as error:
        # pip shows it, with what the backend has written.
        console.error(str(error), getattr(error, "__notes__", ()))
        sys.exit(1)
    with open(os.path.join(folder, "output.json"), "w", encoding="utf-8") as file:
        json.dump({"unsupported": False, "return_val": answer}, file)
    sys.exit(0)


class _Requirement(Reporter):
    """Passes on what somebody who waits wants to know, and leaves the rest to pip, which shows it after a failure."""

    def __init__(self, console: Reporter, events: str) -> None:
        self._events = events
        self.log = console.log  # type: ignore[method-assign]
        self.detail = console.detail  # type: ignore[method-assign]

    def warn(self, message: str) -> None:
        self._write("warn", message)

    def waiting(self, wait: LockWait) -> None:
        self._write("waiting", wait)

    def got_lock(self, subject: str, waited: float) -> None:
        self._write("got_lock", subject, waited)

    def _write(self, method: str, *arguments: object) -> None:
        # One write at the end of the file: pip, and what it builds, may be several processes.
        with open(self._events, "ab", buffering=0) as file:
            file.write(pickle.dumps((method, arguments)))


def _pass_on(events: str, reporter: Reporter, over: threading.Event) -> None:
    """Pass on the events in a file, until it is over."""
    with open(events, "rb") as file:
        while True:
            is_last = over.wait(_PASS_ON_SECONDS)
            position = file.tell()
            # The end of the file, or an event that is just being written.
            with contextlib.suppress(EOFError, pickle.UnpicklingError):
                while True:
                    method, arguments = pickle.load(file)
                    position = file.tell()
                    getattr(reporter, method)(*arguments)
            if is_last:
                return
            file.seek(position)


def _answer(
    hook: str, tree: str, arguments: Mapping[str, Any], pip: PipCommand, request: BuildRequest, reporter: Reporter
) -> object:
    settings = arguments.get("config_settings") or {}
    if hook == "prepare_metadata_for_build_wheel":
        folder = arguments["metadata_directory"]
        return _extract_metadata(_build(tree, folder, settings, pip, request, reporter), folder)
    if hook == "build_wheel":
        folder = arguments["wheel_directory"]
        metadata = arguments.get("metadata_directory")
        built = glob.glob(os.path.join(glob.escape(os.path.dirname(metadata)), "*.whl")) if metadata else []
        wheel = shutil.copy(built[0], folder) if built else _build(tree, folder, settings, pip, request, reporter)
        return os.path.basename(wheel)
    # What it supports beside wheels, and what those require: pip needs neither.
    return []


def _build(
    tree: str,
    out_dir: str,
    config_settings: Mapping[str, Any],
    pip: PipCommand,
    request: BuildRequest,
    reporter: Reporter,
) -> str:
    from lockbuild.frontend import build_shared_wheel

    with tempfile.TemporaryDirectory(prefix="lockbuild-sdist-", ignore_cleanup_errors=True) as folder:
        try:
            archive = _pack(tree, folder)
            return build_shared_wheel(archive, out_dir, request, reporter, config_settings)
        except SdistError as error:
            reporter.detail(f"Having pip build a build requirement: {error}")
    options = [f"--config-settings={name}={value}" for name, value in config_settings.items()]
    words = ["wheel", "--use-pep517", "--no-deps", "--no-input", "--wheel-dir", out_dir, *options, tree]
    subprocess.run([*pip.words, *words], env={**os.environ, **pip.variables}, check=True)
    [wheel] = glob.glob(os.path.join(glob.escape(out_dir), "*.whl"))
    return wheel


def _pack(tree: str, folder: str) -> str:
    """Make an sdist of an unpacked one; return its path. The same files give the same bytes."""
    import gzip
    import tarfile
    from email.parser import HeaderParser

    from packaging.utils import canonicalize_name

    try:
        with open(os.path.join(tree, "PKG-INFO"), encoding="utf-8", errors="replace") as file:
            headers = HeaderParser().parse(file)
    except OSError as error:
        raise SdistError(f"{tree} is no source distribution: {error}") from error
    stem = f"{canonicalize_name(headers['Name'] or '').replace('-', '_')}-{headers['Version']}"
    path = os.path.join(folder, f"{os.path.basename(stem)}.tar.gz")
    with (
        open(path, "xb") as file_of_archive,
        # Its size hardly matters: it is read once and removed.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file_of_archive, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        archive.add(tree, os.path.basename(stem), filter=_without_chance)
    return path


def _without_chance(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take from a member what is another each time that the sdist is unpacked."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    if member.isdir():
        member.mtime = 0
    return member


def _extract_metadata(wheel: str, folder: str) -> str:
    """Extract the ``.dist-info`` folder of a wheel; return its name."""
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.split("/", 1)[0].endswith(".dist-info")]
        archive.extractall(folder, names)
    return names[0].split("/", 1)[0]


if __name__ == "__main__":
    main()

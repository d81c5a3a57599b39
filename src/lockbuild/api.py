"""The Python API: builds, in the calling thread or in an event loop, and the metadata of a project.

`build` runs in the process and thread that call it, and changes neither signal handlers nor the working directory. The
one exception is Ctrl-Z at a terminal, which the main thread handles during a hook, as ``lockbuild`` does. `async_build`
runs the same build in a process of its own, which can be ended at any moment.
"""

from __future__ import annotations

import os
from importlib.metadata import Distribution as InstalledDistribution
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from lockbuild import frontend
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest, BuildResult, Distribution, Installer, LinkMode, LockPolicy, TreeMode
from lockbuild.tool_table import request_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Executor
    from importlib.metadata import PackageMetadata
    from typing import TypeAlias, Unpack

    from lockbuild.many.run import Outcome

    StrPath: TypeAlias = str | os.PathLike[str]


class BuildOptions(TypedDict, total=False):
    """The options of a build. They are fields of `BuildRequest`, which describes them."""

    config_settings: Mapping[str, Any]
    isolation: bool
    skip_dependency_check: bool
    constraints_file: StrPath | None
    installer: Installer
    link_mode: LinkMode
    tree: TreeMode
    env_dir: StrPath | None
    sdist_extract_dir: StrPath | None
    lock: LockPolicy | None
    lock_timeout: float | None
    cache_dir: StrPath | None
    use_cache: bool
    env_max_age: float
    refresh: bool
    preimport: bool
    reuse: bool
    coalesce: bool
    sources: Mapping[str, str | None]
    max_sdist_size: float
    clear: bool
    verbosity: int


def build(
    srcdir: StrPath | BuildRequest,
    distributions: Iterable[Distribution] = (),
    outdir: StrPath | None = None,
    *,
    reporter: Reporter | None = None,
    **options: Unpack[BuildOptions],
) -> BuildResult:
    """
    Build distributions into the out-dir; return the artifacts.

    ``srcdir`` is a source tree, a ``.tar.gz`` sdist, or a `BuildRequest` whose fields the other arguments replace.
    ``distributions`` may contain ``"sdist"``, ``"wheel"`` and ``"editable"``, a wheel that refers to the tree. Each is
    built directly from the tree. By default, an sdist is built, and a wheel from it. ``outdir`` is ``dist`` in the tree
    by default. ``options`` are those of `BuildOptions`. ``reporter`` hears of events in this thread. Hooks write to the
    standard output and error of this process, or nowhere with ``verbosity=-1``.

    Raises `LockbuildError`, `OSError`, and the exceptions of the library ``build`` for a tree, environment or backend
    that fails: ``build.BuildException``, ``build.BuildBackendException``, ``build.FailedProcessError``.
    """
    return frontend.build(_request(srcdir, distributions, outdir, options), reporter)


async def async_build(
    srcdir: StrPath | BuildRequest,
    distributions: Iterable[Distribution] = (),
    outdir: StrPath | None = None,
    *,
    reporter: Reporter | None = None,
    **options: Unpack[BuildOptions],
) -> BuildResult:
    """
    Build as `build` does while the event loop runs on.

    The build runs in a process of its own. On cancellation, its backend has ended and its lock is free before
    `asyncio.CancelledError` is raised. When this process is killed, the build ends as well. ``reporter`` hears of
    events in the event loop. Hooks write to standard error.

    Raises what `build` raises, and `WorkerError` when the process of the build was killed.
    """
    # It imports asyncio.
    from lockbuild.build_process import build_in_process

    return await build_in_process(_request(srcdir, distributions, outdir, options), reporter or Reporter())


def build_many(
    requests: Iterable[BuildRequest],
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    pythons: Iterable[StrPath] = (),
    sources: bool = True,
    fail_fast: bool = False,
    logs: StrPath | None = None,
) -> Iterator[Outcome]:
    """
    Build many sources; yield what has become of each, as they end.

    At most ``jobs`` builds run at a time, by default as many as there are cores, in processes of their own; an
    ``executor`` on this machine may start these. A project that others require for their build is built first, and
    its wheel is used, unless ``sources`` is false. With several ``pythons``, paths or versions, a wheel that serves all
    of them is built once. With ``fail_fast`` no build is started after one has failed. ``logs`` is the folder for the
    log of each build, by default a new one in the cache folder.

    A build that fails is an outcome with an error. When the iterator is closed, running builds are ended; those of an
    executor are waited for. Raises `PlanError` and `PythonNotFoundError` before anything is built.
    """
    # It imports asyncio.
    from lockbuild.many.executors import on_this_machine
    from lockbuild.many.plan import make_plan
    from lockbuild.many.run import Run, RunReporter, iterate
    from lockbuild.other_python import find_python
    from lockbuild.paths import logs_folder

    wanted = list(requests)
    plan = make_plan(wanted, [find_python(os.fspath(each)) for each in pythons], sources=sources)
    if logs is None:
        logs = logs_folder(wanted[0].cache_dir if wanted else None)
    else:
        os.makedirs(logs, exist_ok=True)
    run = Run(plan, on_this_machine(jobs, executor), logs=os.fspath(logs))
    return iterate(run.outcomes(RunReporter(), fail_fast=fail_fast))


def project_wheel_metadata(
    source_dir: StrPath,
    isolated: bool = True,
    *,
    reporter: Reporter | None = None,
    **options: Unpack[BuildOptions],
) -> PackageMetadata:
    """
    Return the metadata of a project's wheel, as ``build.util.project_wheel_metadata`` does.

    ``source_dir`` is a source tree, a ``.tar.gz`` sdist or a wheel. With ``isolated``, the backend runs in a kept build
    environment. Without, it runs in the environment of this interpreter, and build requirements are not checked.
    ``options`` are those of `BuildOptions`. Raises what `build` raises.
    """
    request = _request(source_dir, (), None, {"isolation": isolated, "skip_dependency_check": not isolated, **options})
    return _Metadata(frontend.metadata(request, reporter).decode()).metadata


def _request(
    source: StrPath | BuildRequest,
    distributions: Iterable[Distribution],
    out_dir: StrPath | None,
    options: BuildOptions,
) -> BuildRequest:
    if isinstance(distributions, str):
        raise TypeError(f"distributions must be a sequence of names such as [{distributions!r}], not a string")
    fields = _fields(options)
    if not isinstance(source, BuildRequest):
        # What the tree sets is overridden by what the caller says.
        fields = request_fields(os.fspath(source)) | fields
    if chosen := tuple(distributions):
        fields["distributions"] = chosen
    if out_dir is not None:
        fields["out_dir"] = os.fspath(out_dir)
    request = (
        source._replace(**fields) if isinstance(source, BuildRequest) else BuildRequest(os.fspath(source), **fields)
    )
    if unknown := set(request.distributions).difference(get_args(Distribution)):
        raise ValueError(f"distributions may be {', '.join(get_args(Distribution))}, not {', '.join(sorted(unknown))}")
    return request


def _fields(options: BuildOptions) -> dict[str, Any]:
    if unknown := options.keys() - BuildOptions.__annotations__.keys():
        raise TypeError(f"a build has no option {', '.join(sorted(unknown))}")
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}


class _Metadata(InstalledDistribution):
    """A distribution that consists of its METADATA file alone."""

    def __init__(self, metadata: str) -> None:
        self._metadata = metadata

    def read_text(self, filename: str) -> str | None:
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: StrPath) -> Any:
        raise FileNotFoundError(path)

"""The Python API: a build, waited for in a thread or awaited in an event loop, and the metadata of a project.

`build` runs in the process and thread that calls it and changes neither: no signal handlers, no working directory; only
what the main thread does about Ctrl-Z at a terminal is as in ``lockbuild``. `async_build` runs the same build in a
process of its own, which can be ended at any moment.
"""

from __future__ import annotations

import os
from importlib.metadata import Distribution as InstalledDistribution
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from lockbuild.request import BuildRequest, BuildResult, Distribution, Installer, LinkMode, LockPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import PackageMetadata
    from typing import TypeAlias, Unpack

    from lockbuild.events import Reporter

    StrPath: TypeAlias = str | os.PathLike[str]


class BuildOptions(TypedDict, total=False):
    """What a build may be told beside what it builds: fields of `BuildRequest`, which says what they mean."""

    config_settings: Mapping[str, Any]
    isolation: bool
    skip_dependency_check: bool
    constraints_file: StrPath | None
    installer: Installer
    link_mode: LinkMode
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
    Build what is asked for; return the artifacts, which are then in the out-dir.

    ``srcdir`` is a source tree or a ``.tar.gz`` sdist, or a `BuildRequest`, of which the other arguments replace
    fields. ``distributions`` are ``"sdist"``, ``"wheel"`` and ``"editable"``, a wheel that leads to the tree; each is
    built directly from the tree. Without any, an sdist is built, and a wheel from it. ``outdir`` is by default ``dist``
    in the tree. ``options`` are those of `BuildOptions`. ``reporter`` hears of events in this thread. What hooks print
    goes where this process's output goes, or nowhere with ``verbosity=-1``.

    Raises `LockbuildError`; what the library ``build`` raises for a tree, environment or backend that fails
    (``build.BuildException``, ``build.BuildBackendException``, ``build.FailedProcessError``); and `OSError`.
    """
    from lockbuild import frontend

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

    The build runs in a process of its own. When this is cancelled, its backend is ended and its lock is free before
    `asyncio.CancelledError` is raised, and when this process is killed, the build ends, too. ``reporter`` hears of
    events in the event loop. What hooks print goes to standard error.

    Raises what `build` raises.
    """
    from lockbuild.build_process import build_in_process
    from lockbuild.events import Reporter

    return await build_in_process(_request(srcdir, distributions, outdir, options), reporter or Reporter())


def project_wheel_metadata(
    source_dir: StrPath,
    isolated: bool = True,
    *,
    reporter: Reporter | None = None,
    **options: Unpack[BuildOptions],
) -> PackageMetadata:
    """
    Return the metadata of the wheel that a project would give, as ``build.util.project_wheel_metadata`` does.

    ``source_dir`` is a source tree, a ``.tar.gz`` sdist or a wheel. With ``isolated`` the backend runs in a build
    environment that is kept; without, in the one that runs this, whose packages are not checked. ``options`` are
    those of `BuildOptions`. Raises what `build` raises.
    """
    from lockbuild import frontend

    request = BuildRequest(os.fspath(source_dir), isolation=isolated, skip_dependency_check=not isolated)
    return _Metadata(frontend.metadata(_with_options(request, options), reporter).decode()).metadata


def _request(
    source: StrPath | BuildRequest,
    distributions: Iterable[Distribution],
    out_dir: StrPath | None,
    options: BuildOptions,
) -> BuildRequest:
    request = source if isinstance(source, BuildRequest) else BuildRequest(os.fspath(source))
    if isinstance(distributions, str):
        raise TypeError(f"distributions is a sequence of names, such as [{distributions!r}]")
    if chosen := tuple(distributions):
        request = request._replace(distributions=chosen)
    if unknown := set(request.distributions).difference(get_args(Distribution)):
        raise ValueError(f"distributions are {', '.join(get_args(Distribution))}, not {', '.join(sorted(unknown))}")
    if out_dir is not None:
        request = request._replace(out_dir=os.fspath(out_dir))
    return _with_options(request, options)


def _with_options(request: BuildRequest, options: BuildOptions) -> BuildRequest:
    if unknown := options.keys() - BuildOptions.__annotations__.keys():
        raise TypeError(f"a build has no option {', '.join(sorted(unknown))}")
    fields: dict[str, Any] = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()
    }
    return request._replace(**fields)


class _Metadata(InstalledDistribution):
    """A distribution of which there is nothing but a METADATA file."""

    def __init__(self, metadata: str) -> None:
        self._metadata = metadata

    def read_text(self, filename: str) -> str | None:
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: StrPath) -> Any:
        raise FileNotFoundError(path)

"""A wheel installer: it unpacks each wheel once into a store, and links it from there into environments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from lockbuild.events import Reporter
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.paths import wheel_folder
from lockbuild.wheels.destination import virtual_environment
from lockbuild.wheels.install import install_archives
from lockbuild.wheels.plan import Installation
from lockbuild.wheels.store import WheelStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from lockbuild.request import LinkMode

__all__ = ["install_wheels"]


def install_wheels(
    wheels: Iterable[str | os.PathLike[str]],
    environment: str | os.PathLike[str],
    *,
    hashes: Mapping[str, str] | None = None,
    requested: Collection[str] = (),
    link_mode: LinkMode = "auto",
    installer: str = "lockbuild",
    threads: int = 8,
    cache_dir: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> None:
    """
    Install wheel files into a virtual environment, all of them at once.

    The function resolves, downloads, compiles and uninstalls nothing: ``wheels`` are the paths of all wheels to
    install, dependencies included. It unpacks each one once into lockbuild's cache and links it from there. Calls for
    one environment, from any threads and processes, wait for each other. A file that the environment already has is
    replaced whole; the RECORD of its distribution does not change. Two wheels of one call may have a path with
    different contents. Then the wheel whose name is later in the alphabet wins: ``reporter`` gets a warning, and the
    other wheel's RECORD does not list the path.

    ``environment`` is the folder of the virtual environment. Its interpreter tells where packages belong. ``hashes``
    maps names of wheel files to the SHA-256 that they must have, in hexadecimal; it may leave files out. The
    distributions named in ``requested`` get a file REQUESTED (PEP 376), and all get an INSTALLER that says
    ``installer``. ``link_mode`` ``auto`` is the first of reflink, hard link and copy that works; ``hardlink`` leaves
    out the first, ``copy`` the first two. Replace a linked file; never edit it in place. ``threads`` is how many link.
    ``cache_dir`` is lockbuild's cache folder; ``None`` is ``LOCKBUILD_CACHE_DIR`` or the platform's place for caches.

    Raises `lockbuild.errors.WheelError`, before anything is installed, for a wheel that is damaged, does not have its
    hash, would write outside of the environment or would replace its interpreter; `EnvironmentFolderError` where there
    is no virtual environment; `SourceTreeMovedError` when it was moved or removed during the wait; `CacheFolderError`
    where there is no place for the cache; `LockUnavailableError` where nothing can be locked. After a failure, call
    the function again.
    """
    reporter = reporter or Reporter()
    cache = None if cache_dir is None else os.fspath(cache_dir)
    path = os.fspath(environment)
    installation = Installation(
        destination=virtual_environment(path),
        reporter=reporter,
        link_mode=link_mode,
        installer=installer,
        requested=frozenset(map(canonicalize_name, requested)),
        threads=threads,
    )
    store = WheelStore(wheel_folder(cache), cache, None, reporter)
    with DirectoryLock(LockRequest(path, f"the environment {path}", cache, reporter=reporter)):
        install_archives([os.fspath(wheel) for wheel in wheels], hashes or {}, store, installation)

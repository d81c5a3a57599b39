"""Wheels: unpacked once into a store, and linked from there into environments, in parallel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lockbuild.events import Reporter
from lockbuild.paths import wheel_folder

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

    Nothing is resolved, downloaded, compiled or uninstalled: ``wheels`` are the paths of all that is to be installed,
    dependencies too. Each is unpacked into lockbuild's cache, once, and linked from there. Calls for one environment,
    in any threads and processes, wait for each other. A file that the environment has already is replaced whole; the
    RECORD of the distribution that it came from is left as it is. Where two wheels of one call have a path with
    different contents, the wheel whose name is later in the alphabet has it: ``reporter`` is warned, and the other
    wheel's RECORD does not list the path.

    ``environment`` is the folder of the virtual environment, whose interpreter is asked where packages belong.
    ``hashes`` may have the SHA-256 that a wheel must have, in hexadecimal, by the name of its file. The distributions
    named in ``requested`` get a file REQUESTED (PEP 376), and every one an INSTALLER that says ``installer``.
    ``link_mode`` is how files get there: ``auto`` is the first of reflink, hard link and copy that works, ``hardlink``
    leaves out the first, ``copy`` the first two. A file that is linked must not be edited in place, but replaced.
    ``threads`` is how many link. ``cache_dir`` is lockbuild's cache folder; ``None`` is ``LOCKBUILD_CACHE_DIR`` or the
    platform's place for caches.

    Raises `lockbuild.errors.WheelError`, before anything is installed, for a wheel that is damaged, is not what its
    hash says, would write outside of the environment or would replace its interpreter; `EnvironmentFolderError` where
    there is no virtual environment; `SourceTreeMovedError` when it was moved or removed during the wait;
    `CacheFolderError` where there is no place for the cache; `LockUnavailableError` where nothing can be locked. After
    a failure the installation may be repeated.
    """
    from packaging.utils import canonicalize_name

    from lockbuild.locks import DirectoryLock
    from lockbuild.wheels.destination import virtual_environment
    from lockbuild.wheels.install import install_archives
    from lockbuild.wheels.plan import Installation
    from lockbuild.wheels.store import WheelStore

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
    with DirectoryLock(path, subject=f"the environment {path}", cache_dir=cache, reporter=reporter):
        install_archives([os.fspath(wheel) for wheel in wheels], hashes or {}, store, installation)

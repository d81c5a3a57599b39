"""One process's part in a shared build: it takes the outcome of another process, or builds for the others, too."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from lockbuild.environments.kept import would_be_used
from lockbuild.environments.store import age_in_words
from lockbuild.errors import CacheFolderError, shown
from lockbuild.files import digest_of_file
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.locks.nesting import held_by_ancestor
from lockbuild.paths import builds_folder
from lockbuild.sharing.key import SharingKey, not_shared_because, sharing_key
from lockbuild.sharing.outcomes import (
    Outcome,
    all_builds,
    artifacts_folder,
    begin_build,
    complete_build,
    complete_builds,
    copy_files,
    is_complete,
    note_use,
    remove_build,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lockbuild.environments.store import Generation
    from lockbuild.events import Reporter
    from lockbuild.request import BuildRequest, Distribution
    from lockbuild.sdist import Sdist


def shared_build(
    source: Sdist | str, kind: Distribution, request: BuildRequest, reporter: Reporter
) -> SharedBuild | None:
    """Ask for the build of an sdist or of a source tree. If it cannot be shared, report why and return ``None``."""
    # With --coalesce users expect that builds are shared. Others need no warning.
    tell = reporter.warn if request.coalesce else reporter.detail
    if reason := not_shared_because(request):
        tell(f"Not sharing this build with others: {reason}")
        return None
    key = sharing_key(source, kind, request)
    if key is None:
        tell("Not sharing this build with others: a constraint names a local file, which may change at any time")
        return None
    try:
        folder = os.path.join(builds_folder(request.cache_dir), key.digest)
        os.makedirs(folder, exist_ok=True)
    except CacheFolderError as error:
        tell(f"Not sharing this build with others: {error}")
        return None
    except OSError as error:
        tell(f"Not sharing this build with others: {shown(folder)} cannot be made: {error.strerror}")
        return None
    with contextlib.suppress(FileNotFoundError):
        if enclosing := held_by_ancestor(os.stat(folder)):
            reporter.detail(
                f"Not waiting for {key.subject}: this runs in process {enclosing.holder.pid}, which builds it"
            )
            return None
    return SharedBuild(folder, key, request, reporter)


class SharedBuild:
    """
    A build that several processes may ask for. A process asks by making this object.

    Then it takes `lock`, and calls `take` for an artifact that another process has built. If there is none, it builds
    within `begun`, with `lock` as one of the locks around its hooks, and hands the artifact to `keep`.
    """

    def __init__(self, folder: str, key: SharingKey, request: BuildRequest, reporter: Reporter) -> None:
        self._key = key
        self._request = request
        self._reporter = reporter
        self._too_old = frozenset(_builds_not_to_take(folder, key, request))
        self._build: str | None = None
        self.lock = DirectoryLock(
            LockRequest(
                folder,
                key.subject,
                request.cache_dir,
                request.lock_timeout,
                reporter,
                create=True,
                activity=f"building {key.subject}",
            )
        )

    def take(self, staging: str, oldest_environment: float) -> str | None:
        """
        Copy a kept outcome that equals a build of our own into a folder; return the path of the artifact, or ``None``.

        An environment made before ``oldest_environment``, in seconds since the epoch, is not one that we would use.
        """
        for build, outcome in complete_builds(self.lock.path):
            if build in self._too_old or not all(
                would_be_used(each, oldest_environment, self._request.refresh, self._key.sources)
                for each in outcome.environments
            ):
                continue
            folder = os.path.join(staging, os.path.basename(build))
            artifact = os.path.join(folder, outcome.artifact)
            try:
                copy_files(artifacts_folder(build), folder)
                is_intact = digest_of_file(artifact) == outcome.sha256
                note_use(build)
            except OSError:
                # An outcome that cannot be read counts as missing.
                continue
            if is_intact:
                words = f"which process {outcome.builder} built {age_in_words(outcome.made)} ago"
                self._reporter.log(f"Using {outcome.artifact}, {words}", ("step",))
                return artifact
        return None

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Begin to build; read nothing of the source before. At the end, remove the build if it was not kept."""
        # Without a place for it, on a full disk for example, the build goes on and is not shared.
        with contextlib.suppress(OSError):
            self._build = begin_build(self.lock.path)
        try:
            yield
        finally:
            if self._build is not None:
                remove_build(self._build)

    def keep(self, artifact: str, environments: Collection[Generation | None]) -> None:
        """Keep an artifact and the files beside it. An environment that is not kept is ``None``."""
        kept = tuple(each for each in environments if each is not None)
        if not kept or len(kept) < len(environments):
            self._reporter.detail("Not sharing this build with others: its build environment is not kept")
            return
        build = self._build
        if build is None:
            return
        with contextlib.suppress(OSError):
            folder, name = os.path.split(artifact)
            # No link: the file in the out-dir belongs to its user, who may change it.
            copy_files(folder, artifacts_folder(build))
            sha256 = digest_of_file(os.path.join(artifacts_folder(build), name))
            complete_build(build, Outcome(os.getpid(), time.time(), name, sha256, kept, self._key.is_of_tree))
            self._build = None


def _builds_not_to_take(folder: str, key: SharingKey, request: BuildRequest) -> list[str]:
    if key.is_of_tree:
        return all_builds(folder)
    return [] if request.reuse else [*filter(is_complete, all_builds(folder))]

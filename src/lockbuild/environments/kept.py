"""Build environments that are kept: found in the store, or made once while others wait, and used by many builds.

`kept_environment` is the way from requirements to an environment to run hooks in. Who needs one that is not there yet
takes the key's lock, looks again, and makes it; the others wait for that lock and find it. Different keys have
different locks, so that different environments are made in parallel.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lockbuild.environments.bytecode import keep_verified, verify
from lockbuild.environments.store import (
    Generation,
    Manifest,
    User,
    age_in_words,
    digest_of_contents,
    generations,
    look_at,
    new_generation,
    remove_anything,
    remove_unused,
)
from lockbuild.errors import CacheFolderError, LockbuildError, shown
from lockbuild.locks import DirectoryLock
from lockbuild.locks.nesting import environment_for_hooks, held_by_ancestor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.events import Reporter
    from lockbuild.locks import InheritableLock
    from lockbuild.request import BuildRequest, Installer

# How long to be content with an old environment, after an index could not be reached, before trying again, in seconds.
_TRY_AGAIN_SECONDS = 300.0


class KeptEnvironment:
    """A build environment in the store, while a build uses it. Nothing is ever installed into it."""

    def __init__(self, manifest: Manifest, user: User) -> None:
        self._manifest = manifest
        self.generation: Generation | None = user.generation
        """Where it is kept."""
        self.locks: tuple[InheritableLock, ...] = (user,)
        """What hooks that run in the environment have to inherit."""

    @property
    def python_executable(self) -> str:
        """The interpreter of the environment."""
        return self._manifest.python_executable

    @property
    def requirements(self) -> tuple[str, ...]:
        """What was asked for when it was made."""
        return self._manifest.requirements

    def make_extra_environ(self) -> dict[str, str]:
        """Return the variables that isolate hooks, the same that `build` sets."""
        path = os.environ.get("PATH")
        scripts = self._manifest.scripts
        return {"PATH": scripts if path is None else os.pathsep.join((scripts, path)), "PYTHONPATH": ""}

    def required_versions(self) -> Mapping[str, str]:
        """Return the installed versions of the distributions that the requirements name."""
        return self._manifest.required

    def has(self, name: str) -> bool:
        """Tell whether a distribution is installed, by its normalized name."""
        return name in self._manifest.packages


@contextmanager
def kept_environment(
    store: str,
    key: EnvironmentKey,
    requirements: Collection[str],
    constraints: str,
    request: BuildRequest,
    outer_locks: Sequence[InheritableLock],
    reporter: Reporter,
    oldest: float,
    on_candidate: Callable[[KeptEnvironment], object],
) -> Iterator[KeptEnvironment]:
    """
    Yield the environment that is kept under a key, made if it was not there, for as long as the build uses it.

    One that was made before ``oldest``, in seconds since the epoch, is made again.
    ``on_candidate`` is told of one that will be it, if it turns out that it was not changed or removed, or can be
    completed: backends may be imported there already, but no hook may run. Raises what `build` raises when it cannot be
    made, `LockTimeoutError` when another process makes it for too long.
    """
    folder = os.path.join(store, key.digest)
    found = _find(folder, oldest, reporter, on_candidate)
    if found is None:
        found = _make(folder, key, requirements, constraints, request, outer_locks, reporter, oldest, on_candidate)
    else:
        reporter.log(_describe_reuse(found[0]), ("step",))
    manifest, user = found
    try:
        yield KeptEnvironment(manifest, user)
    finally:
        verify(user.generation)
        user.end()


def would_be_used(generation: Generation, oldest: float, refresh: bool) -> bool:
    """
    Tell whether a build that began now would use this very environment.

    ``oldest`` is as for `kept_environment`; with ``refresh`` an older one does not do while an index is out of reach.
    """
    newest = next(((each, m) for each in generations(generation.folder) if (m := each.read_manifest())), None)
    if newest is None or newest[0] != generation:
        return False
    is_old = not _is_recent(newest[1], oldest) and (refresh or not _was_unreachable_lately(generation.folder))
    return not is_old and _is_unchanged(*newest)


def _find(
    folder: str,
    oldest: float,
    reporter: Reporter,
    on_candidate: Callable[[KeptEnvironment], object],
) -> tuple[Manifest, User] | None:
    """Find the newest complete and unchanged environment that was not made before ``oldest``, and begin to use it."""
    for generation in generations(folder):
        manifest = generation.read_manifest()
        if manifest is None or not _is_recent(manifest, oldest):
            continue
        user = User(generation)
        on_candidate(KeptEnvironment(manifest, user))
        if not user.begin():
            continue
        with contextlib.suppress(OSError):
            # What vanishes or cannot be read has changed.
            digest, bytecode = look_at(generation.path)
            if digest == manifest.contents and os.path.exists(manifest.python_executable):
                if keep_verified(generation, bytecode):
                    # A hook host that `on_candidate` has started may have read it, and hang.
                    user.disown_heirs()
                return manifest, user
        user.end()
        reporter.log(
            f"The build environment {generation.path} was changed since it was made; it is replaced", ("step",)
        )
    return None


def _make(
    folder: str,
    key: EnvironmentKey,
    requirements: Collection[str],
    constraints: str,
    request: BuildRequest,
    outer_locks: Sequence[InheritableLock],
    reporter: Reporter,
    oldest: float,
    on_candidate: Callable[[KeptEnvironment], object],
) -> tuple[Manifest, User]:
    """Make an environment under its key's lock, unless another process has while we waited for that."""
    subject = f"the build environment for {', '.join(key.requirements) or 'no requirements'}"
    with contextlib.suppress(FileNotFoundError):
        if around := held_by_ancestor(os.stat(folder)):
            # The installer of this environment builds a requirement, whose backend runs us for a project that needs the
            # same one. We would wait for that installer, which waits for us.
            raise LockbuildError(
                f"The build requirements form a circle: {shown(subject)} is needed to build a requirement of itself, "
                f"for process {around.holder.pid}, which is making it"
            )
    if not os.path.isdir(folder):
        # A file in its place is not ours.
        remove_anything(folder)
    lock = DirectoryLock(
        folder,
        subject=subject,
        cache_dir=request.cache_dir,
        timeout=request.lock_timeout,
        reporter=reporter,
        create=True,
    )
    with lock:
        if found := _find(folder, oldest, reporter, on_candidate):
            reporter.log(_describe_reuse(found[0]), ("step",))
            return found
        older = next(((g, m) for g in generations(folder) if (m := g.read_manifest()) and _is_unchanged(g, m)), None)
        if older and not request.refresh and _was_unreachable_lately(folder):
            return _use_older(*older, reporter)
        # What a killed maker has left, and what was changed.
        remove_unused(folder, keep=lambda generation: older is not None and generation == older[0])
        from lockbuild.build_library import forward_log
        from lockbuild.environments.populate import InstallerOutput, InstallRequest, populate

        generation = new_generation(folder)
        heard = InstallerOutput(reporter)
        user = None
        try:
            with forward_log(heard, request.verbosity):
                variables = _variables_for_installer([*outer_locks, lock])
                wanted = InstallRequest(requirements, constraints, request, variables, reporter, key.from_folders)
                manifest = populate(generation, wanted)
            if not os.path.exists(manifest.python_executable):
                # An installer has made the rest of it anew.
                raise _removed(generation)
            user = User(generation)
            # A backend is imported on one core, while the other one does the rest.
            on_candidate(KeptEnvironment(manifest, user))
            manifest = _complete(generation, manifest, request.installer)
        except BaseException as error:
            if user is not None:
                user.end()
            if isinstance(error, Exception) and not os.path.exists(folder):
                raise _removed(generation) from error
            import shutil

            shutil.rmtree(generation.path, ignore_errors=True)
            if isinstance(error, OSError) and error.errno and error.filename is None:
                # A full disk: what could not be written to has no name any more.
                raise CacheFolderError(f"{shown(generation.path)} cannot be made: {error.strerror}") from error
            if older and isinstance(error, subprocess.CalledProcessError) and heard.index_was_unreachable:
                _note_unreachable(folder)
                return _use_older(*older, reporter)
            raise
        if not user.begin():
            raise _removed(generation)
        remove_unused(folder, keep=lambda each: each == generation)
        return manifest, user


def _complete(generation: Generation, manifest: Manifest, installer: Installer) -> Manifest:
    """
    Complete an environment that has its files; return its whole manifest.

    Where uv could not clone them it has linked them to its own cache, which is not ours: whoever edited a file here
    would edit it there, and the environment that replaces the changed one would have the edit, too. To have uv copy
    them would take as long, while nothing else can be done.
    """
    if installer == "uv":
        from lockbuild.wheels.links import separate

        separate(generation.path)
    manifest = manifest._replace(contents=digest_of_contents(generation.path))
    generation.write_manifest(manifest)
    return manifest


def _variables_for_installer(locks: Sequence[InheritableLock]) -> dict[str, str]:
    """
    Return the variables that an installer and what it starts have to know.

    An sdist that is built for the environment may itself run lockbuild: that has to know the ``locks`` around it. And
    an environment of symbolic links would not be whole without uv's cache. Clones share nothing but blocks. Where uv
    makes hard links instead, for want of them, that is seen to afterwards (`_complete`).
    """
    variables = environment_for_hooks([lock.held for lock in locks if lock.held])
    if os.environ.get("UV_LINK_MODE") != "copy":
        variables["UV_LINK_MODE"] = "clone"
    return variables


def _is_recent(manifest: Manifest, oldest: float) -> bool:
    """Tell whether an environment was made since ``oldest``. What a clock that was ahead has made is too old."""
    return oldest <= manifest.made <= time.time()


def _is_unchanged(generation: Generation, manifest: Manifest) -> bool:
    try:
        return os.path.exists(manifest.python_executable) and digest_of_contents(generation.path) == manifest.contents
    except OSError:
        # Something in it vanished or cannot be read.
        return False


def _use_older(generation: Generation, manifest: Manifest, reporter: Reporter) -> tuple[Manifest, User]:
    user = User(generation)
    if not user.begin():
        raise _removed(generation)
    reporter.warn(
        f"The index cannot be reached; using the build environment made {age_in_words(manifest.made)} ago "
        f"({_versions(manifest)})"
    )
    return manifest, user


def _removed(generation: Generation) -> CacheFolderError:
    return CacheFolderError(f"{shown(generation.path)} was removed meanwhile; is somebody removing the cache?")


def _describe_reuse(manifest: Manifest) -> str:
    versions = _versions(manifest)
    return f"Using the build environment made {age_in_words(manifest.made)} ago{f' ({versions})' if versions else ''}"


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.required.items())


def _note_unreachable(folder: str) -> None:
    # A folder in its place does as well; without a note the next build asks the index again.
    with contextlib.suppress(OSError), open(os.path.join(folder, "unreachable"), "w", encoding="utf-8"):
        pass


def _was_unreachable_lately(folder: str) -> bool:
    try:
        return 0 <= time.time() - os.stat(os.path.join(folder, "unreachable")).st_mtime < _TRY_AGAIN_SECONDS
    except FileNotFoundError:
        return False

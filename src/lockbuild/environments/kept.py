"""Build environments that are kept: found in the store, or made once while others wait, and used by many builds.

`kept_environments` is the way from requirements to an environment to run hooks in. A build that finds none takes the
key's lock, looks again, and makes it. The other builds wait for that lock and find it. Different keys have different
locks, so that different environments are made in parallel.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, TypeVar

from lockbuild.environments.bytecode import keep_verified, verify
from lockbuild.environments.contents import has_new_files, look_at
from lockbuild.environments.local import digest_of_sources
from lockbuild.environments.store import (
    Generation,
    Manifest,
    User,
    age_in_words,
    generations,
    new_generation,
    remove_unused,
)
from lockbuild.errors import CacheFolderError, InstallerError, LockbuildError, shown
from lockbuild.files import remove_anything
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.locks.nesting import environment_for_hooks, held_by_ancestor

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

    from lockbuild.environments.fresh import FreshEnvironment
    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.events import Reporter
    from lockbuild.locks import InheritableLock
    from lockbuild.request import Installer

E = TypeVar("E", "KeptEnvironment", "FreshEnvironment")

# How long to be content with an old environment, after an index could not be reached, before trying again, in seconds.
_TRY_AGAIN_SECONDS = 300.0


class KeptEnvironment:
    """
    A build environment in the store that a build is about to use, and uses until `__exit__`.

    Nothing is ever installed into it.
    """

    is_kept = True

    def __init__(self, generation: Generation, manifest: Manifest) -> None:
        self._manifest = manifest
        self._user = User(generation)
        self._was_used = False
        self._folders: Mapping[str, int] | None = None
        """The times of change of its folders when this build began; ``None`` if it has made them."""
        self.generation: Generation | None = generation
        """Where it is kept."""
        self.locks: tuple[InheritableLock, ...] = (self._user,)
        """What hooks that run in the environment have to inherit."""

    def begin(self) -> bool:
        """Begin to use it; false when it is not complete any more."""
        self._was_used = self._user.begin()
        return self._was_used

    def is_unchanged(self) -> bool:
        """
        Tell whether it is what it was when it was made. Bytecode that no build has verified is removed.

        Raises `OSError` when it vanishes or cannot be read.
        """
        generation = self._user.generation
        contents = look_at(generation.path)
        if contents.digest != self._manifest.contents or not os.path.exists(self.python_executable):
            return False
        self._folders = contents.folders
        if keep_verified(generation, contents.bytecode):
            # A hook host that was started here already may have read it, and hang.
            self._user.disown_heirs()
        return True

    def __exit__(self, *_: object) -> None:
        """End the use."""
        if self._was_used and (self._folders is None or has_new_files(self._folders)):
            verify(self._user.generation)
        self._user.end()

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

    def install(self, requirements: Collection[str]) -> bool:  # noqa: ARG002
        """Refuse."""
        return False


def kept_environments(
    store: str, key: EnvironmentKey, wanted: EnvironmentRequest
) -> Generator[KeptEnvironment, None, None]:
    """
    Yield environments that may be the one that is kept under a key. The last one is; it is made if it was not there.

    See `lockbuild.environments.candidate_environments`. Raises what `build` raises when it cannot be made,
    `LockTimeoutError` when another process makes it for too long.
    """
    folder = os.path.join(store, key.digest)
    changed: set[Generation] = set()
    if not (yield from _find(folder, key, wanted, changed)):
        yield from _make(folder, key, wanted, changed)


def handed_over(environment: E) -> Generator[E, None, None]:
    """Yield an environment as the last candidate. Its use ends here only if the caller fails meanwhile."""
    with contextlib.ExitStack() as stack:
        stack.push(environment.__exit__)
        yield environment
        stack.pop_all()


def would_be_used(generation: Generation, oldest: float, refresh: bool, sources: Collection[str]) -> bool:
    """
    Tell whether a build that began now would use this very environment.

    ``oldest`` is as in `EnvironmentRequest`; with ``refresh`` an older one does not do while an index is out of reach.
    ``sources`` are those of its key.
    """
    newest = next(_complete_ones(generation.folder), None)
    if newest is None or newest[0] != generation:
        return False
    is_old = not _is_recent(newest[1], oldest) and (refresh or not _was_unreachable_lately(generation.folder))
    return not is_old and _is_reusable(*newest, sources)


def _find(
    folder: str, key: EnvironmentKey, wanted: EnvironmentRequest, changed: set[Generation]
) -> Generator[KeptEnvironment, None, bool]:
    """
    Yield complete environments that are new enough, the newest first, until one can be used; tell whether one can.

    Those that have been ``changed`` are added to that set, and are not looked at again.
    """
    for generation, manifest in _complete_ones(folder):
        if generation in changed or not _is_recent(manifest, wanted.oldest):
            continue
        with contextlib.ExitStack() as stack:
            environment = KeptEnvironment(generation, manifest)
            stack.push(environment.__exit__)
            yield environment
            if not environment.begin():
                continue
            change = "it was changed since it was made"
            # What vanishes or cannot be read has changed.
            with contextlib.suppress(OSError):
                if environment.is_unchanged():
                    if _is_made_of(manifest, key.sources):
                        wanted.reporter.log(_describe_reuse(manifest), ("step",))
                        # The caller ends the use.
                        stack.pop_all()
                        return True
                    change = "local distributions that it was made of were changed"
        changed.add(generation)
        wanted.reporter.log(f"Replacing the build environment {generation.path}: {change}", ("step",))
    return False


def _make(
    folder: str, key: EnvironmentKey, wanted: EnvironmentRequest, changed: set[Generation]
) -> Generator[KeptEnvironment, None, None]:
    """Make an environment under its key's lock, unless another process has while we waited for that."""
    subject = f"the build environment for {', '.join(key.requirements) or 'no requirements'}"
    with contextlib.suppress(FileNotFoundError):
        if enclosing := held_by_ancestor(os.stat(folder)):
            # The installer of this environment builds a requirement, whose backend runs us for a project that needs the
            # same one. We would wait for that installer, which waits for us.
            raise LockbuildError(
                f"The build requirements form a circle: {shown(subject)} is needed to build a requirement of itself, "
                f"for process {enclosing.holder.pid}, which is making it"
            )
    if not os.path.isdir(folder):
        # A file in its place is not ours.
        remove_anything(folder)
    build = wanted.build
    request = LockRequest(folder, subject, build.cache_dir, build.lock_timeout, wanted.reporter, create=True)
    with DirectoryLock(request) as lock:
        if (yield from _find(folder, key, wanted, changed)):
            return
        older = next((each for each in _complete_ones(folder) if _is_reusable(*each, key.sources)), None)
        if older and not wanted.build.refresh and _was_unreachable_lately(folder):
            yield from handed_over(_use_older(*older, wanted.reporter))
            return
        # What a killed maker has left, and what was changed.
        remove_unused(folder, keep=lambda generation: older is not None and generation == older[0])
        from lockbuild.environments.populate import populate

        generation = new_generation(folder)
        try:
            with _making(generation), contextlib.ExitStack() as stack:
                manifest = populate(generation, wanted, key, _variables_for_installer([*wanted.outer_locks, lock]))
                if not os.path.exists(manifest.python_executable):
                    # Another process has removed the cache, and the installer has made parts of it again.
                    raise _removed(generation)
                environment = KeptEnvironment(generation, manifest)
                stack.push(environment.__exit__)
                # A backend is imported on one core, while the other one does the rest.
                yield environment
                _complete(generation, manifest, wanted.build.installer)
                if not environment.begin():
                    raise _removed(generation)
                # The caller ends the use.
                stack.pop_all()
        except InstallerError as error:
            if older is None or not error.is_unreachable:
                raise
            _note_unreachable(folder)
            yield from handed_over(_use_older(*older, wanted.reporter))
            return
        remove_unused(folder, keep=lambda each: each == generation)


@contextlib.contextmanager
def _making(generation: Generation) -> Iterator[None]:
    """Remove a generation that cannot be completed, and have system errors name a file."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and not os.path.exists(generation.folder):
            raise _removed(generation) from error
        import shutil

        shutil.rmtree(generation.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # A full disk: what could not be written to has no name any more.
            raise OSError(error.errno, error.strerror, generation.path) from error
        raise


def _complete(generation: Generation, manifest: Manifest, installer: Installer) -> None:
    """
    Complete an environment that has its files.

    Where uv cannot clone files, it links them to its own cache. An edit here would then be an edit there, and the
    environment that replaces the edited one would have it again. So each file gets an inode of its own. If uv copied
    them itself, that would take as long, and the hook host could not start meanwhile.
    """
    if installer == "uv":
        from lockbuild.wheels.links import separate

        separate(generation.path)
    generation.write_manifest(manifest._replace(contents=look_at(generation.path).digest))


def _variables_for_installer(locks: Sequence[InheritableLock]) -> dict[str, str]:
    """
    Return the variables for an installer and the builds that it starts.

    An sdist that is built for the environment may itself run lockbuild, which has to know the ``locks`` around it.
    uv is told to clone files: an environment of symbolic links would depend on uv's cache. `_complete` replaces the
    hard links that uv makes where it cannot clone.
    """
    variables = environment_for_hooks([lock.held for lock in locks if lock.held])
    if os.environ.get("UV_LINK_MODE") != "copy":
        variables["UV_LINK_MODE"] = "clone"
    return variables


def _complete_ones(folder: str) -> Iterator[tuple[Generation, Manifest]]:
    """Yield the complete environments in a key's folder, the newest first."""
    for generation in generations(folder):
        if manifest := generation.read_manifest():
            yield generation, manifest


def _is_recent(manifest: Manifest, oldest: float) -> bool:
    """Tell whether an environment was made since ``oldest``. One from the future was not."""
    return oldest <= manifest.made <= time.time()


def _is_reusable(generation: Generation, manifest: Manifest, sources: Collection[str]) -> bool:
    try:
        is_unchanged = look_at(generation.path).digest == manifest.contents
    except OSError:
        # Something in it vanished or cannot be read.
        return False
    return is_unchanged and os.path.exists(manifest.python_executable) and _is_made_of(manifest, sources)


def _is_made_of(manifest: Manifest, sources: Collection[str]) -> bool:
    """Tell whether these local distributions are still those that an environment was made of."""
    return manifest.sources == digest_of_sources(sources, manifest.packages)


def _use_older(generation: Generation, manifest: Manifest, reporter: Reporter) -> KeptEnvironment:
    environment = KeptEnvironment(generation, manifest)
    with contextlib.ExitStack() as stack:
        stack.push(environment.__exit__)
        if not environment.begin() or not environment.is_unchanged():
            raise _removed(generation)
        # The caller ends the use.
        stack.pop_all()
    reporter.warn(
        f"The index cannot be reached; using the build environment made {age_in_words(manifest.made)} ago "
        f"({_versions(manifest)})"
    )
    return environment


def _removed(generation: Generation) -> CacheFolderError:
    return CacheFolderError(f"{shown(generation.path)} was removed meanwhile; start the build again")


def _describe_reuse(manifest: Manifest) -> str:
    versions = _versions(manifest)
    return f"Using the build environment made {age_in_words(manifest.made)} ago{f' ({versions})' if versions else ''}"


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.required.items())


def _note_unreachable(folder: str) -> None:
    # Without the note the next build asks the index again. A folder of this name serves as one.
    with contextlib.suppress(OSError), open(os.path.join(folder, "unreachable"), "w", encoding="utf-8"):
        pass


def _was_unreachable_lately(folder: str) -> bool:
    try:
        return 0 <= time.time() - os.stat(os.path.join(folder, "unreachable")).st_mtime < _TRY_AGAIN_SECONDS
    except FileNotFoundError:
        return False

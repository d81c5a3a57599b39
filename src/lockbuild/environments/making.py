"""Makes build environments for the store, under the lock of their key.

An environment may be changed, or its store moved, after its requirements were resolved. Then it is made again of the
same wheels, as long as the store has them unpacked: that takes no installer, index or network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from lockbuild.environments.contents import digest_of_contents, look_at
from lockbuild.environments.kept import (
    KeptEnvironment,
    complete_ones,
    handed_over,
    is_made_of,
    is_reusable,
    note_unreachable,
    versions_in_words,
    was_unreachable_lately,
)
from lockbuild.environments.populate import populate
from lockbuild.environments.store import Generation, Manifest, age_in_words, generations, new_generation, remove_unused
from lockbuild.errors import CacheFolderError, InstallerError, shown
from lockbuild.locks.nesting import environment_for_hooks

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Sequence

    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.events import Reporter
    from lockbuild.locks import DirectoryLock, InheritableLock


def make_again(lock: DirectoryLock, key: EnvironmentKey, wanted: EnvironmentRequest) -> bool:
    """
    Make an environment of the wheels of the newest resolution, if none can be used; tell whether one was made.

    It is as old as that resolution. Only under the lock of the key's folder.
    """
    folder = lock.path
    known = None if _reusable(folder, key.sources) else _newest_resolution(folder, key.sources)
    if known is None:
        return False
    resolved, resolution = known
    if not resolution.wheels:
        return False
    # Not for uv, whose environments have no such wheels: these take longer than all the rest of this.
    from lockbuild.environments.resolve import can_fill_again
    from lockbuild.wheels.store import WheelMissingError

    if not can_fill_again(wanted, resolution.wheels):
        return False
    remove_unused(folder, keep=lambda each: each == resolved)
    generation = new_generation(folder)
    wanted.reporter.log("Making the build environment again from the same wheels", ("step",))
    with contextlib.suppress(WheelMissingError), _making(generation):
        manifest = populate(generation, wanted, key, {}, resolution)
        _complete(generation, manifest)
        remove_unused(folder, keep=lambda each: each == generation)
        return True
    return False


def make(
    lock: DirectoryLock, key: EnvironmentKey, wanted: EnvironmentRequest
) -> Generator[KeptEnvironment, None, None]:
    """
    Resolve the requirements, and yield an environment for them; an older one if the index cannot be reached.

    Only under the lock of the key's folder.
    """
    folder = lock.path
    older = _reusable(folder, key.sources)
    if older and not wanted.build.refresh and was_unreachable_lately(folder):
        yield from handed_over(_use_older(*older, wanted.reporter))
        return
    # What a killed maker has left, and what was changed.
    remove_unused(folder, keep=lambda generation: older is not None and generation == older[0])
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
            _complete(generation, manifest)
            if not environment.begin():
                raise _removed(generation)
            # The caller ends the use.
            stack.pop_all()
    except InstallerError as error:
        if older is None or not error.is_unreachable:
            raise
        note_unreachable(folder)
        yield from handed_over(_use_older(*older, wanted.reporter))
        return
    remove_unused(folder, keep=lambda each: each == generation)


def _reusable(folder: str, sources: Collection[str]) -> tuple[Generation, Manifest] | None:
    return next((each for each in complete_ones(folder) if is_reusable(*each, sources)), None)


def _newest_resolution(folder: str, sources: Collection[str]) -> tuple[Generation, Manifest] | None:
    """Return the newest resolution into wheels of the store, even if the environment itself cannot be used."""
    for generation in generations(folder):
        manifest = generation.read_resolution()
        if manifest and manifest.wheels is not None and is_made_of(manifest, sources):
            return generation, manifest
    return None


@contextlib.contextmanager
def _making(generation: Generation) -> Iterator[None]:
    """Remove a generation that cannot be completed, and have system errors name a file."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and not os.path.exists(generation.folder):
            raise _removed(generation) from error
        shutil.rmtree(generation.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # A full disk: what could not be written to has no name any more.
            raise OSError(error.errno, error.strerror, generation.path) from error
        raise


def _complete(generation: Generation, manifest: Manifest) -> None:
    """Complete an environment that has its files."""
    seen = look_at(generation.path).digest
    generation.write_manifest(manifest._replace(seen=seen, contents=digest_of_contents(generation.path)))


def _variables_for_installer(locks: Sequence[InheritableLock]) -> dict[str, str]:
    """
    Return the variables for an installer and the builds that it starts.

    An sdist that is built for the environment may itself run lockbuild, which has to know the ``locks`` around it.
    uv is told to copy files, which it does by cloning them where the file system can. An environment of symbolic links
    would depend on uv's cache. Of hard links, an edit here would be an edit there, and the environment that replaces
    the edited one would have it again.
    """
    return {**environment_for_hooks([lock.held for lock in locks if lock.held]), "UV_LINK_MODE": "copy"}


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
        f"({versions_in_words(manifest)})"
    )
    return environment


def _removed(generation: Generation) -> CacheFolderError:
    return CacheFolderError(f"{shown(generation.path)} was removed meanwhile; start the build again")

"""The environments in which hooks run: one from the store, one made for this build, or the one that runs lockbuild.

A build that finds none in the store takes the key's lock, looks again, and makes it. The other builds wait for that
lock and find it. Different keys have different locks, so that different environments are made in parallel.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from lockbuild.environments.kept import (
    KeptEnvironment,
    complete_ones,
    handed_over,
    is_made_of,
    is_recent,
    versions_in_words,
)
from lockbuild.environments.key import environment_key
from lockbuild.environments.store import age_in_words
from lockbuild.errors import CacheFolderError, LockbuildError, shown
from lockbuild.files import remove_anything
from lockbuild.hooks import HookEnvironment
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.locks.nesting import held_by_ancestor
from lockbuild.paths import environment_folder, wheel_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping
    from types import TracebackType

    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.environments.store import Generation, Manifest
    from lockbuild.locks import InheritableLock


class BuildEnvironment(HookEnvironment, Protocol):
    """A place for hooks to run in; a context manager that ends its use. `build` calls this an isolated environment."""

    locks: tuple[InheritableLock, ...]
    """What hooks have to keep, so that no process removes the environment under them."""

    @property
    def generation(self) -> Generation | None:
        """Where it is kept; ``None`` for one that is made for one build."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What was asked for when it was made."""

    def required_versions(self) -> Mapping[str, str]:
        """Return the installed versions of the distributions that the requirements name, by normalized name."""

    def has(self, name: str) -> bool:
        """Tell whether a distribution is installed, by its normalized name."""

    def install(self, requirements: Collection[str]) -> bool:
        """Install more requirements; false for an environment that is kept, which never changes."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """End the use."""


def candidate_environments(wanted: EnvironmentRequest) -> Generator[BuildEnvironment, None, None]:
    """
    Yield environments that may be the one in which the wanted requirements are installed. The last one is.

    The caller can use the time in which the next step of this looks at the one that it was given: backends may be
    imported there already, but no hook may run. The use of the last one is the caller's to end.

    It comes from the store, unless the user or the requirements forbid it, or the store cannot be used; then it is made
    for this build alone.
    """
    requirements = {*wanted.requirements}
    while True:
        with_wheels = wanted.with_wheels_for(requirements)
        environment = None
        with contextlib.closing(_candidates(with_wheels)) as candidates:
            for environment in candidates:
                yield environment
        assert environment is not None
        # A distribution from an index may require a project of this run, too. Only now that is known.
        indirect = [name for name in wanted.build.sources if name not in with_wheels.wheels and environment.has(name)]
        if not indirect:
            return
        environment.__exit__(None, None, None)
        requirements.update(indirect)


def _candidates(wanted: EnvironmentRequest) -> Generator[BuildEnvironment, None, None]:
    request = wanted.build
    if request.use_cache and request.env_dir is None:
        try:
            store = environment_folder(request.cache_dir)
            if request.installer == "pip":
                # Wheels come from there.
                wheel_folder(request.cache_dir)
        except CacheFolderError as error:
            wanted.reporter.warn(f"Not keeping the build environment: {error}")
        else:
            if key := environment_key(
                wanted.requirements, wanted.constraints, request.installer, _digests_of(wanted.wheels)
            ):
                try:
                    yield from _kept(os.path.join(store, key.digest), key, wanted)
                    return
                except OSError as error:
                    # For example, its disk or inode table is full. There may be room for one in another place.
                    wanted.reporter.warn(
                        f"Not keeping the build environment: {shown(error.filename or store)} cannot be used: "
                        f"{error.strerror}"
                    )
    from lockbuild.environments.fresh import FreshEnvironment

    yield from handed_over(FreshEnvironment(wanted).__enter__())


def _digests_of(wheels: Mapping[str, str]) -> Mapping[str, str]:
    if not wheels:
        return {}
    from lockbuild.environments.source_wheels import digests_of

    return digests_of(wheels)


def _kept(folder: str, key: EnvironmentKey, wanted: EnvironmentRequest) -> Generator[KeptEnvironment, None, None]:
    """
    Yield environments that may be the one that is kept in the folder of a key. The last one is.

    Raises what `build` raises when it cannot be made, `LockTimeoutError` when another process makes it for too long.
    """
    changed: set[Generation] = set()
    if (yield from _find(folder, key, wanted, changed)):
        return
    with _lock(folder, key, wanted) as lock:
        # Another process may have made it while we waited.
        if (yield from _find(folder, key, wanted, changed)):
            return
        from lockbuild.environments.making import make, make_again

        if make_again(lock, key, wanted) and (yield from _find(folder, key, wanted, changed)):
            return
        yield from make(lock, key, wanted)


def _find(
    folder: str, key: EnvironmentKey, wanted: EnvironmentRequest, changed: set[Generation]
) -> Generator[KeptEnvironment, None, bool]:
    """
    Yield complete environments that are new enough, the newest first, until one can be used; tell whether one can.

    Those that have been ``changed`` are added to that set, and are not looked at again.
    """
    for generation, manifest in complete_ones(folder):
        if generation in changed or not is_recent(manifest, wanted.oldest):
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
                    if is_made_of(manifest, key.sources):
                        wanted.reporter.log(_describe_reuse(manifest), ("step",))
                        # The caller ends the use.
                        stack.pop_all()
                        return True
                    change = "local distributions that it was made of were changed"
        changed.add(generation)
        wanted.reporter.log(f"Replacing the build environment {generation.path}: {change}", ("step",))
    return False


def _lock(folder: str, key: EnvironmentKey, wanted: EnvironmentRequest) -> DirectoryLock:
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
    return DirectoryLock(
        LockRequest(folder, subject, build.cache_dir, build.lock_timeout, wanted.reporter, create=True)
    )


def _describe_reuse(manifest: Manifest) -> str:
    versions = versions_in_words(manifest)
    return f"Using the build environment made {age_in_words(manifest.made)} ago{f' ({versions})' if versions else ''}"

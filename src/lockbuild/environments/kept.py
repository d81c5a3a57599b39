"""A build environment in the store: its use by one build, and what makes one fit for use.

`lockbuild.environments` finds one, and `lockbuild.environments.making` makes one.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, TypeVar

from lockbuild.environments.bytecode import keep_verified, verify
from lockbuild.environments.contents import digest_of_contents, has_new_files, look_at
from lockbuild.environments.local import digest_of_sources
from lockbuild.environments.store import (
    Generation,
    Manifest,
    User,
    generations,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping

    from lockbuild.environments.fresh import FreshEnvironment
    from lockbuild.locks import InheritableLock

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
        self.revision = 0
        self._folders: Mapping[str, int] | None = None
        """The times of change of its folders when this build began; ``None`` if it has made them."""
        self.generation: Generation | None = generation
        """Where it is kept."""
        self.locks: tuple[InheritableLock, ...] = (self._user,)
        """What hooks that run in the environment have to keep."""

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
        if not _has_its_contents(generation, self._manifest, contents.digest):
            return False
        if contents.digest != self._manifest.seen:
            # It came out of an archive. A remover that looks for users meanwhile finds this one, and writes the
            # manifest again. On a full disk the next build reads the files once more.
            self._manifest = self._manifest._replace(seen=contents.digest)
            with contextlib.suppress(OSError):
                generation.write_manifest(self._manifest)
        self._folders = contents.folders
        if keep_verified(generation, contents.bytecode):
            # A hook host that was started here already may have read it, and hang.
            self.revision += 1
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
    newest = next(complete_ones(generation.folder), None)
    if newest is None or newest[0] != generation:
        return False
    is_old = not is_recent(newest[1], oldest) and (refresh or not was_unreachable_lately(generation.folder))
    return not is_old and is_reusable(*newest, sources)


def complete_ones(folder: str) -> Iterator[tuple[Generation, Manifest]]:
    """Yield the complete environments in a key's folder, the newest first."""
    for generation in generations(folder):
        if manifest := generation.read_manifest():
            yield generation, manifest


def is_recent(manifest: Manifest, oldest: float) -> bool:
    """Tell whether an environment was made since ``oldest``. One from the future was not."""
    return oldest <= manifest.made <= time.time()


def is_reusable(generation: Generation, manifest: Manifest, sources: Collection[str]) -> bool:
    """Tell whether an environment is what it was when it was made, of local distributions that are the same."""
    try:
        is_unchanged = _has_its_contents(generation, manifest, look_at(generation.path).digest)
    except OSError:
        # Something in it vanished or cannot be read.
        return False
    return is_unchanged and is_made_of(manifest, sources)


def _has_its_contents(generation: Generation, manifest: Manifest, seen: str) -> bool:
    is_unchanged = seen == manifest.seen or digest_of_contents(generation.path) == manifest.contents
    return is_unchanged and os.path.exists(manifest.python_executable)


def is_made_of(manifest: Manifest, sources: Collection[str]) -> bool:
    """Tell whether these local distributions are still those that an environment was made of."""
    return manifest.sources == digest_of_sources(sources, manifest.packages)


def versions_in_words(manifest: Manifest) -> str:
    """Return the versions of what was required."""
    return ", ".join(f"{name} {version}" for name, version in manifest.required.items())


def note_unreachable(folder: str) -> None:
    """Note that the index could not be reached for the environments of this key."""
    # Without the note the next build asks the index again. A folder of this name serves as one.
    with contextlib.suppress(OSError), open(os.path.join(folder, "unreachable"), "w", encoding="utf-8"):
        pass


def was_unreachable_lately(folder: str) -> bool:
    """Tell whether the index could not be reached within the last five minutes."""
    try:
        return 0 <= time.time() - os.stat(os.path.join(folder, "unreachable")).st_mtime < _TRY_AGAIN_SECONDS
    except FileNotFoundError:
        return False

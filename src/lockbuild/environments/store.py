"""The store of build environments: each is made once, under a lock, found complete or not at all, and never changed.

In the folder of a key:

    <generation>/        the environment; its path stays the same as long as it is used
    <generation>.json    its manifest, written last: an environment without one is not there
    <generation>.users/  a file for each build that runs in it, locked by that build
    <generation>.bytecode  the bytecode that builds have left in it: see `lockbuild.environments.bytecode`

To make one, a build takes the key's lock. It removes folders without a manifest and users, which a killed build has
left. It makes the environment in a new generation, and renames the manifest to its name last.

To use one, a build takes no lock that others wait for. Two processes can be at odds: one begins to use a generation
while the other one removes it. The user first locks its file in ``.users`` and then looks for the manifest. The remover
first removes the manifest and then looks for users. The later of the two sees the other.

Hook processes get copies of a user's lock, as of that of a source tree. So an environment is in use until the last hook
has ended, even if the frontend was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.files import above_standard_streams, read_json, remove_anything, write_json
from lockbuild.locks.kernel import LocksUnsupportedError, left_behind, try_to_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


# Seconds since the epoch that no clock has, and more digits than the milliseconds of any have.
_LATEST = 1e11
_DIGITS = 19


class Manifest(NamedTuple):
    """What is known of a complete environment."""

    made: float
    """When its requirements were resolved, in seconds since the epoch."""
    python_executable: str
    scripts: str
    requirements: tuple[str, ...]
    packages: Mapping[str, str]
    """Versions by normalized name."""
    contents: str
    """A digest of its files when it was complete: see `digest_of_contents`."""
    sources: str
    """A digest of the local distributions that it was made of: see `lockbuild.environments.local`."""
    required: Mapping[str, str] = {}
    """Of the packages, those that the requirements name."""
    wheels: Mapping[str, str] | None = None
    """The SHA-256 of each wheel that it was filled with, by the name of its file; ``None`` for what an installer has
    installed itself. They are in the store of unpacked wheels."""
    seen: str = ""
    """The digest of `Contents` when its files last were those of ``contents``."""


class Generation(NamedTuple):
    """One environment in the folder of its key."""

    folder: str
    name: str

    @property
    def path(self) -> str:
        """The environment."""
        return os.path.join(self.folder, self.name)

    @property
    def manifest_path(self) -> str:
        """The file that makes it complete."""
        return f"{self.path}.json"

    @property
    def users_path(self) -> str:
        """The folder of its users' files. Its time of change is that of the last use."""
        return f"{self.path}.users"

    def read_manifest(self) -> Manifest | None:
        """Return the manifest, or ``None`` while there is none, or where it is damaged or of another version."""
        manifest = self.read_resolution()
        return manifest if manifest and self._has(manifest) else None

    def read_resolution(self) -> Manifest | None:
        """Return the manifest even if the whole store was moved: it still says what the requirements resolved to."""
        try:
            content = read_json(self.manifest_path)
            manifest = Manifest(**{**content, "requirements": tuple(content["requirements"])})
        except (TypeError, KeyError):
            return None
        return manifest if _is_sound(manifest) else None

    def _has(self, manifest: Manifest) -> bool:
        """Tell whether the interpreter that a manifest names lies in this environment, under any path to it."""
        scripts, interpreter = os.path.split(manifest.python_executable)
        if scripts != manifest.scripts or not interpreter.startswith("python") or "\0" in interpreter + scripts:
            return False
        inside = scripts == os.path.normpath(scripts) and scripts.startswith(self.path + os.sep)
        return inside or os.path.realpath(scripts).startswith(os.path.realpath(self.path) + os.sep)

    def write_manifest(self, manifest: Manifest) -> None:
        """Complete the environment."""
        write_json(self.manifest_path, manifest._asdict())

    def is_used(self) -> bool:
        """Tell whether a build runs in it. Remove the files of users that have ended; the last use stays the same."""
        used = False
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            before = os.stat(self.users_path)
            names = os.listdir(self.users_path)
            for name in names:
                used |= is_locked(os.path.join(self.users_path, name))
            if names and not used:
                os.utime(self.users_path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return used

    def last_used(self) -> float:
        """Return when a build last began or ended to use it, in seconds since the epoch."""
        try:
            return os.stat(self.users_path).st_mtime
        except OSError:
            return 0.0

    def remove(self) -> bool:
        """Remove it, unless a build uses it; then it stays complete. Only under the key's lock."""
        manifest = self.read_manifest()
        remove_anything(self.manifest_path)
        if self.is_used():
            if manifest is not None:
                self.write_manifest(manifest)
            return False
        remove_anything(self.path)
        # Including the hidden file of a process that was killed in `write_manifest`.
        for name in os.listdir(self.folder):
            if name.startswith(f"{self.name}."):
                remove_anything(os.path.join(self.folder, name))
        return True


class User:
    """
    The use of a generation by one build: a locked file.

    To `HookRunner` it is a lock like any other: hooks get its descriptor.
    """

    held = None

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._path = os.path.join(generation.users_path, f"{os.getpid()}-{os.urandom(4).hex()}")
        self._descriptor: int | None = self._open()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open file that carries the lock."""
        return () if self._descriptor is None else (self._descriptor,)

    def leave_to_heirs(self) -> None:
        """Leave the file to hooks that may still run: other processes find it locked until they have ended."""
        self._path = ""

    def begin(self) -> bool:
        """Begin to use the generation; false when it is not complete any more."""
        while self._descriptor is not None:
            # On a file system without locks no process can tell whether this one has ended, and none removes the file.
            locked = True
            with contextlib.suppress(LocksUnsupportedError):
                locked = try_to_lock(self._descriptor)
            is_complete = os.path.exists(self.generation.manifest_path)
            # Checked last: between our open and our lock another process may have removed the file, because it was not
            # locked, or the folder, because it found no user in there yet.
            with contextlib.suppress(FileNotFoundError):
                if locked and os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                    if is_complete:
                        return True
                    break
            os.close(self._descriptor)
            self._descriptor = self._open()
        self.end()
        return False

    def _open(self) -> int | None:
        try:
            try:
                # The folder may be removed in the middle of this.
                os.makedirs(self.generation.users_path, exist_ok=True)
            except FileExistsError:
                # A file in its place is no user's.
                with contextlib.suppress(OSError):
                    os.unlink(self.generation.users_path)
                    os.mkdir(self.generation.users_path)
            opened = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            return above_standard_streams(opened)
        except (FileNotFoundError, NotADirectoryError):
            # The environment is being removed.
            return None

    def end(self) -> None:
        """End the use."""
        if self._descriptor is not None:
            if self._path:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = None


def generations(folder: str) -> list[Generation]:
    """Return the generations in a key's folder, complete or not, the newest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = {name.partition(".")[0] for name in os.listdir(folder)}
        return [Generation(folder, name) for name in sorted(names, key=_number, reverse=True) if _number(name) >= 0]
    return []


def new_generation(folder: str) -> Generation:
    """
    Return the generation that is to be made next. Only under the key's lock.

    No name is used a second time: an installer may have outlived its maker, which was killed, and still write there.
    """
    known = generations(folder)
    return Generation(folder, str(max(time.time_ns() // 1_000_000, int(known[0].name) + 1 if known else 1)))


def remove_unused(folder: str, keep: Callable[[Generation], bool]) -> list[Generation]:
    """Remove the generations in a key's folder that are neither used nor to be kept. Only under the key's lock."""
    return [found for found in generations(folder) if not keep(found) and found.remove()]


def _is_sound(manifest: Manifest) -> bool:
    """Tell whether each field of a manifest has its type. What NaN is compared with is false."""
    texts: list[object] = [manifest.python_executable, manifest.scripts, manifest.contents, manifest.sources]
    texts.append(manifest.seen)
    texts += manifest.requirements
    for versions in (manifest.packages, manifest.required, {} if manifest.wheels is None else manifest.wheels):
        if not isinstance(versions, dict):
            return False
        texts += [*versions, *versions.values()]
    return isinstance(manifest.made, float) and 0 < manifest.made < _LATEST and all(isinstance(t, str) for t in texts)


def age_in_words(made: float) -> str:
    """Return how long ago something was made, in the largest unit that fits."""
    seconds = max(0.0, time.time() - made)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_locked(path: str) -> bool:
    """Tell whether the process that has a file locked as long as it lives still does; else the file is removed."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), left_behind(path) as descriptor:
        if descriptor is None:
            return True
        with contextlib.suppress(OSError):
            os.unlink(path)
    return False


def _number(name: str) -> int:
    return int(name) if name.isascii() and name.isdigit() and len(name) < _DIGITS else -1

"""The store of unpacked wheels: each is unpacked once, under a lock, and found complete or not at all.

In ``<cache>/wheels``, for each wheel by the SHA-256 of its file:

    <sha256>/<name>/         its files, a folder for each scheme
    <sha256>/manifest.json   which <name> it is and what is in it, written last. Its time of change is that of the
                             last use
    <sha256>/bytecode.json   the environments that have it, and may have bytecode of it: see `lockbuild.wheels.bytecode`

Who links from it holds no lock. The wheel may be removed meanwhile, or be unpacked again under another name, because
somebody has edited a file through its hard link in an environment. Either is noticed file by file, by
`WheelChangedError`; then the wheel file, which is at hand for as long as an installation lasts, is unpacked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockbuild.digest import digest_of_file
from lockbuild.errors import LockTimeoutError, WheelError
from lockbuild.locks import DirectoryLock
from lockbuild.wheels.unpack import EntryPoint, StoredFile, UnpackedWheel, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockbuild.events import Reporter

# The form of a manifest. One of another form is not there.
_FORMAT = 1

# So many wheels are unpacked under their locks at a time.
_AT_ONCE = 32


class WheelChangedError(Exception):
    """A file of an unpacked wheel is not what it was when it was unpacked, or is gone."""

    def __init__(self, wheel: UnpackedWheel) -> None:
        self.wheel = wheel
        super().__init__(wheel.path)


@dataclass(frozen=True)
class WheelStore:
    """The store, for one user of it."""

    folder: str
    cache_dir: str | None
    """Where its locks are."""
    lock_timeout: float | None
    reporter: Reporter

    def add(
        self, archives: Sequence[str], hashes: Mapping[str, str] | None = None, threads: int = 1
    ) -> list[UnpackedWheel]:
        """
        Return wheel files unpacked, by whoever was first.

        ``hashes`` may have the SHA-256 that a file must have, in hexadecimal, by its name. Raises `WheelError`,
        `LockTimeoutError`.
        """
        with ThreadPoolExecutor(threads) as pool:
            digests = list(pool.map(digest_of_file, archives))
            for archive, digest in zip(archives, digests, strict=True):
                expected = (hashes or {}).get(os.path.basename(archive), digest)
                if digest != expected:
                    raise WheelError(archive, f"its SHA-256 is {digest}, and has to be {expected}")
            by_digest = dict(zip(digests, archives, strict=True))
            found = {digest: self._find(digest) for digest in by_digest}
            # In the order of the digests: two processes that lack the same wheels cannot wait for each other in a
            # circle. They wait in this thread, which a signal can interrupt. A few at a time, because of open files.
            missing = sorted(digest for digest, wheel in found.items() if wheel is None)
            for first in range(0, len(missing), _AT_ONCE):
                batch = missing[first : first + _AT_ONCE]
                with contextlib.ExitStack() as locks:
                    for digest in batch:
                        locks.enter_context(self._lock(digest, by_digest[digest]))
                    unpacked = pool.map(lambda digest: self._find_or_unpack(digest, by_digest[digest]), batch)
                    found.update(zip(batch, unpacked, strict=True))
        return [wheel for digest in digests if (wheel := found[digest])]

    def repair(self, archive: str, wheel: UnpackedWheel) -> UnpackedWheel:
        """Return a wheel unpacked again, unless somebody else has done so since it was found to be changed."""
        digest = os.path.basename(os.path.dirname(wheel.path))
        with self._lock(digest, archive):
            found = self._find(digest)
            return found if found and _is_unchanged(found) else _unpack_anew(archive, self._folder(digest))

    def _folder(self, digest: str) -> str:
        return os.path.join(self.folder, digest)

    def _lock(self, digest: str, archive: str) -> DirectoryLock:
        return DirectoryLock(
            self._folder(digest),
            subject=f"the unpacked wheel {os.path.basename(archive)}",
            cache_dir=self.cache_dir,
            timeout=self.lock_timeout,
            reporter=self.reporter,
            create=True,
        )

    def _find(self, digest: str) -> UnpackedWheel | None:
        wheel = read(self._folder(digest))
        if wheel:
            with contextlib.suppress(OSError):
                os.utime(_manifest_path(self._folder(digest)))
        return wheel

    def _find_or_unpack(self, digest: str, archive: str) -> UnpackedWheel:
        return self._find(digest) or _unpack_anew(archive, self._folder(digest))


def read(folder: str) -> UnpackedWheel | None:
    """Return the wheel in the folder of its digest; ``None`` while it is not complete."""
    try:
        with open(_manifest_path(folder), encoding="utf-8") as file:
            content = json.load(file)
        if content.pop("format") != _FORMAT:
            return None
        content["path"] = os.path.join(folder, content["path"])
        content["folders"] = tuple(
            (scheme, below, tuple(StoredFile(*each) for each in files)) for scheme, below, files in content["folders"]
        )
        content["entry_points"] = tuple(EntryPoint(*each) for each in content["entry_points"])
        return UnpackedWheel(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check(wheel: UnpackedWheel, file: StoredFile, path: str) -> None:
    """Raise `WheelChangedError` when a file in the store was edited through one of its other names, or is gone."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        raise WheelChangedError(wheel) from None
    if (status.st_size, status.st_mtime_ns, status.st_mode & 0o7777) != (file.size, wheel.mtime_ns, file.mode):
        raise WheelChangedError(wheel)


def last_used(folder: str) -> float:
    """Return when the wheel in the folder of its digest was last installed, in seconds since the epoch."""
    try:
        return os.stat(_manifest_path(folder)).st_mtime
    except FileNotFoundError:
        return 0.0


def remove_if_unused(folder: str, cache_dir: str | None, oldest: float) -> bool:
    """
    Remove the wheel in the folder of its digest if it was last used before ``oldest``, in seconds since the epoch.

    Environments that have it keep their files. One that is just being unpacked is left alone, and for one that is just
    being linked the linker makes up, see above. Returns whether there was one to remove.
    """
    if last_used(folder) > oldest:
        return False
    with contextlib.suppress(LockTimeoutError), DirectoryLock(folder, cache_dir=cache_dir, timeout=0, create=True):
        if last_used(folder) <= oldest:
            was_complete = os.path.exists(_manifest_path(folder))
            # First, so that nobody finds the half that is left when this is killed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_manifest_path(folder))
            shutil.rmtree(folder, ignore_errors=True)
            return was_complete
    return False


def _unpack_anew(archive: str, folder: str) -> UnpackedWheel:
    """Unpack a wheel file beside what is there, then let its manifest name it. Only under the wheel's lock."""
    name = os.urandom(4).hex()
    os.mkdir(os.path.join(folder, name))
    try:
        wheel = unpack(archive, os.path.join(folder, name))
    except BaseException:
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        raise
    write_beside(_manifest_path(folder), {"format": _FORMAT, **vars(wheel), "path": name})
    # What a process that was killed has left, and what was changed. Somebody may just be linking the latter.
    for other in os.listdir(folder):
        path = os.path.join(folder, other)
        if other != name and os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
    return wheel


def write_beside(path: str, content: object) -> None:
    """Write JSON that is whole whenever somebody reads it."""
    hidden = f"{path}.{os.urandom(4).hex()}"
    with open(hidden, "x", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(hidden, path)


def _is_unchanged(wheel: UnpackedWheel) -> bool:
    try:
        for scheme, below, files in wheel.folders:
            for file in files:
                check(wheel, file, os.path.join(wheel.path, scheme, below, file.name))
    except WheelChangedError:
        return False
    return True


def _manifest_path(folder: str) -> str:
    return os.path.join(folder, "manifest.json")

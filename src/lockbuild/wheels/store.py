"""The store of unpacked wheels: each is unpacked once, under a lock, and found complete or not at all.

In ``<cache>/wheels``, for each wheel by the SHA-256 of its file:

    <sha256>/<name>/         its files, a folder for each scheme
    <sha256>/manifest.json   which <name> it is and what is in it, written last. Its time of change is that of the
                             last use

A process that links from it holds no lock. The wheel may be removed meanwhile, or be unpacked again under another name,
because a file was edited through its hard link in an environment. `WheelChangedError` says so, file by file; then the
wheel file, which is at hand for as long as an installation lasts, is unpacked again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lockbuild.errors import WheelError
from lockbuild.files import digest_of_file, read_json, write_json
from lockbuild.locks import DirectoryLock
from lockbuild.wheels.destination import SCHEMES, is_plain
from lockbuild.wheels.unpack import EntryPoint, StoredFile, UnpackedWheel, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lockbuild.events import Reporter

# The form of a manifest. One of another form is not there.
_FORMAT = 1

# So many wheels are unpacked under their locks at a time.
_AT_ONCE = 32


class WheelChangedError(Exception):
    """A file of an unpacked wheel is not what it was when it was unpacked, or was removed."""

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
        Return wheel files unpacked, by this process or by another one that was first.

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
        """Return a wheel unpacked again, unless another process has done so since it was found to be changed."""
        digest = os.path.basename(os.path.dirname(wheel.path))
        with self._lock(digest, archive):
            found = self._find(digest)
            return found if found and _is_unchanged(found) else _unpack_anew(archive, self._folder(digest))

    def _folder(self, digest: str) -> str:
        return os.path.join(self.folder, digest)

    def _lock(self, digest: str, archive: str) -> DirectoryLock:
        folder = self._folder(digest)
        if not _is_folder(folder):
            # A file or a link, from a damaged disk or a backup. The lock would follow the link. This never removes the
            # folder that another process has made here since we looked: it is no file.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                os.unlink(folder)
        return DirectoryLock(
            folder,
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
    """Return the wheel in the folder of its digest; ``None`` when it is not complete or its manifest is damaged."""
    if not _is_folder(folder):
        return None
    try:
        content = read_json(_manifest_path(folder))
        if content.pop("format") != _FORMAT:
            return None
        content["folders"] = tuple(
            (scheme, below, tuple(StoredFile(*each) for each in files)) for scheme, below, files in content["folders"]
        )
        content["entry_points"] = tuple(EntryPoint(*each) for each in content["entry_points"])
        wheel = UnpackedWheel(**content)
        if not _is_sound(wheel):
            return None
        return replace(wheel, path=os.path.join(folder, wheel.path))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_sound(wheel: UnpackedWheel) -> bool:
    """Tell whether what a manifest says has the right types, and paths that stay below the folder of the wheel."""
    files = [file for _, _, files in wheel.folders for file in files]
    folders = [below for _, below, _ in wheel.folders]
    points = wheel.entry_points
    texts = [wheel.version, *folders, *(file.digest for file in files), *(text for point in points for text in point)]
    numbers = [wheel.mtime_ns, *(number for file in files for number in (file.size, file.mode))]
    names = [wheel.path, wheel.name, wheel.info, *(file.name for file in files), *(point.name for point in points)]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(map(is_plain, names))
        and all(is_plain(part) for below in folders if below for part in below.split("/"))
        and wheel.root in {"purelib", "platlib"}
        and {scheme for scheme, _, _ in wheel.folders} <= set(SCHEMES)
        and {point.section for point in points} <= {"console", "gui"}
    )


def check(wheel: UnpackedWheel, file: StoredFile, path: str) -> None:
    """Raise `WheelChangedError` when a file in the store was edited through one of its other names, or is gone."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        raise WheelChangedError(wheel) from None
    if (status.st_size, status.st_mtime_ns, status.st_mode & 0o7777) != (file.size, wheel.mtime_ns, file.mode):
        raise WheelChangedError(wheel)


@contextlib.contextmanager
def reading(wheel: UnpackedWheel, file: StoredFile, path: str) -> Iterator[None]:
    """Read a file in the store. Raises `WheelChangedError` when it is not what it was, or is removed meanwhile."""
    check(wheel, file, path)
    try:
        yield
    except FileNotFoundError:
        # Another process may have removed the wheel since. If it has not, the error is about another file.
        check(wheel, file, path)
        raise


def last_used(folder: str) -> float:
    """Return when the wheel in the folder of its digest was last installed, in seconds since the epoch."""
    try:
        return os.stat(_manifest_path(folder)).st_mtime
    except OSError:
        return 0.0


def remove_if_unused(folder: str, oldest: float) -> bool:
    """
    Remove the wheel in the folder of its digest if it was last used before ``oldest``, in seconds since the epoch.

    Only under the wheel's lock. Environments that have it keep their files, and a process that is linking it unpacks it
    again. Returns whether there was one to remove.
    """
    if last_used(folder) > oldest:
        return False
    was_complete = os.path.exists(_manifest_path(folder))
    # First, so that no process finds the half that is left when this one is killed.
    _remove(_manifest_path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return was_complete


def _unpack_anew(archive: str, folder: str) -> UnpackedWheel:
    """Unpack a wheel file beside what is there, then let its manifest name it. Only under the wheel's lock."""
    name = os.urandom(4).hex()
    os.mkdir(os.path.join(folder, name))
    try:
        wheel = unpack(archive, os.path.join(folder, name))
    except BaseException:
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        raise
    manifest = _manifest_path(folder)
    if _is_folder(manifest):
        _remove(manifest)
    write_json(manifest, {"format": _FORMAT, **vars(wheel), "path": name})
    # What a process that was killed has left, and what was changed. Another process may be linking the latter.
    for other in os.listdir(folder):
        if other not in {name, os.path.basename(manifest)}:
            _remove(os.path.join(folder, other))
    return wheel


def _is_folder(path: str) -> bool:
    """Tell whether there is a folder, and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def _remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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

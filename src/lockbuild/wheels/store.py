"""The store of unpacked wheels: a process unpacks each one under a lock; others find it complete or not at all.

In ``<cache>/wheels``, for each wheel by the SHA-256 of its file:

    <sha256>/<name>/         its files, a folder for each scheme
    <sha256>/manifest.json   the current <name> and its files, written last. Its time of change is the time of the last
                             use

A process that links from the store holds no lock. Meanwhile the wheel may be removed. It may also be unpacked again
under another name, because a file was edited through its hard link in an environment. Each file is checked for that,
and `WheelChangedError` is raised. Then the installation, which still has the wheel file, unpacks it again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from installer.records import Hash

from lockbuild.errors import WheelError
from lockbuild.files import digest_of_file, hidden_beside, new_file, read_json, remove_anything, write_json
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.wheels.destination import SCHEMES, is_plain
from lockbuild.wheels.threads import pool_of
from lockbuild.wheels.unpack import EntryPoint, StoredFile, UnpackedWheel, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lockbuild.events import Reporter

# The form of a manifest. A wheel with another form of manifest counts as missing.
_FORMAT = 1

# How many wheels are locked and unpacked at a time.
_AT_ONCE = 32


class WheelChangedError(Exception):
    """A file of an unpacked wheel was changed or removed."""

    def __init__(self, wheel: UnpackedWheel) -> None:
        self.wheel = wheel
        super().__init__(wheel.path)


class WheelMissingError(Exception):
    """A wheel is not in the store as it was, and there is no file to unpack it from."""


@dataclass(frozen=True)
class WheelStore:
    """The store, for one user of it."""

    folder: str
    cache_dir: str | None
    """The cache folder that has its locks."""
    lock_timeout: float | None
    reporter: Reporter

    def add(
        self, archives: Sequence[str], hashes: Mapping[str, str] | None = None, threads: int = 1
    ) -> list[UnpackedWheel]:
        """
        Unpack wheel files that are not in the store yet; return all of them in the order of ``archives``.

        ``hashes`` maps names of files to the SHA-256 that they must have, in hexadecimal; it may leave files out.
        Raises `WheelError`, `LockTimeoutError`.
        """
        with pool_of(threads) as pool:
            digests = list(pool.map(_digest, archives))
            for archive, digest in zip(archives, digests, strict=True):
                expected = (hashes or {}).get(os.path.basename(archive), digest)
                if digest != expected:
                    raise WheelError(archive, f"its SHA-256 is {digest}, and has to be {expected}")
            by_digest = dict(zip(digests, archives, strict=True))
            found = {digest: self.find(digest) for digest in by_digest}
            # In the order of the digests, so that two processes that lack the same wheels cannot deadlock. This thread
            # waits for the locks, because a signal can interrupt it. A few at a time: each lock is an open file.
            missing = sorted(digest for digest, wheel in found.items() if wheel is None)
            for first in range(0, len(missing), _AT_ONCE):
                batch = missing[first : first + _AT_ONCE]
                with contextlib.ExitStack() as locks:
                    for digest in batch:
                        locks.enter_context(self._lock(digest, by_digest[digest]))
                    unpacked = pool.map(lambda digest: self._find_or_unpack(digest, by_digest[digest]), batch)
                    found.update(zip(batch, unpacked, strict=True))
        return [wheel for digest in digests if (wheel := found[digest])]

    def has_unchanged(self, digest: str) -> bool:
        """Tell whether the wheel whose file has this SHA-256 is in the store as it was unpacked."""
        wheel = self.find(digest)
        return wheel is not None and _is_unchanged(wheel)

    def repair(self, archive: str, wheel: UnpackedWheel) -> UnpackedWheel:
        """Unpack a changed wheel again, unless another process already has; return it."""
        digest = digest_of(wheel)
        with self._lock(digest, archive):
            found = self.find(digest)
            return found if found and _is_unchanged(found) else _unpack_anew(archive, self._folder(digest))

    def _folder(self, digest: str) -> str:
        return os.path.join(self.folder, digest)

    def _lock(self, digest: str, archive: str) -> DirectoryLock:
        folder = self._folder(digest)
        if not _is_folder(folder):
            # A file or a link, from a damaged disk or a backup. The lock would follow the link. Another process may
            # have made the folder since we looked; this cannot remove it, because it is no file.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                os.unlink(folder)
        subject = f"the unpacked wheel {os.path.basename(archive)}"
        return DirectoryLock(
            LockRequest(folder, subject, self.cache_dir, self.lock_timeout, self.reporter, create=True)
        )

    def find(self, digest: str) -> UnpackedWheel | None:
        """Return the wheel whose file has this SHA-256, if it is in the store; note that it is used."""
        if not is_plain(digest):
            return None
        wheel = read(self._folder(digest))
        if wheel:
            with contextlib.suppress(OSError):
                os.utime(_manifest_path(self._folder(digest)))
        return wheel

    def _find_or_unpack(self, digest: str, archive: str) -> UnpackedWheel:
        return self.find(digest) or _unpack_anew(archive, self._folder(digest))


def digest_of(wheel: UnpackedWheel) -> str:
    """Return the SHA-256 of the file that a wheel in the store was unpacked from."""
    return os.path.basename(os.path.dirname(wheel.path))


def read(folder: str) -> UnpackedWheel | None:
    """Return the wheel in the folder of its digest; ``None`` if it is not complete or its manifest is damaged."""
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
    """Tell whether the values of a manifest have the right types, and its paths stay below the folder of the wheel."""
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
    """
    Raise `WheelChangedError` if a file in the store was removed, or edited through another of its hard links.

    A file that lost its time or permissions in an archive is replaced by a copy that has them.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
        seen = (status.st_size, status.st_mtime_ns, status.st_mode & 0o7777)
        if seen == (file.size, wheel.mtime_ns, file.mode):
            return
        if not stat.S_ISREG(status.st_mode) or not _restore(path, file, wheel.mtime_ns):
            raise WheelChangedError(wheel)
    except FileNotFoundError:
        raise WheelChangedError(wheel) from None


def _restore(path: str, file: StoredFile, mtime_ns: int) -> bool:
    """Replace a file by a copy with the right time and permissions, unless its contents are not what they were."""
    with open(path, "rb") as stored:
        content = stored.read()
    try:
        if not Hash.parse(file.digest).validate(content):
            return False
    except ValueError:
        # The manifest names no algorithm that Python has.
        return False
    # A copy: other environments may write to the file through its hard links.
    with hidden_beside(path) as hidden:
        with open(new_file(hidden, 0o600), "wb") as copy:
            copy.write(content)
        os.chmod(hidden, file.mode)
        os.utime(hidden, ns=(mtime_ns, mtime_ns))
        os.replace(hidden, path)
    return True


@contextlib.contextmanager
def reading(wheel: UnpackedWheel, file: StoredFile, path: str) -> Iterator[None]:
    """Check a file in the store that is about to be read. Raises `WheelChangedError`, also if it vanishes meanwhile."""
    check(wheel, file, path)
    try:
        yield
    except FileNotFoundError:
        # Another process may have removed the wheel. If not, the error is about another file.
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

    Only under the wheel's lock. Environments that have the wheel keep their files; a process that is linking it unpacks
    it again. Returns whether a complete wheel was removed.
    """
    if last_used(folder) > oldest:
        return False
    was_complete = os.path.exists(_manifest_path(folder))
    # First: if this process is killed later, no other one finds the rest.
    remove_anything(_manifest_path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return was_complete


def _digest(archive: str) -> str:
    try:
        return digest_of_file(archive)
    except OSError as error:
        raise WheelError(archive, f"it cannot be read: {error.strerror or error}") from error


def _unpack_anew(archive: str, folder: str) -> UnpackedWheel:
    """Unpack a wheel file under a new name, then write the manifest that names it. Only under the wheel's lock."""
    name = os.urandom(4).hex()
    os.mkdir(os.path.join(folder, name))
    try:
        wheel = unpack(archive, os.path.join(folder, name))
    except BaseException:
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        raise
    manifest = _manifest_path(folder)
    if _is_folder(manifest):
        remove_anything(manifest)
    write_json(manifest, {"format": _FORMAT, **vars(wheel), "path": name})
    # The changed wheel, and what killed processes have left. Another process may still be linking the changed wheel.
    for other in os.listdir(folder):
        if other not in {name, os.path.basename(manifest)}:
            remove_anything(os.path.join(folder, other))
    return wheel


def _is_folder(path: str) -> bool:
    """Tell whether a path is a folder, and not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


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

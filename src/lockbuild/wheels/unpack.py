"""Unpacks a wheel file: checks every file against RECORD, and puts it into the folder of its scheme.

The library ``installer`` reads the wheel: it knows the scheme of each file, and the entry points. It does so once, when
the wheel is unpacked. The result is an `UnpackedWheel`, which has everything that an installation needs. Files that
each environment has of its own (RECORD, INSTALLER, scripts with a shebang) are not made here.
"""

from __future__ import annotations

import csv
import errno
import os
import stat
import time
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import new as new_hash
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from installer import install
from installer.destinations import WheelDestination
from installer.records import Hash, RecordEntry
from installer.sources import WheelFile

from lockbuild.errors import WheelError
from lockbuild.wheels.destination import is_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from installer.scripts import ScriptSection
    from installer.sources import WheelContentElement
    from installer.utils import Scheme

# The compression methods that `zipfile` can know; Zstandard since Python 3.14.
_COMPRESSIONS = {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
    getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED),
}

# A bit in the flags of a member of a ZIP file.
_ENCRYPTED = 1

# Errors of a file system about a path in the wheel: two files of one name, a file in the place of a folder, a path that
# is too long. An error without a number comes from a decompressor.
_REFUSED_PATHS = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, None}


class StoredFile(NamedTuple):
    """One file of an unpacked wheel. All files of a wheel have the same time of change."""

    name: str
    size: int
    """In bytes."""
    mode: int
    """Its permissions."""
    digest: str
    """As in RECORD, with the name of the algorithm."""


class EntryPoint(NamedTuple):
    """The data from which an installer writes a script."""

    name: str
    module: str
    attribute: str
    section: ScriptSection


@dataclass(frozen=True)
class UnpackedWheel:
    """A wheel that is unpacked in a folder, with a folder below it for each scheme."""

    path: str
    name: str
    """The distribution's name as the wheel spells it."""
    version: str
    root: str
    """The scheme of everything outside of ``.data``: ``purelib`` or ``platlib``."""
    info: str
    """The name of its ``.dist-info`` folder."""
    mtime_ns: int
    """The time of change of every file, in nanoseconds since the epoch; a whole number of seconds."""
    folders: tuple[tuple[str, str, tuple[StoredFile, ...]], ...]
    """Scheme, folder below the scheme's folder, written with ``/``, and the files directly in it."""
    entry_points: tuple[EntryPoint, ...]


def unpack(archive: str, folder: str) -> UnpackedWheel:
    """
    Unpack a wheel file into an existing empty folder.

    Raises `WheelError` if the archive is no wheel, or has a file that would leave the folder or that differs from
    RECORD. Raises `OSError` if the archive cannot be read or the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            source = _CheckedWheel(file)
            source.check_members()
            destination = _Folder(archive, folder)
            install(source, destination, additional_metadata={})
            return UnpackedWheel(
                path=folder,
                name=source.distribution,
                version=source.version,
                root=destination.root,
                info=source.dist_info_dir,
                mtime_ns=destination.mtime_ns,
                folders=tuple((*place, tuple(files)) for place, files in destination.files.items()),
                entry_points=tuple(destination.entry_points),
            )
    except WheelError:
        raise
    except OSError as error:
        if error.errno not in _REFUSED_PATHS:
            raise
        raise WheelError(archive, f"{error.strerror or error}: {error.filename or 'the file is damaged'}") from error
    except Exception as error:
        # For a damaged or hostile file, zipfile, the decompressors, email, configparser, csv and installer raise nearly
        # anything: NotImplementedError, RecursionError, zlib.error, KeyError, AssertionError.
        raise WheelError(archive, str(error) or f"it is no wheel ({type(error).__name__})") from error


class _CheckedWheel(WheelFile):
    """A wheel file that compares every member that is read with its RECORD."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        super().__init__(file)
        self._archive = file

    def check_members(self) -> None:
        """Raise `WheelError` for a member that would be written outside of the folder or cannot be read."""
        for member in self._archive.infolist():
            name = member.filename
            if not all(map(is_plain, name.removesuffix("/").split("/"))):
                raise self._error(f"{name!r} would leave the folder that it is installed in, or is no name of a file")
            # With such a member, `install` would never end.
            if name == self.data_dir:
                raise self._error(f"{name!r} is not a folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise self._error(f"{name!r} is a symbolic link, which no wheel may have")
            if member.flag_bits & _ENCRYPTED:
                raise self._error(f"{name!r} is encrypted")
            if member.compress_type not in _COMPRESSIONS:
                raise self._error(f"{name!r} has compression method {member.compress_type}, which Python does not know")

    def get_contents(self) -> Iterator[WheelContentElement]:
        """Yield every file. When the caller has read it, compare it with RECORD."""
        record = csv.reader(self.read_dist_info("RECORD").splitlines())
        # As for pip, a file need not be listed, and its row need not have a hash or a size.
        rows = ([*row, "", ""] for row in record if row)
        known = {path: (path, digest, size) for path, digest, size, *_ in rows}
        # RECORD cannot hold its own digest, nor those of its signatures.
        unsigned = {f"{self.dist_info_dir}/RECORD{suffix}" for suffix in ("", ".jws", ".p7s")}
        for member in self._archive.infolist():
            if member.is_dir():
                continue
            name = member.filename
            row = known.get(name, (name, "", ""))
            entry = RecordEntry.from_elements(*row)
            mode = member.external_attr >> 16
            with self._archive.open(member) as file:
                stream = _Hashed(file, entry.hash_.name if entry.hash_ else "sha256")
                yield row, cast("BinaryIO", stream), bool(stat.S_ISREG(mode) and mode & 0o111)
                # `install` skips some members. They are not installed and need no check.
                if name not in unsigned and stream.was_read and entry != stream.entry(name, entry):
                    raise self._error(
                        f"{name!r} is not what its RECORD says; the file is damaged (pip install does not check this, "
                        "nor does a build with --no-cache)"
                    )

    def _error(self, problem: str) -> WheelError:
        return WheelError(str(self._archive.filename), problem)


class _Hashed:
    """A stream that computes the digest of the bytes read from it."""

    def __init__(self, file: IO[bytes], algorithm: str) -> None:
        self._file = file
        self._algorithm = algorithm
        self._hash = new_hash(algorithm)
        self.size = 0
        self.was_read = False

    def read(self, size: int = -1) -> bytes:
        """Read, as a file does."""
        self.was_read = True
        content = self._file.read(size)
        self._hash.update(content)
        self.size += len(content)
        return content

    def digest(self) -> Hash:
        """Return the digest of the bytes that were read, as in RECORD."""
        return Hash(self._algorithm, urlsafe_b64encode(self._hash.digest()).decode().rstrip("="))

    def entry(self, name: str, like: RecordEntry) -> RecordEntry:
        """Return the entry that RECORD should have, with a hash and a size if the actual entry ``like`` has them."""
        return RecordEntry(name, like.hash_ and self.digest(), None if like.size is None else self.size)


class _Folder(WheelDestination):
    """The destination for ``installer``: it writes the files into a folder for each scheme, and lists them."""

    def __init__(self, archive: str, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self.root = ""
        self.files: dict[tuple[str, str], list[StoredFile]] = {}
        self.entry_points: list[EntryPoint] = []
        # Whole seconds, which every file system can keep.
        self.mtime_ns = int(time.time()) * 1_000_000_000

    def write_script(self, name: str, module: str, attr: str, section: ScriptSection) -> RecordEntry:
        """Note an entry point. Its script will have the path of an interpreter, so it does not go into the store."""
        if not is_plain(name):
            raise WheelError(self._archive, f"its entry point {name!r} has a name that no script may have")
        self.entry_points.append(EntryPoint(name, module, attr, section))
        return RecordEntry(name, None, None)

    def write_file(
        self, scheme: Scheme, path: str | os.PathLike[str], stream: BinaryIO, is_executable: bool
    ) -> RecordEntry:
        """Write one file, and note it."""
        path = os.fspath(path)
        parent, _, name = path.rpartition("/")
        if (scheme, parent) not in self.files:
            os.makedirs(os.path.join(self._folder, scheme, parent), exist_ok=True)
        target = os.path.join(self._folder, scheme, path)
        # The permissions that pip gives: it lets everyone execute.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777 if is_executable else 0o666)
        with open(descriptor, "wb") as file:
            while content := stream.read(1 << 20):
                file.write(content)
            if is_executable and hasattr(os, "fchmod"):
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) | 0o111)
        os.utime(target, ns=(self.mtime_ns, self.mtime_ns))
        status = os.stat(target)
        hashed = cast("Any", stream)
        stored = StoredFile(name, status.st_size, stat.S_IMODE(status.st_mode), str(hashed.digest()))
        self.files.setdefault((scheme, parent), []).append(stored)
        return RecordEntry(path, hashed.digest(), status.st_size)

    def finalize_installation(
        self,
        scheme: Scheme,
        record_file_path: str,  # noqa: ARG002
        records: Iterable[tuple[Scheme, RecordEntry]],  # noqa: ARG002
    ) -> None:
        """Note the scheme of the wheel's root. RECORD is written for each environment."""
        self.root = scheme

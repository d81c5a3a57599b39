"""Which distribution says that a file is its own: decided by name, whoever comes first.

Two processes that install different wheels into one environment know nothing of each other but what is on disk. So
before a process links its first file, the RECORD of each of its wheels is there under the name `PART`. Who finds a file
under a name that it wants for itself reads the RECORDs, finished or not. Of two processes with different contents for
one path, the one that links second finds the file of the first and therefore its claim, too; and it replaces the file
or leaves it by the names of the two distributions alone. Either way the later name wins, and the row goes from the
RECORD of the other.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from lockbuild.wheels.destination import locked
from lockbuild.wheels.links import write_whole

if TYPE_CHECKING:
    from collections.abc import Collection

    from lockbuild.events import Reporter

PART = "RECORD.part"
"""What RECORD is called until everything that it lists is there."""


@dataclass(frozen=True)
class Rival:
    """Another distribution that has other contents for a path."""

    name: str
    """Normalized."""
    info: str
    """The path of its ``.dist-info`` folder."""


class Claims:
    """The RECORDs in the ``site-packages`` folders of an environment. Threads may share it."""

    def __init__(self, folders: Collection[str], cache_dir: str | None, reporter: Reporter) -> None:
        self._folders = folders
        self._cache_dir = cache_dir
        self._reporter = reporter
        self._read: dict[str, tuple[tuple[int, int, int], dict[str, str]]] = {}
        self._reading = threading.Lock()

    def rivals(self, path: str, name: str, digest: str) -> list[Rival]:
        """Return the distributions other than ``name`` that claim a path with other contents than those of a digest."""
        with self._reading:
            return [
                Rival(other, info)
                for info, record in self._records()
                if (claimed := self._rows(record).get(path)) is not None
                and claimed != digest
                and (other := canonicalize_name(os.path.basename(info).partition("-")[0])) != name
            ]

    def drop(self, info: str, path: str) -> None:
        """Take a path out of the RECORD in a ``.dist-info`` folder: the file there is another distribution's."""
        with locked(info, self._cache_dir, self._reporter):
            for name in (PART, "RECORD"):
                record = os.path.join(info, name)
                with contextlib.suppress(FileNotFoundError):
                    rows = _read_rows(record)
                    kept = [row for row in rows if _target(info, row[0]) != path]
                    if kept != rows:
                        write_whole(record, as_record(kept))

    def _records(self) -> list[tuple[str, str]]:
        found = []
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(os.listdir(folder)):
                    if name.endswith(".dist-info"):
                        info = os.path.join(folder, name)
                        found += [(info, os.path.join(info, record)) for record in (PART, "RECORD")]
        return found

    def _rows(self, record: str) -> dict[str, str]:
        """Return the digests in a RECORD by the path of the file. It is read again only when it is another file."""
        try:
            status = os.stat(record)
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if record not in self._read or self._read[record][0] != identity:
                info = os.path.dirname(record)
                rows = {_target(info, row[0]): row[1] for row in _read_rows(record)}
                self._read[record] = identity, rows
            return self._read[record][1]
        except FileNotFoundError:
            return {}


def as_record(rows: Collection[list[str]]) -> bytes:
    """Write the rows of a RECORD in the order of their paths, with the ends of lines that ``csv`` has, as pip does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(sorted(rows))
    return text.getvalue().encode()


def _read_rows(record: str) -> list[list[str]]:
    with open(record, encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 3]


def _target(info: str, path: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(info), path))

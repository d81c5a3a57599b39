"""The plan of an installation: the place of each file, decided and checked before the first one is written."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections import defaultdict
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from installer.records import Hash
from installer.scripts import Script
from installer.utils import fix_shebang, get_launcher_kind
from packaging.utils import canonicalize_name

from lockbuild.errors import WheelError, shown
from lockbuild.wheels.store import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lockbuild.events import Reporter
    from lockbuild.request import LinkMode
    from lockbuild.wheels.destination import Destination
    from lockbuild.wheels.unpack import StoredFile, UnpackedWheel

_THREADS = 8


@dataclass(frozen=True)
class Installation:
    """How wheels are installed into one destination."""

    destination: Destination
    reporter: Reporter
    link_mode: LinkMode = "auto"
    installer: str = "lockbuild"
    """What INSTALLER says."""
    requested: frozenset[str] = frozenset()
    """The normalized names of the distributions that the user asked for; the others are their dependencies."""
    threads: int = _THREADS


@dataclass(frozen=True)
class MadeFile:
    """A file that is made for this environment."""

    content: bytes
    executable: bool = False

    @property
    def digest(self) -> str:
        return str(Hash("sha256", urlsafe_b64encode(sha256(self.content).digest()).decode().rstrip("=")))

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Placement:
    """One wheel's files in one directory."""

    archive: str
    wheel: UnpackedWheel
    record: str
    """The path of its RECORD in the environment."""
    source: str
    """The folder of the files in the store that are linked."""
    directory: str
    files: dict[str, StoredFile | MadeFile]
    """By their names."""


def plan(wheels: Mapping[str, UnpackedWheel], installation: Installation) -> list[Placement]:
    """Return the placements of all wheels. Raises `WheelError` before anything is written."""
    archives: dict[str, str] = {}
    for archive, wheel in wheels.items():
        if archives.setdefault(_name(wheel), archive) != archive:
            raise WheelError(archive, f"there is a second wheel of {wheel.name}")
    placements = [
        placement
        for name in sorted(archives)
        for placement in _placements(archives[name], wheels[archives[name]], installation)
    ]
    folders = _folders(placement.directory for placement in placements)
    for placement in placements:
        for name in placement.files:
            path = os.path.join(placement.directory, name)
            if path in folders:
                raise WheelError(placement.archive, f"it has a file {path}, and a folder is to have that name")
            if path == placement.record:
                raise WheelError(placement.archive, "it has a second RECORD")
    return _settle(placements, installation.reporter)


def _placements(archive: str, wheel: UnpackedWheel, installation: Installation) -> Iterator[Placement]:
    """Yield the placements of a wheel, one per directory. Raises `WheelError` for a path that it may not write."""
    folder_for = installation.destination.folder_for
    record = os.path.join(folder_for(archive, wheel.root, [wheel.info], {"RECORD"}), "RECORD")
    made = _made_files(wheel, installation)
    stored = {(scheme, below): files for scheme, below, files in wheel.folders}
    # Two files of a wheel may have one path. The later one stays, as with pip: pip writes those of `.data` after the
    # others, and scripts last.
    for scheme, below in sorted(stored.keys() | made.keys(), key=lambda place: (place[0] != wheel.root, place)):
        files: dict[str, StoredFile | MadeFile] = {
            file.name: file
            for file in stored.get((scheme, below), ())
            if scheme != "scripts" or not _is_entry_point(file, wheel)
        }
        files |= made.get((scheme, below), {})
        parts = [*([wheel.name] if scheme == "headers" else []), *(below.split("/") if below else [])]
        directory = folder_for(archive, scheme, parts, files.keys())
        yield Placement(archive, wheel, record, os.path.join(wheel.path, scheme, below), directory, files)


def _made_files(
    wheel: UnpackedWheel, installation: Installation
) -> Mapping[tuple[str, str], dict[str, StoredFile | MadeFile]]:
    """Return the files that are made for this environment, by scheme and folder: scripts, INSTALLER, REQUESTED."""
    python = installation.destination.python_executable
    made: dict[tuple[str, str], dict[str, StoredFile | MadeFile]] = defaultdict(dict)
    info = made[wheel.root, wheel.info]
    info["INSTALLER"] = MadeFile(f"{installation.installer}\n".encode())
    if _name(wheel) in installation.requested:
        info["REQUESTED"] = MadeFile(b"")
    for scheme, below, files in wheel.folders:
        for file in files:
            if scheme != "scripts" or _is_entry_point(file, wheel):
                continue
            source = os.path.join(wheel.path, scheme, below, file.name)
            with reading(wheel, file, source), open(source, "rb") as stored, fix_shebang(stored, python) as stream:
                if stream is not stored:
                    made[scheme, below][file.name] = MadeFile(stream.read(), executable=bool(file.mode & 0o111))
    for point in wheel.entry_points:
        script = Script(point.name, point.module, point.attribute, point.section)
        name, content = script.generate(python, get_launcher_kind())
        made["scripts", ""][name] = MadeFile(content, executable=True)
    return made


def _is_entry_point(script: StoredFile, wheel: UnpackedWheel) -> bool:
    """
    Tell whether a script in a wheel has the name of an entry point.

    Old versions of setuptools put such scripts into wheels. They are made anew instead, as pip does.
    """
    name = script.name
    for ending in (".exe", "-script.py", ".pya"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return any(point.name == name for point in wheel.entry_points)


def _folders(directories: Iterable[str]) -> set[str]:
    """Return directories and all their parents."""
    found: set[str] = set()
    for directory in directories:
        while directory not in found:
            found.add(directory)
            directory = os.path.dirname(directory)
    return found


def _settle(placements: Sequence[Placement], reporter: Reporter) -> list[Placement]:
    """Return placements without those files for which a later one has other contents."""
    taken: dict[tuple[str, str], Placement] = {}
    settled = []
    for placement in reversed(placements):
        files = {}
        for name, file in placement.files.items():
            winner = taken.setdefault((placement.directory, name), placement)
            if winner is placement:
                files[name] = file
            elif winner.archive != placement.archive:
                # Both RECORDs may list the same contents, as they do when pip installs.
                if winner.files[name].digest == file.digest:
                    files[name] = file
                else:
                    reporter.warn(_describe(placement, winner, os.path.join(placement.directory, name)))
        settled.append(replace(placement, files=files))
    return settled[::-1]


def _name(wheel: UnpackedWheel) -> str:
    return canonicalize_name(wheel.name)


def _describe(loser: Placement, winner: Placement, path: str) -> str:
    one, other = _name(loser.wheel), _name(winner.wheel)
    return f"{one} and {other} both have {shown(path)}, with different contents; that of {other} is used"

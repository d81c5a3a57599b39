"""Wheels from the store into an environment: all of them at once, one lock per destination directory.

What is done, in this order:

1. What goes where is computed for all wheels together. Where two of them have the same path with different contents,
   the one whose name is later in the alphabet wins, as if they were installed one after the other in this order.
2. Each wheel's list of files is written as ``RECORD.part``: a claim, for other processes that install here.
3. Threads link the files, each thread those of one directory, under the lock on that directory for as long as one
   wheel's files take: other threads and processes may be installing here, too. A file that is there already is
   replaced at one moment, or stays when another distribution has claimed its path and wins (`lockbuild.wheels.claims`).
   Scripts and INSTALLER, which are made for the environment, come in the same way. Where the wheel was installed
   before, or begun to be, what a killed process has left under hidden names beside its files goes: hidden names are
   only made under that lock.
4. Last of all ``RECORD.part`` becomes RECORD.

The two bugs that this is against are of uv, issue 520 and PR 4978: a directory of several wheels was made twice and
files in it were torn; and of two files of one path the one won whose thread was later.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from installer.records import Hash
from installer.scripts import Script
from installer.utils import fix_shebang, get_launcher_kind
from packaging.utils import canonicalize_name

from lockbuild.errors import WheelError, shown
from lockbuild.wheels.bytecode import environments_with, link_bytecode, note
from lockbuild.wheels.claims import PART, Claims, as_record
from lockbuild.wheels.destination import locked
from lockbuild.wheels.links import Linker, remove_left_over, write_whole
from lockbuild.wheels.store import WheelChangedError, check

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from lockbuild.events import Reporter
    from lockbuild.request import LinkMode
    from lockbuild.wheels.destination import Destination
    from lockbuild.wheels.store import WheelStore
    from lockbuild.wheels.unpack import StoredFile, UnpackedWheel

_THREADS = 8

# How often an installation begins again because of a change in the store.
_ATTEMPTS = 20


@dataclass(frozen=True)
class Installation:
    """How wheels are installed into one destination."""

    destination: Destination
    reporter: Reporter
    link_mode: LinkMode = "auto"
    installer: str = "lockbuild"
    """What INSTALLER says."""
    requested: frozenset[str] = frozenset()
    """The normalized names of the distributions that somebody has asked for; the others are their dependencies."""
    cache_dir: str | None = None
    share_bytecode: bool = False
    """Whether this environment takes bytecode from earlier ones and gives it to later ones."""
    threads: int = _THREADS


@dataclass(frozen=True)
class _MadeFile:
    """A file that is made for this environment."""

    name: str
    content: bytes
    executable: bool
    digest: str


@dataclass(frozen=True)
class _Placement:
    """One wheel's files in one directory."""

    wheel: UnpackedWheel
    name: str
    """The distribution's, normalized."""
    info: str
    """Its ``.dist-info`` folder in the environment."""
    source: str
    directory: str
    linked: Sequence[StoredFile]
    made: Sequence[_MadeFile]
    bytecode: Sequence[str]
    """The same directory in other environments that have the wheel."""

    @property
    def names(self) -> set[str]:
        """The names of all its files there, RECORD's too."""
        records = {"RECORD", PART} if self.directory == self.info else set()
        return {file.name for file in self.linked} | {file.name for file in self.made} | records

    def without(self, names: Collection[str]) -> _Placement:
        """Return what is left when these files are another wheel's."""
        linked = [file for file in self.linked if file.name not in names]
        return replace(self, linked=linked, made=[file for file in self.made if file.name not in names])


def install_archives(
    archives: Sequence[str], hashes: Mapping[str, str], store: WheelStore, installation: Installation
) -> None:
    """
    Install wheel files by way of the store. ``hashes`` has SHA-256 digests by the names of the files.

    Raises `WheelError`, `LockTimeoutError`, `LockUnavailableError`.
    """
    wheels = dict(zip(archives, store.add(archives, hashes, installation.threads), strict=True))
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            link_wheels(list(wheels.values()), installation)
            return
        except WheelChangedError as changed:
            [archive] = [archive for archive, wheel in wheels.items() if wheel is changed.wheel]
            if not attempts_left:
                raise WheelError(archive, "its unpacked files are changed again and again") from None
            wheels[archive] = store.repair(archive, changed.wheel)


def link_wheels(wheels: Sequence[UnpackedWheel], installation: Installation) -> None:
    """
    Install unpacked wheels. Nothing is resolved, compiled, or uninstalled.

    Raises `WheelError` for two wheels of one distribution, `WheelChangedError` when the store was changed since the
    wheels were looked up: then the installation may be repeated, as it may after any failure.
    """
    by_name = {canonicalize_name(wheel.name): wheel for wheel in wheels}
    if len(by_name) < len(wheels):
        twice = next(w for w in wheels if w not in by_name.values())
        raise WheelError(twice.path, f"there is a second wheel of {twice.name}")
    destination = installation.destination
    placements = _settle(
        [each for name in sorted(by_name) for each in _placements(name, by_name[name], installation)],
        installation.reporter,
    )
    _make_directories({each.directory for each in placements})
    infos = {each.info: each.wheel for each in placements}
    # Or another process is installing them just now, and may be killed yet.
    tried_before = {info for info in infos if os.listdir(info)}
    for info, content in _records(placements).items():
        with locked(info, installation.cache_dir, installation.reporter):
            write_whole(os.path.join(info, PART), content)
    claims = Claims(
        {destination.schemes["purelib"], destination.schemes["platlib"]}, installation.cache_dir, installation.reporter
    )
    worker = _Worker(installation, claims, tried_before)
    with ThreadPoolExecutor(installation.threads) as pool:
        try:
            directories = list(_by_directory(placements).values())
            for _ in _counting(pool.map(worker.fill, directories), directories, installation.reporter):
                pass
        except BaseException:
            # A thread that waits for a directory would keep us from ending, after Ctrl-C for one.
            worker.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    for warning in sorted(worker.warnings):
        installation.reporter.warn(warning)
    for info, wheel in infos.items():
        # Locked, because another process may just be taking a row out of it. Or it installs the same wheel, was first,
        # and there is nothing left to rename.
        with (
            locked(info, installation.cache_dir, installation.reporter),
            contextlib.suppress(FileNotFoundError),
        ):
            os.replace(os.path.join(info, PART), os.path.join(info, "RECORD"))
        if installation.share_bytecode:
            note(wheel, os.path.dirname(info))


def _counting(
    filled: Iterable[None], directories: Sequence[Sequence[_Placement]], reporter: Reporter
) -> Iterator[None]:
    """Tell, in the thread that waits for the others, how many wheels are in all their directories."""
    left = Counter(placement.name for here in directories for placement in here)
    total = len(left)
    reporter.progress(0, total)
    for here, done in zip(directories, filled, strict=True):
        names = Counter(placement.name for placement in here)
        left -= names
        if any(name not in left for name in names):
            reporter.progress(total - len(left), total)
        yield done


class _Worker:
    """What the threads share while they work on one installation."""

    def __init__(self, installation: Installation, claims: Claims, tried_before: Collection[str]) -> None:
        self._installation = installation
        self._claims = claims
        self._tried_before = tried_before
        self._linker = Linker(installation.link_mode)
        self.stopped = threading.Event()
        self.warnings: set[str] = set()

    def fill(self, here: Sequence[_Placement]) -> None:
        """Bring the files of all wheels into one directory. Threads of one installation wait for no lock of another."""
        for placement in here:
            self.place(placement)

    def place(self, placement: _Placement) -> None:
        """Bring one wheel's files into one directory."""
        installation = self._installation
        # Of these RECORDs a path is taken out. Not under the lock: each RECORD is written under its own folder's.
        lost: list[tuple[str, str]] = []
        with locked(placement.directory, installation.cache_dir, installation.reporter, self.stopped):
            if placement.info in self._tried_before:
                remove_left_over(placement.directory, placement.names)
            for file in placement.linked:
                source = os.path.join(placement.source, file.name)
                target = os.path.join(placement.directory, file.name)
                check(placement.wheel, file, source)
                try:
                    self._put(placement, file, source, target, lost)
                except FileNotFoundError:
                    # It was there a moment ago. If it is not now, the wheel was removed, and that is told.
                    check(placement.wheel, file, source)
                    raise
            for made in placement.made:
                target = os.path.join(placement.directory, made.name)
                if not os.path.lexists(target) or self._wins(placement, target, made.digest, lost):
                    write_whole(target, made.content, made.executable)
            if placement.bytecode:
                link_bytecode(placement.wheel, placement.linked, placement.bytecode, placement.directory, self._linker)
        for info, path in lost:
            self._claims.drop(info, path)

    def _put(
        self, placement: _Placement, file: StoredFile, source: str, target: str, lost: list[tuple[str, str]]
    ) -> None:
        try:
            self._linker.place(source, target)
        except FileExistsError:
            # Another process may just have installed the same wheel.
            if not os.path.samefile(source, target) and self._wins(placement, target, file.digest, lost):
                self._linker.replace(source, target)

    def _wins(self, placement: _Placement, target: str, digest: str, lost: list[tuple[str, str]]) -> bool:
        """Tell whether a file takes the place of the one that is there, and note whose RECORD loses the path."""
        rivals = self._claims.rivals(target, placement.name, digest)
        self.warnings.update(_describe(rival.name, placement.name, target) for rival in rivals)
        if any(rival.name > placement.name for rival in rivals):
            lost.append((placement.info, target))
            return False
        lost += [(rival.info, target) for rival in rivals]
        return True


def _placements(name: str, wheel: UnpackedWheel, installation: Installation) -> list[_Placement]:
    """Return what a wheel brings, directory by directory."""
    destination = installation.destination
    root = destination.folder(wheel.root, wheel.name)
    info = os.path.join(root, wheel.info)
    made = _made_files(name, wheel, installation)
    folders = {(scheme, below): files for scheme, below, files in wheel.folders}
    homes = environments_with(wheel) if installation.share_bytecode else []
    placements = []
    for scheme, below in folders.keys() | made.keys():
        ours = {file.name: file for file in made.get((scheme, below), ())}
        linked = [file for file in folders.get((scheme, below), ()) if file.name not in ours]
        if scheme == "scripts":
            linked = [file for file in linked if not _is_entry_point(file, wheel)]
        placements.append(
            _Placement(
                wheel=wheel,
                name=name,
                info=info,
                source=os.path.join(wheel.path, scheme, *below.split("/")),
                directory=os.path.normpath(os.path.join(destination.folder(scheme, wheel.name), below)),
                linked=linked,
                made=list(ours.values()),
                bytecode=[os.path.join(home, below) for home in homes] if scheme == wheel.root else [],
            )
        )
    return placements


def _made_files(
    name: str, wheel: UnpackedWheel, installation: Installation
) -> Mapping[tuple[str, str], list[_MadeFile]]:
    """Return the files that have this environment's paths in them, or tell how it came to be."""
    python = installation.destination.python_executable
    made: dict[tuple[str, str], list[_MadeFile]] = defaultdict(list)
    made[wheel.root, wheel.info].append(_make_file("INSTALLER", f"{installation.installer}\n".encode()))
    if name in installation.requested:
        made[wheel.root, wheel.info].append(_make_file("REQUESTED", b""))
    for point in wheel.entry_points:
        script = Script(point.name, point.module, point.attribute, point.section)
        made["scripts", ""].append(_make_file(*script.generate(python, get_launcher_kind()), executable=True))
    for scheme, below, files in wheel.folders:
        if scheme == "scripts":
            for file in files:
                if _is_entry_point(file, wheel):
                    continue
                with open(os.path.join(wheel.path, scheme, below, file.name), "rb") as stored:
                    original = stored.read()
                with fix_shebang(io.BytesIO(original), python) as stream:
                    content = stream.read()
                if content != original:
                    made[scheme, below].append(_make_file(file.name, content, executable=bool(file.mode & 0o111)))
    return made


def _make_file(name: str, content: bytes, executable: bool = False) -> _MadeFile:
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    digest = Hash("sha256", urlsafe_b64encode(sha256(content).digest()).decode().rstrip("="))
    return _MadeFile(name, content, executable, str(digest))


def _is_entry_point(script: StoredFile, wheel: UnpackedWheel) -> bool:
    """Tell whether a script in a wheel is one that is made for an entry point, as setuptools once put there; as pip."""
    name = script.name
    for ending in (".exe", "-script.py", ".pya"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return any(point.name == name for point in wheel.entry_points)


def _settle(placements: Sequence[_Placement], reporter: Reporter) -> list[_Placement]:
    """Take from each wheel what is another one's: of those that have one path the one with the last name has it."""
    settled = []
    for directory, here in _by_directory(placements).items():
        taken: dict[str, tuple[str, str]] = {}
        for placement in reversed(here):
            theirs = set()
            files: list[StoredFile | _MadeFile] = [*placement.linked, *placement.made] if len(here) > 1 else []
            for file in files:
                winner, digest = taken.setdefault(file.name, (placement.name, file.digest))
                if digest != file.digest:
                    theirs.add(file.name)
                    reporter.warn(_describe(winner, placement.name, os.path.join(directory, file.name)))
            settled.append(placement.without(theirs) if theirs else placement)
    return settled


def _by_directory(placements: Sequence[_Placement]) -> Mapping[str, list[_Placement]]:
    found: dict[str, list[_Placement]] = defaultdict(list)
    for placement in placements:
        found[placement.directory].append(placement)
    return found


def _records(placements: Sequence[_Placement]) -> dict[str, bytes]:
    """Return what each RECORD says, by the path of its ``.dist-info`` folder."""
    rows: dict[str, list[list[str]]] = defaultdict(list)
    for placement in placements:
        root = os.path.dirname(placement.info)
        relative = os.path.relpath(placement.directory, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        own = rows[placement.info]
        own += [[f"{prefix}{file.name}", file.digest, str(file.size)] for file in placement.linked]
        own += [[f"{prefix}{file.name}", file.digest, str(len(file.content))] for file in placement.made]
    return {info: as_record([*own, [f"{os.path.basename(info)}/RECORD", "", ""]]) for info, own in rows.items()}


def _make_directories(directories: Collection[str]) -> None:
    for directory in sorted(directories):
        # Another thread or process may make the same one at any moment between two steps of this.
        os.makedirs(directory, exist_ok=True)


def _describe(one: str, other: str, path: str) -> str:
    loser, winner = sorted((one, other))
    return f"{loser} and {winner} both have {shown(path)}, with different contents; that of {winner} is used"

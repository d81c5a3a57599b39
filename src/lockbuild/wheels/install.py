"""An installation: wheels from the store go into an environment, all at once, one thread per destination directory.

The steps, in this order:

1. `lockbuild.wheels.plan` decides the place of each file of all wheels, and checks every path. Where two wheels have
   the same path with different contents, the wheel whose name is later in the alphabet wins, as if they were installed
   one after the other in this order.
2. The RECORDs of earlier installations of the same wheels are removed.
3. Threads link the files, and write those that are made for the environment: scripts and INSTALLER. One thread fills
   each directory. Each file replaces an older one of its name atomically.
4. Each wheel's RECORD is written. A wheel without one is not installed: its installation was killed, and the next one
   repeats it.

One installation at a time runs in an environment: its caller holds a lock on the environment, or has made it and no
other process knows it yet.

This prevents two bugs of uv (astral-sh/uv#520, astral-sh/uv#4978). Two threads made a directory of several wheels, and
tore files in it. And of two files with one path the file of the later thread won.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from lockbuild.errors import WheelError
from lockbuild.files import remove_left_over, write_whole
from lockbuild.wheels.links import Linker
from lockbuild.wheels.plan import MadeFile, plan
from lockbuild.wheels.store import WheelChangedError, WheelMissingError, digest_of, reading
from lockbuild.wheels.threads import pool_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lockbuild.events import Reporter
    from lockbuild.wheels.plan import Installation, Placement
    from lockbuild.wheels.store import WheelStore
    from lockbuild.wheels.unpack import UnpackedWheel

# How often an installation starts again after a change in the store.
_ATTEMPTS = 20


def install_archives(
    archives: Sequence[str], hashes: Mapping[str, str], store: WheelStore, installation: Installation
) -> dict[str, str]:
    """
    Install wheel files by way of the store. ``hashes`` maps names of the files to SHA-256 digests.

    Returns such digests of all of them. No other installation may run there meanwhile. Raises `WheelError`,
    `LockTimeoutError`, `LockUnavailableError`.
    """
    wheels = dict(zip(archives, store.add(archives, hashes, installation.threads), strict=True))
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _link_wheels(wheels, installation)
            break
        except WheelChangedError as changed:
            [archive] = [archive for archive, wheel in wheels.items() if wheel is changed.wheel]
            if not attempts_left:
                raise WheelError(archive, "its unpacked files are changed again and again") from None
            wheels[archive] = store.repair(archive, changed.wheel)
    return {os.path.basename(archive): digest_of(wheel) for archive, wheel in wheels.items()}


def install_unpacked(digests: Mapping[str, str], store: WheelStore, installation: Installation) -> None:
    """
    Install wheels that the store has, by the names of their files, into an environment that is removed after a failure.

    Raises `WheelMissingError` if one is not in the store, or was changed there.
    """
    wheels = {}
    for name, digest in digests.items():
        wheel = store.find(digest)
        if wheel is None:
            raise WheelMissingError(name)
        wheels[name] = wheel
    try:
        _link_wheels(wheels, installation)
    except WheelChangedError as changed:
        raise WheelMissingError(changed.wheel.path) from None


def _link_wheels(wheels: Mapping[str, UnpackedWheel], installation: Installation) -> None:
    """
    Install unpacked wheels, by the paths of the wheel files.

    Raises `WheelError`, and `WheelChangedError` when the store has changed since the wheels were looked up. Then the
    installation may be repeated, as after any failure.
    """
    placements = plan(wheels, installation)
    for placement in placements:
        os.makedirs(placement.directory, exist_ok=True)
    records = _records(placements)
    for record in records:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record)
    directories = list(_by_directory(placements).values())
    linker = Linker(installation.link_mode)
    with pool_of(installation.threads) as pool:
        try:
            filled = pool.map(lambda here: _fill(here, linker), directories)
            for _ in _counting(filled, directories, installation.reporter):
                pass
        except BaseException:
            # Ctrl-C, for one: directories that no thread has begun are left out.
            pool.shutdown(cancel_futures=True)
            raise
    for record, content in records.items():
        write_whole(record, content)


def _fill(here: Sequence[Placement], linker: Linker) -> None:
    """Bring the files of all wheels into one directory."""
    # RECORD too, which is written last and is not among the files.
    remove_left_over(here[0].directory, {"RECORD"}.union(*(placement.files for placement in here)))
    for placement in here:
        for name, file in placement.files.items():
            target = os.path.join(placement.directory, name)
            if isinstance(file, MadeFile):
                write_whole(target, file.content, 0o777 if file.executable else 0o666)
                continue
            source = os.path.join(placement.source, name)
            with reading(placement.wheel, file, source):
                linker.place(source, target)


def _counting(filled: Iterable[None], directories: Sequence[Sequence[Placement]], reporter: Reporter) -> Iterator[None]:
    """Report how many wheels are complete in all their directories, from the thread that waits for the others."""
    left = Counter(placement.archive for here in directories for placement in here)
    total = len(left)
    reporter.progress(0, total)
    for here, done in zip(directories, filled, strict=True):
        archives = Counter(placement.archive for placement in here)
        left -= archives
        if any(archive not in left for archive in archives):
            reporter.progress(total - len(left), total)
        yield done


def _by_directory(placements: Sequence[Placement]) -> Mapping[str, list[Placement]]:
    found: dict[str, list[Placement]] = defaultdict(list)
    for placement in placements:
        found[placement.directory].append(placement)
    return found


def _records(placements: Sequence[Placement]) -> dict[str, bytes]:
    """Return the content of each RECORD, by its path."""
    rows: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for placement in placements:
        root = os.path.dirname(os.path.dirname(placement.record))
        relative = os.path.relpath(placement.directory, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        rows[placement.record] += [
            (f"{prefix}{name}", file.digest, str(file.size)) for name, file in placement.files.items()
        ]
    return {record: _record(os.path.basename(os.path.dirname(record)), own) for record, own in rows.items()}


def _record(info: str, rows: Iterable[tuple[str, str, str]]) -> bytes:
    """Write rows in the order of their paths, with the line endings of ``csv``, as pip does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(sorted([*rows, (f"{info}/RECORD", "", "")]))
    return text.getvalue().encode()

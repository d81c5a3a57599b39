"""Wheels from the store into an environment: all of them at once, one thread for each destination directory.

What is done, in this order:

1. `lockbuild.wheels.plan` computes what goes where for all wheels together, and checks every path. Where two wheels
   have the same path with different contents, the one whose name is later in the alphabet has it, as if they were
   installed one after the other in this order.
2. RECORDs of earlier installations of the same wheels are removed.
3. Threads link the files and write those that are made for the environment: scripts and INSTALLER. Each directory has
   one thread, and each file replaces another one of its name at one moment.
4. Each wheel's RECORD is written. A wheel without one is not installed: its installation was killed, and the next one
   repeats it.

Only one installation runs in an environment at a time: the caller holds a lock on the environment, or is making it and
has not told another process of it.

The two bugs that this is against are of uv, issue 520 and PR 4978: a directory of several wheels was made twice and
files in it were torn; and of two files of one path the one won whose thread was later.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lockbuild.errors import WheelError
from lockbuild.files import remove_left_over, write_whole
from lockbuild.wheels.links import Linker
from lockbuild.wheels.plan import MadeFile, plan
from lockbuild.wheels.store import WheelChangedError, reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lockbuild.events import Reporter
    from lockbuild.wheels.plan import Installation, Placement
    from lockbuild.wheels.store import WheelStore
    from lockbuild.wheels.unpack import UnpackedWheel

# How often an installation begins again because of a change in the store.
_ATTEMPTS = 20


def install_archives(
    archives: Sequence[str], hashes: Mapping[str, str], store: WheelStore, installation: Installation
) -> None:
    """
    Install wheel files by way of the store. ``hashes`` has SHA-256 digests by the names of the files.

    Nothing else may be installed there meanwhile. Raises `WheelError`, `LockTimeoutError`, `LockUnavailableError`.
    """
    wheels = dict(zip(archives, store.add(archives, hashes, installation.threads), strict=True))
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _link_wheels(wheels, installation)
            return
        except WheelChangedError as changed:
            [archive] = [archive for archive, wheel in wheels.items() if wheel is changed.wheel]
            if not attempts_left:
                raise WheelError(archive, "its unpacked files are changed again and again") from None
            wheels[archive] = store.repair(archive, changed.wheel)


def _link_wheels(wheels: Mapping[str, UnpackedWheel], installation: Installation) -> None:
    """
    Install unpacked wheels, by the paths of the wheel files.

    Raises `WheelError`, `WheelChangedError` when the store was changed since the wheels were looked up: then the
    installation may be repeated, as it may after any failure.
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
    with ThreadPoolExecutor(installation.threads) as pool:
        try:
            filled = pool.map(lambda here: _fill(here, linker), directories)
            for _ in _counting(filled, directories, installation.reporter):
                pass
        except BaseException:
            # Ctrl-C, for one: what has not begun is left out.
            pool.shutdown(cancel_futures=True)
            raise
    for record, content in records.items():
        write_whole(record, content)


def _fill(here: Sequence[Placement], linker: Linker) -> None:
    """Bring the files of all wheels into one directory."""
    # RECORD too: the names of a wheel's files do not have it, because it is written last.
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
    """Tell, in the thread that waits for the others, how many wheels are in all their directories."""
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
    """Return what each RECORD says, by its path."""
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
    """Write rows in the order of their paths, with the ends of lines that ``csv`` has, as pip does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(sorted([*rows, (f"{info}/RECORD", "", "")]))
    return text.getvalue().encode()

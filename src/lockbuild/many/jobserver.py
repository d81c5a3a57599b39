"""The slots of a run: how many builds, and compilers that these start, run at a time.

On POSIX the slots are those of GNU make's jobserver (the manual, "POSIX Jobserver Interaction"): a FIFO that has a byte
for each free slot. Make, ninja 1.13 and cargo take one from there for each job beside their first. So if a build is
alone at the end, its compilers use the slots of the builds that have ended. A run that was started below a jobserver
uses that one's slots; like every such program, it has one slot already.

A make before 4.4 ends with an error when it finds a FIFO. Where PATH has one, the builds are not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

_AUTH = re.compile(r"--jobserver-(?:auth|fds)=(\S+)")
_JOBS = re.compile(rf"(?<!\S)-j ?\d*(?!\S)|{_AUTH.pattern}")

_FIRST_VERSION_WITH_FIFO = (4, 4)


class Slots:
    """
    Slots that builds take and give back: bytes in a FIFO, and ``unmarked`` ones beside them.

    ``bytes_at_rest`` is how many bytes there are when no build runs, or ``None`` if others take some as well.
    """

    def __init__(self, unmarked: int, fifo: tuple[int, int] | None = None, bytes_at_rest: int | None = None) -> None:
        self._unmarked = unmarked
        self._reading = fifo[0] if fifo else None
        self._writing = fifo[1] if fifo else None
        self._bytes_at_rest = bytes_at_rest
        self._in_use = 0
        self._first_in_line = asyncio.Lock()
        self._may_be_free = asyncio.Event()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncGenerator[None, None]:
        """Take a slot as soon as there is one."""
        async with self._first_in_line:
            byte = await self._take()
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            if not self._in_use and self._bytes_at_rest is not None:
                self._refill(self._bytes_at_rest)
            elif byte and self._writing is not None:
                os.write(self._writing, byte)
            else:
                self._unmarked += 1
                self._may_be_free.set()

    async def _take(self) -> bytes:
        """Return the byte of a slot, or an empty one for a slot that has none."""
        while True:
            if self._unmarked:
                self._unmarked -= 1
                return b""
            if byte := self._read():
                return byte
            self._may_be_free.clear()
            await self._wait()

    def _read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._reading, 1) if self._reading is not None else b""
        return b""

    async def _wait(self) -> None:
        if self._reading is None:
            await self._may_be_free.wait()
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reading, self._may_be_free.set)
        try:
            await self._may_be_free.wait()
        finally:
            loop.remove_reader(self._reading)

    def _refill(self, number: int) -> None:
        """Make all slots free, those as well that killed compilers have not given back."""
        assert self._writing is not None
        while self._read():
            pass
        os.write(self._writing, b"+" * number)


@contextlib.contextmanager
def slots(jobs: int) -> Iterator[tuple[Slots, Mapping[str, str]]]:
    """Yield slots for this number of jobs, or those of an outer jobserver, and environment variables for builds."""
    with contextlib.ExitStack() as stack:
        if os.name != "posix":
            yield Slots(jobs), {}
            return
        if outer := _outer():
            for descriptor in outer:
                stack.callback(os.close, descriptor)
            yield Slots(1, outer), {}
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lockbuild-jobs-", ignore_cleanup_errors=True))
        path = os.path.join(folder, "jobserver")
        os.mkfifo(path, 0o600)
        # Opened for both, so that there always is a reader and a writer.
        fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, fifo)
        os.write(fifo, b"+" * jobs)
        flags = _JOBS.sub("", os.environ.get("MAKEFLAGS", "")).rstrip()
        variables = {"MAKEFLAGS": f"{flags} -j{jobs} --jobserver-auth=fifo:{path}"} if _make_knows_fifos() else {}
        yield Slots(0, (fifo, fifo), jobs), variables


def _outer() -> tuple[int, int] | None:
    """Open the jobserver of an outer make, to read and to write; ``None`` if there is none that can be opened."""
    named = _AUTH.findall(os.environ.get("MAKEFLAGS", ""))
    if not named:
        return None
    # The last one counts.
    auth = named[-1]
    if auth.startswith("fifo:"):
        reading = writing = auth.removeprefix("fifo:")
    else:
        # Two descriptors. Opened anew, they do not block, which they may for make.
        first, _, second = auth.partition(",")
        reading, writing = f"/proc/self/fd/{first}", f"/proc/self/fd/{second}"
    opened: list[int] = []
    try:
        for path, mode in ((reading, os.O_RDONLY), (writing, os.O_WRONLY)):
            opened.append(os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC))
            if not stat.S_ISFIFO(os.fstat(opened[-1]).st_mode):
                raise FileNotFoundError(path)
    except OSError:
        # Make closes them for what it does not take for a make.
        for descriptor in opened:
            os.close(descriptor)
        return None
    return opened[0], opened[1]


def _make_knows_fifos() -> bool:
    """Tell whether no make on PATH is too old for a jobserver with a FIFO."""
    for name in ("make", "gmake"):
        if path := shutil.which(name):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.match(r"GNU Make (\d+)\.(\d+)", answer)
            # Other makes know of no jobserver, and take no notice.
            if version and (int(version[1]), int(version[2])) < _FIRST_VERSION_WITH_FIFO:
                return False
    return True

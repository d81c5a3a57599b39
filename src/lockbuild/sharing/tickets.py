"""Tickets of processes that want a build's outcome, and outcomes: what a build has come to, as files.

In the folder of a key:

    tickets/<name>    a file that its process has locked for as long as it wants an outcome; in it `Wish`, if it has one
    mailbox/<name>/   the outcome that was delivered to that ticket
    kept/<number>/    the outcome of the last build that succeeded
    .<name>/          an outcome that is not complete yet

An outcome is a folder:

    artifacts/        what the backend has left
    output            what it has written
    outcome.json      `Outcome`; written last, so that an outcome without it is not there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.artifacts import publish
from lockbuild.environments.store import Generation, generations, is_locked
from lockbuild.locks.kernel import LocksUnsupportedError, try_to_lock

if TYPE_CHECKING:
    from collections.abc import Iterable

OUTCOME = "outcome.json"
ARTIFACTS = "artifacts"
OUTPUT = "output"


class Outcome(NamedTuple):
    """What a build has come to: an artifact, or an error."""

    builder: int
    """The process that has built."""
    made: float
    """When, in seconds since the epoch."""
    artifact: str | None
    """The artifact's name; ``None`` after a failure."""
    sha256: str
    """The artifact's, in hexadecimal digits; empty after a failure."""
    environments: tuple[Generation, ...]
    """The build environments that it was built in."""
    error: str = ""
    notes: tuple[str, ...] = ()
    """What might help against the error."""

    def write(self, folder: str) -> None:
        """Complete an outcome whose other files are in a folder that nobody looks into yet."""
        content = self._asdict() | {"environments": [[each.folder, each.name] for each in self.environments]}
        with open(os.path.join(folder, OUTCOME), "x", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(content, file)


def read_outcome(folder: str) -> Outcome | None:
    """Return the outcome in a folder, or ``None`` while there is none (or one of another version of lockbuild)."""
    try:
        with open(os.path.join(folder, OUTCOME), encoding="utf-8", errors="surrogateescape") as file:
            content = json.load(file)
        content["environments"] = tuple(Generation(*each) for each in content["environments"])
        content["notes"] = tuple(content["notes"])
        return Outcome(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Wish(NamedTuple):
    """An sdist that is wanted for the build environment of others; all by their SHA-256."""

    wanted: str
    by: tuple[str, ...]
    """What is being built and cannot go on without it, the outermost first."""


def is_circle(store: str, wish: Wish) -> bool:
    """
    Tell whether what we wish for waits for what we are building, by the wishes of other processes on their tickets.

    One process that builds A and needs B for it sees that itself when B needs A. Two processes, of which one builds A
    and one B, would wait for each other for ever.
    """
    needs: dict[str, set[str]] = {}
    for key in _names(store, ""):
        for name in _names(os.path.join(store, key), "tickets"):
            if other := _read_wish(os.path.join(store, key), name):
                for sdist in other.by:
                    needs.setdefault(sdist, set()).add(other.wanted)
    reached = [wish.wanted]
    for sdist in reached:
        reached += needs.get(sdist, set()).difference(reached)
    return not set(reached).isdisjoint(wish.by)


class Ticket:
    """The wish for an outcome of the build under a key; a context manager that ends the wish."""

    def __init__(self, folder: str, wish: Wish | None = None) -> None:
        name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._path = os.path.join(folder, "tickets", name)
        self.mailbox = os.path.join(folder, "mailbox", name)
        self._descriptor: int | None = self._lock()
        if wish is not None:
            os.write(self._descriptor, json.dumps(wish).encode())

    def __enter__(self) -> Ticket:
        """The ticket is there already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the ticket back. A builder that has just seen it may still deliver; the next one removes that."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = None
            self.empty_mailbox()

    def empty_mailbox(self) -> None:
        """Remove what was delivered."""
        shutil.rmtree(self.mailbox, ignore_errors=True)

    def _lock(self) -> int:
        while True:
            try:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            except (FileNotFoundError, FileExistsError):
                # Somebody who cleans up removes the folder between two of our steps.
                continue
            # A file system without locks: nobody can tell that we live, and nobody removes the ticket.
            locked = True
            with contextlib.suppress(LocksUnsupportedError):
                locked = try_to_lock(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if locked and os.path.samestat(os.stat(self._path), os.fstat(descriptor)):
                    return descriptor
            # Between our open and our lock a builder took it for the ticket of a process that has ended.
            os.close(descriptor)


def mailboxes(folder: str) -> list[str]:
    """Return the mailboxes of those who wait for the build of a key; tickets of processes that ended are removed."""
    return [os.path.join(folder, "mailbox", name) for name in _names(folder, "tickets") if _waits(folder, name)]


def deliver(prepared: str, addresses: Iterable[str]) -> None:
    """Deliver an outcome to mailboxes: each gets links to its files, or copies, and ``outcome.json`` last."""
    for mailbox in addresses:
        # One who gives up waiting empties his mailbox, perhaps at this moment. Another may get nothing because the disk
        # is full: he will build himself.
        with contextlib.suppress(OSError):
            os.makedirs(mailbox, exist_ok=True)
            publish(prepared, OUTCOME, mailbox)


def keep(folder: str, prepared: str) -> str:
    """
    Keep an outcome in place of that which was kept; return where. Only under the key's lock; as is what follows.

    This is the end of the build. Whoever finds another outcome than when he came has come before that.
    """
    older = _names(folder, "kept")
    number = max([time.time_ns() // 1_000_000, *(int(name) + 1 for name in older if name.isdigit())])
    os.makedirs(os.path.join(folder, "kept"), exist_ok=True)
    kept = os.path.join(folder, "kept", str(number))
    os.rename(prepared, kept)
    for name in older:
        shutil.rmtree(os.path.join(folder, "kept", name), ignore_errors=True)
    return kept


def kept_outcome(folder: str) -> str | None:
    """Return the folder of the outcome that is kept under a key, if there is one."""
    for name in sorted(filter(str.isdigit, _names(folder, "kept")), key=int, reverse=True):
        path = os.path.join(folder, "kept", name)
        if read_outcome(path) is not None:
            return path
    return None


def last_used(kept: str) -> float:
    """Return when a kept outcome was made or last taken, in seconds since the epoch."""
    return os.stat(os.path.join(kept, OUTCOME)).st_mtime


def note_use(kept: str) -> None:
    """Note that a kept outcome is taken now."""
    os.utime(os.path.join(kept, OUTCOME))


def clear_up(folder: str) -> None:
    """Remove what processes have left that were killed: builders, and waiters who do not come for their delivery."""
    for name in _names(folder, ""):
        if name.startswith("."):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    for name in _names(folder, "mailbox"):
        if not _waits(folder, name):
            shutil.rmtree(os.path.join(folder, "mailbox", name), ignore_errors=True)


def remove_kept(folder: str, oldest: float) -> int:
    """
    Remove what is kept under a key, unless it was used after ``oldest`` (seconds since the epoch) and still may be.

    It may not once an environment that it was built in has a successor. Returns how many were removed.
    """
    clear_up(folder)
    path = kept_outcome(folder)
    if path is None or (last_used(path) > oldest and _is_current(read_outcome(path))):
        return 0
    shutil.rmtree(path, ignore_errors=True)
    return 1


def remove_if_empty(folder: str) -> None:
    """Remove the folder of a key under which nothing is kept and for which nobody waits."""
    if not mailboxes(folder) and not _names(folder, "kept"):
        shutil.rmtree(folder, ignore_errors=True)


def _read_wish(folder: str, name: str) -> Wish | None:
    try:
        with open(os.path.join(folder, "tickets", name), encoding="utf-8") as file:
            wanted, by = json.load(file)
    except (OSError, ValueError):
        # It has none, or has not written it yet.
        return None
    return Wish(wanted, tuple(by)) if _waits(folder, name) else None


def _waits(folder: str, name: str) -> bool:
    return is_locked(os.path.join(folder, "tickets", name))


def _is_current(outcome: Outcome | None) -> bool:
    return outcome is not None and all(
        any(each == found for found in generations(each.folder)[:1]) for each in outcome.environments
    )


def _names(folder: str, of: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(folder, of)))
    except FileNotFoundError:
        return []

"""The bytecode that builds leave in a kept environment: whole, or absent.

The installer compiles nothing. Python compiles what a build imports and writes it beside the source. It writes under
another name and renames the file, but a full disk can cut the file short, and Python does not notice
(``_write_atomic`` in ``importlib``). The next build would then fail at its import, or hang.

So each build, at its end, verifies the new files, removes those that are not whole, and notes the size, time of change
and digest of the others. The next build removes each file that has no note, or differs from its note, before a hook
runs. A file that has its digest and another time came out of an archive, and stays. If a build removes one, it restarts
a hook host that may have read it. Python compiles again what is absent.
"""

from __future__ import annotations

import contextlib
import marshal
import os
from hashlib import sha256
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import TYPE_CHECKING

from lockbuild.environments.contents import look_at
from lockbuild.files import digest_of_file, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockbuild.environments.store import Generation

# Magic number, four bytes of flags, time of change and size of the source (PEP 552).
_HEADER = 16

# In place of the size, time and digest of a file without a note. No file has them.
_UNKNOWN = (-1, -1, "")


def keep_verified(generation: Generation, found: Mapping[str, list[int]]) -> bool:
    """
    Remove the bytecode that no build has verified; return whether there was any. Raises `OSError`.

    Another build may be running, and have written some of it for itself: it compiles again what it misses.
    """
    known = _read_notes(generation)
    restored = {}
    unverified = False
    for name, identity in found.items():
        size, changed, digest = known.get(name, _UNKNOWN)
        if [size, changed] == identity:
            continue
        with contextlib.suppress(FileNotFoundError):
            if size == identity[0] and digest_of_file(generation.path + name) == digest:
                restored[name] = (*identity, digest)
                continue
            os.unlink(generation.path + name)
        unverified = True
    if restored:
        with contextlib.suppress(OSError):
            write_json(_notes_path(generation), known | restored)
    return unverified


def verify(generation: Generation) -> None:
    """
    Verify the bytecode that a build has left, at its end; note what is whole and remove the rest.

    When two builds do this at once, the notes of one are lost. Python then compiles again what only that one had noted.
    """
    # On a disk that is still full nothing is noted, and the next build removes what is not.
    with contextlib.suppress(OSError):
        known = _read_notes(generation)
        found = look_at(generation.path).bytecode
        whole = {}
        for name, identity in found.items():
            size, changed, digest = known.get(name, _UNKNOWN)
            if [size, changed] == identity or (digest := _digest_if_whole(generation.path + name)):
                whole[name] = (*identity, digest)
            else:
                os.unlink(generation.path + name)
        if whole != known:
            write_json(_notes_path(generation), whole)


def _digest_if_whole(path: str) -> str:
    """
    Return the digest of bytecode that a hook of this build has written to its end; empty for any other.

    `marshal` may fail in any way on bytes that were made to harm. Such a hook could do harm without it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        is_whole = content.startswith(MAGIC_NUMBER + bytes(4)) and isinstance(
            marshal.loads(content[_HEADER:]), CodeType
        )
    except (EOFError, ValueError, TypeError, MemoryError, FileNotFoundError):
        return ""
    return sha256(content).hexdigest() if is_whole else ""


def _read_notes(generation: Generation) -> dict[str, tuple[object, object, object]]:
    notes = read_json(_notes_path(generation))
    if not isinstance(notes, dict):
        return {}
    return {name: (*note,) for name, note in notes.items() if isinstance(note, list) and len(note) == len(_UNKNOWN)}


def _notes_path(generation: Generation) -> str:
    return f"{generation.path}.bytecode"

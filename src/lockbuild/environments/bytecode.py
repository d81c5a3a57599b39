"""The bytecode that builds leave in a kept environment: whole, or absent.

The installer compiles nothing. Python compiles what a build imports and writes it beside the source. It writes under
another name and renames the file, but a full disk can cut the file short, and Python does not notice
(``_write_atomic`` in ``importlib``). The next build would then fail at its import, or hang.

So each build, at its end, verifies the new files, removes those that are not whole, and notes the size and time of
change of the others. The next build removes each file that has no note, or differs from its note, before a hook runs.
If it finds one, it restarts a hook host that may have read it. Python compiles again what is absent.
"""

from __future__ import annotations

import contextlib
import marshal
import os
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import TYPE_CHECKING

from lockbuild.environments.contents import look_at
from lockbuild.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockbuild.environments.store import Generation

# Magic number, four bytes of flags, time of change and size of the source (PEP 552).
_HEADER = 16


def keep_verified(generation: Generation, found: Mapping[str, list[int]]) -> bool:
    """
    Remove the bytecode that no build has verified; return whether there was any. Raises `OSError`.

    Another build may be running, and have written some of it for itself: it compiles again what it misses.
    """
    known = _read_notes(generation)
    unverified = [name for name, identity in found.items() if known.get(name) != identity]
    for name in unverified:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(generation.path + name)
    return bool(unverified)


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
            if known.get(name) == identity or _is_whole(generation.path + name):
                whole[name] = identity
            else:
                os.unlink(generation.path + name)
        if whole != known:
            write_json(_notes_path(generation), whole)


def _is_whole(path: str) -> bool:
    """
    Tell whether bytecode that a hook of this build has written was written to its end.

    `marshal` may fail in any way on bytes that were made to harm. Such a hook could do harm without it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        return content.startswith(MAGIC_NUMBER + bytes(4)) and isinstance(marshal.loads(content[_HEADER:]), CodeType)
    except (EOFError, ValueError, TypeError, MemoryError, FileNotFoundError):
        return False


def _read_notes(generation: Generation) -> dict[str, object]:
    notes = read_json(_notes_path(generation))
    return notes if isinstance(notes, dict) else {}


def _notes_path(generation: Generation) -> str:
    return f"{generation.path}.bytecode"

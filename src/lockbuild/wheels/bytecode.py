"""Bytecode that builds have made in one environment, for the next one that has the same wheel.

An installation compiles nothing: of numpy a build uses a tenth. What a build imports, Python compiles and writes into
``__pycache__`` beside the source, in the environment; the package of its backend the first build compiles as a whole
(`lockbuild.hooks.compiling`). The store notes for each wheel the last few environments that have it. When the wheel is
linked into another, the bytecode that lies beside the same source there is linked along.

That is right because a linked source has one size and one time of change everywhere, which is what Python compares
before it uses bytecode (PEP 3147, ``importlib``), and because a function's file name is set to the real one when
bytecode is loaded. It is whole because Python itself writes bytecode under another name and renames it. Bytecode of a
source that is not the store's, because somebody has edited it, is left where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

from lockbuild.wheels.store import write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockbuild.wheels.links import Linker
    from lockbuild.wheels.unpack import StoredFile, UnpackedWheel

# As many environments are asked for bytecode. Each has what those before it had, and adds what its own builds used.
_ENVIRONMENTS = 4


def environments_with(wheel: UnpackedWheel) -> list[str]:
    """Return the ``site-packages`` folders that have a wheel and are still there, the newest first."""
    try:
        with open(_notes_path(wheel), encoding="utf-8") as file:
            return [path for path in json.load(file) if os.path.isdir(path)]
    except (OSError, ValueError):
        return []


def note(wheel: UnpackedWheel, site_packages: str) -> None:
    """Note that an environment has a wheel. When two do so at once, one is forgotten: bytecode is compiled again."""
    known = [path for path in environments_with(wheel) if path != site_packages]
    with contextlib.suppress(OSError):
        write_beside(_notes_path(wheel), [site_packages, *known[: _ENVIRONMENTS - 1]])


def link_bytecode(
    wheel: UnpackedWheel, files: Sequence[StoredFile], sources: Sequence[str], folder: str, linker: Linker
) -> None:
    """Link the bytecode of a wheel's files in one folder from the same folder of other environments, where it is."""
    wanted = {file.name[:-3]: file for file in files if file.name.endswith(".py")}
    if not wanted:
        return
    cache = os.path.join(folder, "__pycache__")
    for source in sources:
        try:
            # What Python is just writing has another ending.
            names = [name for name in os.listdir(os.path.join(source, "__pycache__")) if name.endswith(".pyc")]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            module, tag, _ = (*name.split(".", 2), "", "")[:3]
            file = wanted.get(module)
            if file is None or tag != sys.implementation.cache_tag:
                continue
            bytecode = os.path.join(source, "__pycache__", name)
            # The environment may be removed in the middle of this, and nothing here is worth a failure.
            with contextlib.suppress(OSError):
                if _is_source(os.path.join(source, file.name), wheel, file) and _is_of(bytecode, wheel, file):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(cache)
                    linker.place(bytecode, os.path.join(cache, name))


def _is_source(path: str, wheel: UnpackedWheel, file: StoredFile) -> bool:
    status = os.stat(path, follow_symlinks=False)
    return (status.st_size, status.st_mtime_ns) == (file.size, wheel.mtime_ns)


def _is_of(bytecode: str, wheel: UnpackedWheel, file: StoredFile) -> bool:
    """Tell whether bytecode says that it was compiled from this source: four flag bytes of 0, its time, its size."""
    with open(bytecode, "rb") as opened:
        header = opened.read(16)
    seconds = wheel.mtime_ns // 1_000_000_000 & 0xFFFFFFFF
    return header[4:] == b"".join(n.to_bytes(4, "little") for n in (0, seconds, file.size & 0xFFFFFFFF))


def _notes_path(wheel: UnpackedWheel) -> str:
    return os.path.join(os.path.dirname(wheel.path), "bytecode.json")

"""Wheels of projects that are built in the same run: which of them an environment needs, and how it gets them.

A project of the run wins over any release of it on an index. So its wheel is a constraint for the installer, and what
is in the wheel belongs to the key of the environment. The bytes of the wheel do not: setuptools writes other times into
each archive.
"""

from __future__ import annotations

import pathlib
import zipfile
from email.parser import BytesHeaderParser
from hashlib import sha256
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lockbuild.artifacts import metadata_of_wheel
from lockbuild.errors import ArtifactError, SourceNotBuiltError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def needed_wheels(requirements: Collection[str], sources: Mapping[str, str | None]) -> dict[str, str]:
    """
    Return the wheels that requirements need, by their normalized names, also those that the wheels themselves require.

    ``sources`` are the wheels of all projects of the run; ``None`` for one that is not built yet. Raises
    `SourceNotBuiltError` if one of these is needed.
    """
    wheels: dict[str, str] = {}
    missing = set()
    seen = set()
    waiting = [(requirement, frozenset[str]()) for requirement in requirements]
    while waiting:
        text, outer_extras = waiting.pop()
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            # The installer says what is wrong with it.
            continue
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in outer_extras or {""}
        )
        if not applies or name not in sources or (name, extras) in seen:
            continue
        seen.add((name, extras))
        wheel = sources[name]
        if wheel is None:
            missing.add(str(name))
            continue
        wheels[name] = wheel
        metadata = BytesHeaderParser().parsebytes(metadata_of_wheel(wheel))
        waiting += [(required, extras) for required in metadata.get_all("Requires-Dist", ())]
    if missing:
        raise SourceNotBuiltError(sorted(missing))
    return wheels


def digests_of(wheels: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of the contents of each wheel: of the hashes that its RECORD lists."""
    return {name: _digest_of_record(wheel) for name, wheel in wheels.items()}


def _digest_of_record(wheel: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.count("/") == 1 and name.endswith(".dist-info/RECORD"):
                return sha256(b"\n".join(sorted(archive.read(name).splitlines()))).hexdigest()
    raise ArtifactError(f"{wheel!r} is not a valid wheel: it has no RECORD")


def as_constraints(wheels: Mapping[str, str]) -> str:
    """Return lines of a constraints file that have an installer take these wheels (PEP 508)."""
    return "".join(f"{name} @ {pathlib.Path(wheel).absolute().as_uri()}\n" for name, wheel in sorted(wheels.items()))

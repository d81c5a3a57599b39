"""What an environment consists of, to compare two that different installers have filled."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path


def contents(environment: Path) -> dict[str, object]:
    """
    Return what an environment consists of: contents and permissions by path, and of a RECORD its rows.

    Paths of the environment are replaced, as in shebangs. Bytecode does not count, nor do the hash and size of scripts.
    """
    found: dict[str, object] = {}
    for path in environment.rglob("*"):
        name = str(path.relative_to(environment))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and "__pycache__" not in path.parts and not path.name.lower().startswith("activate"):
            content = path.read_bytes().replace(os.fsencode(environment), b"ENV")
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.name == "RECORD":
                # pip lists a script of the archive that it has left out for an entry point; it is nowhere.
                rows = [row.rsplit(",", 2) for row in content.decode().splitlines() if ".data/scripts/" not in row]
                found[name] = sorted(row[:1] if "/bin/" in row[0] else row for row in rows), mode
            elif path.parent.name == "bin":
                # The form of a shebang, and all but the import and the call in what is written for an entry point.
                content = re.sub(rb"\A#!(/bin/sh\n'''exec' .*\n' '''\n|\S+\n)", b"", content)
                written = re.findall(rb"^\s*(from \S+ import \S+|sys\.exit\(.*)$", content, re.MULTILINE)
                found[name] = (written if b"sys.argv[0]" in content else content), mode
            else:
                found[name] = content, mode
    return found


def assert_equal(mine: Path, theirs: Path) -> None:
    """Compare everything but the form of scripts."""
    ours, other = contents(mine), contents(theirs)
    assert ours.keys() == other.keys()
    assert {name: (ours[name], other[name]) for name in ours if ours[name] != other[name]} == {}

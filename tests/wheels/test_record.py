"""Wheels whose RECORD says too little: they are installed as pip does it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from installed import contents
from lockbuild.errors import WheelError
from lockbuild.wheels import install_wheels
from wheelhouse import Wheelhouse

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow

RECORD = "alpha-1.0.dist-info/RECORD"


def with_record(wheel: Path, change: Callable[[str], str]) -> Path:
    """Change each row of a wheel's RECORD; an empty row is left out."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    members[RECORD] = "".join(f"{row}\n" for row in map(change, members[RECORD].splitlines()) if row)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel


def with_paths_of_record(environment: Path) -> dict[str, Any]:
    """Return what an environment consists of; of a RECORD only the paths."""
    found = cast("dict[str, Any]", contents(environment))
    return {
        name: ([row[0] for row in value[0]], value[1]) if name.endswith("/RECORD") else value
        for name, value in found.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda row: f"{row.split(',')[0]},,",
        lambda row: row.split(",")[0],
        lambda row: row.rpartition(",")[0] + ",",
        lambda row: "" if row.startswith("alpha.py") else row,
        lambda row: row if row.startswith(RECORD) else "",
    ],
    ids=["no hashes", "no columns", "no sizes", "a file is missing", "all files are missing"],
)
def test_a_wheel_whose_record_lacks_hashes_or_files_is_installed_as_pip_does(
    house: Wheelhouse, make_environment: Callable[[str], Path], change: Callable[[str], str]
) -> None:
    wheel = with_record(house.add_wheel("alpha", scripts={"tool": "#!python\n", "text": "text\n"}), change)
    mine, theirs = make_environment("mine"), make_environment("theirs")
    pip = [sys.executable, "-m", "pip", "--python", str(theirs), "install", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # pip writes the origin of a file that it is given; the installer of an environment is given requirements.
    [origin] = theirs.rglob("direct_url.json")
    origin.unlink()
    record = origin.with_name("RECORD")
    record.write_text("".join(row for row in record.read_text().splitlines(True) if "direct_url.json" not in row))
    install_wheels([wheel], mine, requested=["alpha"], installer="pip")
    assert with_paths_of_record(mine) == with_paths_of_record(theirs)
    [record] = mine.rglob("RECORD")
    # Ours says what it has installed, where pip repeats what the wheel says.
    assert [row for row in record.read_text().splitlines() if ",," in row] == [f"{RECORD},,"]


@pytest.mark.parametrize("size", ["1", "999"])
def test_a_wrong_size_is_refused_even_where_there_is_no_hash(house: Wheelhouse, environment: Path, size: str) -> None:
    wheel = with_record(
        house.add_wheel("alpha"), lambda row: f"{row.split(',')[0]},,{size if 'alpha.py' in row else ''}"
    )
    with pytest.raises(WheelError, match=r"'alpha\.py' is not what its RECORD says"):
        install_wheels([wheel], environment)
    assert not list(environment.rglob("alpha.py"))
    assert os.listdir(environment / "bin")

"""The rows of builds in private views of their tree, beside builds that share it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contest import Contestant, Place, Row
from trees import make_extension, make_tree

NEWEST_MINOR = 16

# Prints the interpreters that ``--python`` finds, those of pyenv that are not active included.
FIND_PYTHONS = f"""
import os
from pathlib import Path
from lockbuild.errors import PythonNotFoundError
from lockbuild.other_python import OLDEST, find_python
versions = Path(os.environ.get("PYENV_ROOT", ""), "versions")
if "PYENV_ROOT" in os.environ and versions.is_dir():
    os.environ["PYENV_VERSION"] = ":".join(path.name for path in versions.iterdir())
for minor in range(OLDEST[1], {NEWEST_MINOR}):
    try:
        print(find_python(f"3.{{minor}}").executable)
    except PythonNotFoundError:
        pass
"""

# A build with each Python, all at once.
AT_ONCE = """
for python in $PYTHONS; do "$0" --python "$python" "$@" & started="$started $!"; done
for each in $started; do wait "$each" || exit; done
"""


def rows(place: Place) -> list[Row]:
    def both(*program: str, **more: Any) -> list[Contestant]:
        return [
            Contestant(mode, [*program, place.lockbuild, "--tree", mode, "--wheel", "-o", "OUT", "TREE"], **more)
            for mode in ("private", "shared")
        ]

    pythons = _pythons(place)

    def name_pythons() -> Mapping[str, str]:
        return {"PYTHONS": " ".join(pythons)}

    uv = Contestant("uv build", [place.uv, "build", "--wheel", "-o", "OUT", "TREE"], at_once=10)
    return [
        Row(
            f"one tree with C code, {len(pythons)} Pythons",
            both("sh", "-c", AT_ONCE, make=partial(make_extension, functions=350), prepare=name_pythons),
            {"shared": 0.65},
        ),
        Row("10 at once of one tree, private", [*both(at_once=10), uv], {"shared": 1.0, "uv build": 0.35}),
        Row("one wheel, private", both(), {"shared": 1.06}, rounds=5),
        Row(
            "set-up of a private view",
            [_set_up(place, "private", 100_000), _set_up(place, "10 files", 10)],
            {"10 files": "5 ms more"},
            rounds=5,
        ),
    ]


def _set_up(place: Place, name: str, files: int) -> Contestant:
    tree = place.folder / f"tree-of-{files}"

    def prepare() -> Mapping[str, str]:
        if not tree.exists():
            make_tree(tree, files)
        return {}

    command = [str(place.bin / "lockbuild-run"), "-C", str(tree), "--tree", "private", "--", "true"]
    return Contestant(name, command, prepare=prepare)


def _pythons(place: Place) -> Sequence[str]:
    command = [str(place.bin / "python"), "-c", FIND_PYTHONS]
    return subprocess.run(command, env=place.environ, check=True, capture_output=True, text=True).stdout.splitlines()

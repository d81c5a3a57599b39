"""The rows of single builds, alone and several at once, each with a command of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from contest import ROOT, Contestant, Place, Row
from trees import make_tree

# What both hooks cost in one interpreter that does nothing else: no frontend can be faster.
FLOOR = """
import os, sys
tree, out = sys.argv[1:]
os.chdir(tree)
import setuptools.build_meta as backend
backend.get_requires_for_build_wheel({})
backend.build_wheel(out, {})
"""


# Installs a frontend into a new environment and builds with it, as a job in a fresh container does.
IN_A_CONTAINER = (
    '"$NEW/bin/python" -m pip install --quiet "$PACKAGE" && exec "$NEW/bin/python" -m "$0" --wheel -o "$1" "$2"'
)


def rows(place: Place) -> list[Row]:
    lockbuild, uv = place.lockbuild, place.uv
    build = [str(place.bin / "python"), "-m", "build"]
    floor = place.folder / "floor"

    def empty_cache() -> Mapping[str, str]:
        return {"LOCKBUILD_CACHE_DIR": tempfile.mkdtemp(dir=place.folder)}

    def without_bytecode() -> Mapping[str, str]:
        return {"PYTHONDONTWRITEBYTECODE": "1"}

    def fresh_container(package: str) -> Mapping[str, str]:
        new = tempfile.mkdtemp(dir=place.folder)
        place.run([sys.executable, "-m", "venv", f"{new}/venv"])
        folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCKBUILD_CACHE_DIR"), f"{new}/home")
        return {**without_bytecode(), **folders, "NEW": f"{new}/venv", "PACKAGE": package}

    def make_wheel() -> str:
        folder = place.folder / "wheel"
        if not folder.exists():
            place.run([lockbuild, "--wheel", "-o", str(folder), str(ROOT)])
        [wheel] = folder.iterdir()
        return str(wheel)

    def make_floor() -> Mapping[str, str]:
        if not floor.exists():
            place.run([sys.executable, "-m", "venv", str(floor)])
            place.run([str(floor / "bin" / "python"), "-m", "pip", "install", "-q", "-U", "setuptools"])
            (place.folder / "floor.py").write_text(FLOOR)
        return {}

    def three(*options: str, **more: Any) -> list[Contestant]:
        return [
            Contestant("lockbuild", [lockbuild, *options, "-o", "OUT", "TREE"], **more),
            Contestant("uv build", [uv, "build", *options, "-o", "OUT", "TREE"], **more),
            Contestant("python -m build", [*build, *options, "-o", "OUT", "TREE"], **more),
        ]

    sdist = place.folder / "three_lines-1.0.tar.gz"

    def make_sdist() -> Mapping[str, str]:
        if not sdist.exists():
            place.run([lockbuild, "--sdist", "-o", str(place.folder), str(make_tree(place.folder / "sdist"))])
        return {}

    of_one_sdist = [
        Contestant(each.name, [*each.command[:-1], str(sdist)], each.at_once, prepare=make_sdist)
        for each in three("--wheel", at_once=8)
    ]
    many_files = partial(make_tree, files=5000)
    floor_command = [str(floor / "bin" / "python"), str(place.folder / "floor.py"), "TREE", "OUT"]
    return [
        Row(
            "one wheel",
            [*three("--wheel"), Contestant("floor", floor_command, prepare=make_floor)],
            {"uv build": 0.32, "python -m build": 0.17, "floor": 1.4},
            rounds=5,
        ),
        Row(
            "one wheel, PYTHONDONTWRITEBYTECODE",
            [replace(each, prepare=without_bytecode) for each in three("--wheel")],
            {"uv build": 0.32},
            rounds=3,
        ),
        Row("sdist, and wheel from it", three(), {"uv build": 0.35, "python -m build": 0.17}, rounds=2),
        Row(
            "one wheel, empty cache, pip",
            [
                Contestant("lockbuild", [lockbuild, "--wheel", "-o", "OUT", "TREE"], prepare=empty_cache),
                *three("--wheel")[1:],
            ],
            {"uv build": 1.15, "python -m build": 0.5},
            rounds=2,
        ),
        Row(
            "one wheel, empty cache, uv",
            [
                Contestant(
                    "lockbuild", [lockbuild, "--installer", "uv", "--wheel", "-o", "OUT", "TREE"], prepare=empty_cache
                ),
                Contestant("uv build", [uv, "build", "--wheel", "-o", "OUT", "TREE"]),
            ],
            {"uv build": 0.7},
            rounds=3,
        ),
        Row(
            "fresh container: pip install, one wheel",
            [
                Contestant(name, ["sh", "-c", IN_A_CONTAINER, module, "OUT", "TREE"], prepare=prepare)
                for name, module, prepare in (
                    ("lockbuild", "lockbuild", lambda: fresh_container(make_wheel())),
                    ("python -m build", "build", lambda: fresh_container("build")),
                )
            ],
            {"python -m build": 0.75},
        ),
        # python -m build loses some of them, so that its time would be no time.
        Row("10 at once of one tree", three("--wheel", at_once=10)[:2], {"uv build": 0.45}),
        Row("8 at once of 8 trees", three("--wheel", at_once=8, trees=8)[:2], {"uv build": 0.45}),
        Row("8 at once of one sdist", of_one_sdist, {"uv build": 0.2, "python -m build": 0.1}),
        Row(
            "one wheel, 5,000 files",
            [
                *three("--wheel", make=many_files)[:2],
                Contestant("floor", floor_command, make=many_files, prepare=make_floor),
            ],
            {},
        ),
        Row(
            "--version",
            [Contestant("lockbuild", [lockbuild, "--version"]), Contestant("python -m build", [*build, "--version"])],
            {"python -m build": 0.6},
            rounds=5,
        ),
    ]

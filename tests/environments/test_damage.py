"""Files of the store that are damaged, of the wrong kind, or of a time to come: an environment is not there, then."""

from __future__ import annotations

import json
import os
import py_compile
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lockbuild.environments.bytecode import keep_verified, verify
from lockbuild.environments.contents import digest_of_contents, look_at
from lockbuild.environments.store import Generation, Manifest, User, generations
from wheelhouse import ProbeTree, created


def _kept(folder: Path) -> Generation:
    """Make what a build leaves in the store."""
    generation = Generation(str(folder), "1")
    scripts = Path(generation.path, "bin")
    scripts.mkdir(parents=True)
    (scripts / "python").symlink_to("/usr/bin/env")
    Path(generation.users_path).mkdir()
    source = Path(generation.path, "module.py")
    source.write_text("VALUE = 1\n")
    py_compile.compile(str(source), doraise=True)
    contents, seen = digest_of_contents(generation.path), look_at(generation.path).digest
    versions, wheels = {"setuptools": "84.2.1"}, {"setuptools-84.2.1-py3-none-any.whl": "0" * 64}
    generation.write_manifest(
        Manifest(
            made=time.time(),
            python_executable=f"{scripts}/python",
            scripts=str(scripts),
            requirements=("setuptools",),
            packages=versions,
            contents=contents,
            sources="",
            required=versions,
            wheels=wheels,
            seen=seen,
        )
    )
    verify(generation)
    assert Path(f"{generation.path}.bytecode").exists()
    return generation


_WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    10**400,
    1.5,
    -1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    ["x"],
    {},
    {"x": []},
]

_TEXTS = ["", "null", "[]", "1", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\ud800", "\0"]


@pytest.mark.parametrize("field", Manifest._fields)
def test_a_field_of_the_wrong_type_makes_a_manifest_one_that_is_not_there(tmp_path: Path, field: str) -> None:
    generation = _kept(tmp_path)
    manifest = generation.read_manifest()
    assert manifest is not None
    for wrong in _WRONG:
        Path(generation.manifest_path).write_text(json.dumps({**manifest._asdict(), field: wrong}))
        read = generation.read_manifest()
        # What is read all the same has the right type.
        if read is not None:
            assert type(read._asdict()[field]) is type(manifest._asdict()[field]) or (
                field == "wheels" and wrong is None
            )
            assert field not in ("python_executable", "scripts"), wrong
            assert 0 < read.made < 1e11
            assert all(isinstance(version, str) for version in (*read.packages.values(), *read.required.values()))


@pytest.mark.parametrize("field", Manifest._fields)
def test_a_manifest_without_a_field_is_not_there_unless_there_is_a_default(tmp_path: Path, field: str) -> None:
    generation = _kept(tmp_path)
    manifest = json.loads(Path(generation.manifest_path).read_text())
    del manifest[field]
    Path(generation.manifest_path).write_text(json.dumps(manifest))
    assert (generation.read_manifest() is not None) == (field in Manifest._field_defaults)


@pytest.mark.parametrize(
    "elsewhere",
    ["/bin/python", "bin/python", "{0}/../2/bin/python", "{0}2/bin/python", "{0}", "{0}/bin/sh", "{0}/bin/python\0"],
)
def test_a_manifest_that_names_an_interpreter_elsewhere_is_refused(tmp_path: Path, elsewhere: str) -> None:
    generation = _kept(tmp_path)
    manifest = generation.read_manifest()
    assert manifest is not None
    interpreter = elsewhere.format(generation.path)
    generation.write_manifest(manifest._replace(python_executable=interpreter, scripts=os.path.dirname(interpreter)))
    assert generation.read_manifest() is None


def test_another_path_to_the_same_store_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    generation = _kept(tmp_path / "store")
    assert Generation(str(tmp_path / "link"), "1").read_manifest() == generation.read_manifest() is not None


def test_an_environment_in_use_is_not_removed_and_stays_complete(tmp_path: Path) -> None:
    generation = _kept(tmp_path)
    manifest = generation.read_manifest()
    user = User(generation)
    assert user.begin()
    assert generation.is_used()
    assert not generation.remove()
    assert generation.read_manifest() == manifest is not None
    assert Path(generation.path).is_dir()
    user.end()
    assert not generation.is_used()
    assert generation.remove()
    assert not user.begin()
    assert [*tmp_path.glob("1*")] == []


@pytest.mark.parametrize("is_there", [False, True])
def test_without_a_folder_of_users_an_environment_has_none(tmp_path: Path, is_there: bool) -> None:
    generation = _kept(tmp_path)
    users = Path(generation.users_path)
    users.rmdir()
    if is_there:
        users.touch()
    assert not generation.is_used()
    assert (generation.last_used() > 0) == is_there


def _be_a_file(path: Path, chance: random.Random) -> None:
    _vanish(path, chance)
    path.write_bytes(chance.randbytes(chance.choice([0, 1, 5000])))


def _be_a_folder(path: Path, chance: random.Random) -> None:
    _vanish(path, chance)
    (path / "something").mkdir(parents=True)


def _be_a_fifo(path: Path, chance: random.Random) -> None:
    _vanish(path, chance)
    os.mkfifo(path)


def _be_a_link(path: Path, chance: random.Random) -> None:
    _vanish(path, chance)
    path.symlink_to(chance.choice(["nowhere", "/dev/null"]))


def _have_text(path: Path, chance: random.Random) -> None:
    _vanish(path, chance)
    path.write_text(chance.choice(_TEXTS), "utf-8", "surrogatepass")


def _vanish(path: Path, _: random.Random) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


_DAMAGE: list[Callable[[Path, random.Random], None]] = [
    *(_be_a_file, _be_a_folder, _be_a_fifo, _be_a_link, _have_text, _vanish)
]


@pytest.mark.parametrize("damage", _DAMAGE)
@pytest.mark.parametrize("name", ["", "1", "1.json", "1.users", "1.bytecode", "1/bin", "1/bin/python"])
def test_each_kind_of_damage_to_each_file_is_survived_and_removed(
    tmp_path: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    for seed in range(3):
        folder = tmp_path / str(seed)
        generation = _kept(folder)
        damage(folder / name, random.Random(seed))
        manifest = generation.read_manifest()
        if manifest is not None and Path(generation.path).is_dir():
            keep_verified(generation, look_at(generation.path).bytecode)
        verify(generation)
        user = User(generation)
        user.begin()
        user.end()
        generation.last_used()
        for found in generations(str(folder)):
            assert found.remove()
        assert generations(str(folder)) == []
        assert [*folder.glob("1*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "KEY", "1", "1.json", "1.users", "1.bytecode"])
@pytest.mark.parametrize("damage", [_be_a_file, _be_a_folder, _have_text])
def test_a_build_succeeds_whatever_is_in_the_place_of_a_file_of_the_store(
    tree: ProbeTree, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    tree.build()
    [environment] = tree.environments()
    places = {"": tree.store, "KEY": environment.parent}
    damage(places.get(name, Path(f"{environment}{name[1:]}")), random.Random(1))
    for _ in range(2):
        error = tree.build()
        assert "Traceback" not in error
        assert "bug in lockbuild" not in error
    assert created(error) == 0


def _empty(paths: Iterable[Path]) -> None:
    """Leave files as a journal does after a power failure: with their times, and without what was to be in them."""
    files = [path for path in paths if path.is_file() and not path.is_symlink() and path.stat().st_size]
    assert files
    for path in files:
        before = path.stat()
        os.truncate(path, 0)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _files_of_packages(tree: ProbeTree) -> Iterable[Path]:
    return tree.store.glob("*/*/lib/**/probe_backend*.py")


_KEPT: dict[str, Callable[[ProbeTree], Iterable[Path]]] = {
    "an environment": _files_of_packages,
    "its programs": lambda tree: tree.store.glob("*/*/bin/*"),
    "its bytecode": lambda tree: tree.store.glob("*/*/**/*.pyc"),
    "its manifest": lambda tree: tree.store.glob("*/*.json"),
    "the notes of its bytecode": lambda tree: tree.store.glob("*/*.bytecode"),
    "unpacked wheels": lambda tree: [*(tree.cache / "wheels").glob("*/*/**/*"), *_files_of_packages(tree)],
    "manifests of unpacked wheels": lambda tree: [
        *(tree.cache / "wheels").glob("*/manifest.json"),
        *_files_of_packages(tree),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kept", _KEPT)
def test_files_that_a_power_failure_has_emptied_are_made_again(tree: ProbeTree, kept: str) -> None:
    tree.build()
    tree.build()
    _empty(_KEPT[kept](tree))
    tree.build()
    assert created(tree.build()) == 0
    [environment] = tree.environments()
    assert all(path.stat().st_size for path in _files_of_packages(tree))
    assert all(path.stat().st_size for path in environment.rglob("*.pyc"))


@pytest.mark.slow
def test_an_environment_of_a_clock_that_was_ahead_is_made_again(tree: ProbeTree) -> None:
    tree.build()
    for options in ((), ("--refresh",)):
        [environment] = tree.environments()
        manifest_file = Path(f"{environment}.json")
        ahead = time.time() + 3600
        manifest_file.write_text(json.dumps({**json.loads(manifest_file.read_text()), "made": ahead}))
        note = environment.parent / "unreachable"
        note.touch()
        os.utime(note, (ahead, ahead))
        assert created(tree.build(*options)) == 1
        assert tree.environments() != [environment]
    assert created(tree.build()) == 0

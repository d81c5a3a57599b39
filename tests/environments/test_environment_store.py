"""Generations in the store of environments: how they are named, used, removed, and seen to have changed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockbuild.environments import store
from lockbuild.environments.contents import digest_of_contents, look_at
from lockbuild.environments.store import (
    Generation,
    Manifest,
    User,
    generations,
    is_locked,
    new_generation,
    remove_unused,
)
from lockbuild.locks import kernel
from lockbuild.locks.kernel import LocksUnsupportedError


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    """A complete environment with a module, its bytecode, and a link."""
    generation = Generation(str(tmp_path), "1")
    cache = Path(generation.path, "package", "__pycache__")
    cache.mkdir(parents=True)
    (cache / "m.pyc").write_text("bytecode")
    (cache.parent / "m.py").write_text("1")
    Path(generation.path, "link").symlink_to("package")
    scripts = f"{generation.path}/bin"
    contents, seen = digest_of_contents(generation.path), look_at(generation.path).digest
    manifest = Manifest(time.time(), f"{scripts}/python", scripts, (), {}, contents, "", seen=seen)
    generation.write_manifest(manifest)
    return generation


# What is seen of its contents


def _change(path: Path) -> None:
    status = path.stat()
    path.write_text("12")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a size": lambda path: _change(path / "package" / "m.py"),
    "a time": lambda path: os.utime(path / "package" / "m.py", (1, 1)),
    "a mode": lambda path: (path / "package" / "m.py").chmod(0o755),
    "a link": lambda path: (path / "another").symlink_to("nothing"),
    "an empty folder": lambda path: (path / "empty").mkdir(),
    "a file": lambda path: (path / "package" / "n.py").touch(),
    "a name": lambda path: (path / "package" / "m.py").rename(path / "package" / "n.py"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(generation: Generation, what: str) -> None:
    before = look_at(generation.path).digest
    CHANGES[what](Path(generation.path))
    assert look_at(generation.path).digest != before


@pytest.mark.parametrize("what", CHANGES)
def test_a_time_is_no_change_of_the_contents_and_everything_else_is(generation: Generation, what: str) -> None:
    before = digest_of_contents(generation.path)
    CHANGES[what](Path(generation.path))
    assert (digest_of_contents(generation.path) == before) == (what == "a time")


def test_what_only_group_and_others_may_do_is_no_change_of_the_contents(generation: Generation) -> None:
    module = Path(generation.path, "package", "m.py")
    module.chmod(0o644)
    before = digest_of_contents(generation.path)
    module.chmod(0o600)
    assert digest_of_contents(generation.path) == before


def test_other_contents_of_the_same_size_are_seen(generation: Generation) -> None:
    before = digest_of_contents(generation.path)
    Path(generation.path, "package", "m.py").write_text("2")
    assert digest_of_contents(generation.path) != before


def test_another_target_of_a_link_is_seen(generation: Generation) -> None:
    before = look_at(generation.path).digest
    link = Path(generation.path, "link")
    link.unlink()
    link.symlink_to("elsewhere")
    assert look_at(generation.path).digest != before


def test_bytecode_and_the_times_of_folders_are_no_change(generation: Generation) -> None:
    before = look_at(generation.path).digest
    cache = Path(generation.path, "package", "__pycache__")
    (cache / "n.pyc").symlink_to("m.pyc")
    os.utime(cache.parent, (1, 1))
    after, bytecode, _ = look_at(generation.path)
    assert after == before
    link = (cache / "n.pyc").lstat()
    assert bytecode["/package/__pycache__/n.pyc"] == [link.st_size, link.st_mtime_ns]


@contextlib.contextmanager
def _reversed(path: str, scandir: Callable[[str], Iterator[os.DirEntry[str]]] = os.scandir) -> Iterator[object]:
    yield sorted(scandir(path), key=lambda entry: entry.name, reverse=True)


def test_the_order_in_which_a_folder_is_read_does_not_matter(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look_at(generation.path).digest
    monkeypatch.setattr(os, "scandir", _reversed)
    assert look_at(generation.path).digest == before


@pytest.mark.parametrize("what", ["n.pyc", "__pycache__"])
def test_bytecode_that_another_build_removes_meanwhile_is_not_there(
    generation: Generation, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(generation.path, "package", "__pycache__")
    (cache / "n.pyc").touch()

    @contextlib.contextmanager
    def late(path: str) -> Iterator[object]:
        if Path(path) == cache and what == cache.name:
            raise FileNotFoundError(path)
        with _reversed(path) as entries:
            if Path(path) == cache:
                (cache / what).unlink()
            yield entries

    monkeypatch.setattr(os, "scandir", late)
    assert [*look_at(generation.path).bytecode] == (["/package/__pycache__/m.pyc"] if what == "n.pyc" else [])


# Users


def test_who_begins_has_a_file_until_the_end(generation: Generation) -> None:
    user = User(generation)
    assert user.begin()
    [name] = os.listdir(generation.users_path)
    assert is_locked(os.path.join(generation.users_path, name))
    user.end()
    assert os.listdir(generation.users_path) == []


def test_an_environment_that_is_not_complete_is_not_used(generation: Generation) -> None:
    os.unlink(generation.manifest_path)
    user = User(generation)
    assert not user.begin()
    assert user.descriptors == ()
    assert os.listdir(generation.users_path) == []


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(generation: Generation) -> None:
    user = User(generation)
    [name] = os.listdir(generation.users_path)
    path = os.path.join(generation.users_path, name)
    os.unlink(path)
    assert user.begin()
    assert is_locked(path)
    os.unlink(path)
    user.end()


def test_a_file_that_a_remover_holds_for_a_moment_is_locked_after_it(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(store, "try_to_lock", lambda _: next(answers))
    user = User(generation)
    assert user.begin()
    assert next(answers, None) is None
    user.end()


def test_without_locks_each_user_counts_as_running(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: int) -> bool:
        raise LocksUnsupportedError

    monkeypatch.setattr(store, "try_to_lock", unsupported)
    monkeypatch.setattr(kernel, "try_to_lock", unsupported)
    user = User(generation)
    assert user.begin()
    assert generation.is_used()
    assert not generation.remove()
    user.end()


def test_a_file_in_the_place_of_the_folder_of_users_is_replaced(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    users = Path(generation.users_path)
    users.touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert not User(generation).begin()
    user = User(generation)
    assert user.begin()
    user.end()
    assert users.is_dir()


def test_the_file_of_a_user_is_no_standard_stream(generation: Generation) -> None:
    program = (
        "import os, sys; from lockbuild.environments.store import *; os.close(0);"
        f"print(User(Generation({generation.folder!r}, '1')).descriptors[0])"
    )
    assert int(subprocess.check_output([sys.executable, "-c", program])) > 2


def test_what_is_left_of_a_user_is_removed_and_a_folder_there_is_none(generation: Generation) -> None:
    users = Path(generation.users_path)
    users.mkdir()
    (users / "folder").mkdir()
    (users / "ended").touch()
    assert not is_locked(str(users / "vanished"))
    assert not generation.is_used()
    assert os.listdir(users) == ["folder"]


def test_a_remover_takes_the_manifest_away_before_it_looks_for_users(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = generation.read_manifest()
    monkeypatch.setattr(Generation, "is_used", lambda self: not os.path.exists(self.manifest_path))
    assert not generation.remove()
    assert generation.read_manifest() == manifest is not None


# Names


def test_names_that_are_no_numbers_are_no_generations(generation: Generation) -> None:
    for name in ("2", "10", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 30, "-1", "x", "3.json"):
        Path(generation.folder, name).touch()
    assert [found.name for found in generations(generation.folder)] == ["10", "3", "2", "1"]


def test_no_name_is_used_twice_even_if_the_clock_was_ahead(generation: Generation) -> None:
    ahead = str(10**15)
    Path(generation.folder, ahead).mkdir()
    assert new_generation(generation.folder).name == str(10**15 + 1)


def test_what_is_to_be_kept_is_not_removed(generation: Generation) -> None:
    other = Generation(generation.folder, "2")
    os.mkdir(other.path)
    assert remove_unused(generation.folder, lambda found: found == generation) == [other]
    assert generations(generation.folder) == [generation]

"""Where lock files go when the cache folder cannot be had: to a private fallback folder, with one warning, or nowhere.

Root ignores modes, so what depends on them is tested as an unprivileged user without an entry in the user database.
A build never goes on unlocked: every success here is one of a build that was seen to lock the tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.locks import DirectoryLock, LockRequest
from machine import (
    PublicPlace,
    after_setup,
    as_root,
    bind,
    error_line,
    linux_only,
    public_place,
    wait_until_it_waits,
    warnings_in,
)
from witness import WitnessTree

pytestmark = linux_only

ALICE = 64_004

DEFAULT_RUN: tuple[str, ...] = ("-x",)
"""Options of a build without --wheel: an sdist, then a wheel from it. It locks two trees."""


@pytest.fixture
def place() -> Iterator[PublicPlace]:
    with public_place() as made:
        yield made


def fallback_of(temporary: Path, user: int) -> Path:
    return temporary / f"lockbuild-{user}"


def check_fallback(folder: Path, user: int) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == user
    assert list((folder / "locks").glob("setuptools-*.lock")), "nothing was locked"


@pytest.mark.parametrize(
    "options", [("--wheel",), pytest.param(DEFAULT_RUN, marks=pytest.mark.slow)], ids=["wheel", "sdist and wheel"]
)
def test_a_cache_folder_that_cannot_be_made_is_one_warning(
    witness_tree: WitnessTree, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    build = witness_tree.start(*options, env={"LOCKBUILD_CACHE_DIR": str(tmp_path / "file" / "cache")})
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 0, error
    [warning] = warnings_in(error)
    assert str(tmp_path / "file" / "cache" / "locks") in warning
    assert str(fallback_of(tmp_path / "tmp", os.getuid())) in warning
    check_fallback(fallback_of(tmp_path / "tmp", os.getuid()), os.getuid())


@pytest.mark.slow
def test_a_folder_of_the_cache_has_one_lock_file_wherever_the_cache_is_mounted(tmp_path: Path) -> None:
    files = []
    for cache in (tmp_path / "here", tmp_path / "there"):
        folder = cache / "wheels" / "digest"
        folder.mkdir(parents=True)
        with DirectoryLock(LockRequest(str(folder), "a wheel", cache)) as lock:
            assert lock.lock_file is not None
            files.append(Path(lock.lock_file).relative_to(cache))
    assert files[0] == files[1]


def test_builds_with_the_fallback_folder_wait_for_those_with_a_cache_folder(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path, env={"LOCKBUILD_CACHE_DIR": "/proc/cannot/be"})
    witness_tree.wait_for_entry()
    waiter = witness_tree.start()
    assert f"held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()


@pytest.mark.parametrize("options", [("--wheel",), DEFAULT_RUN], ids=["wheel", "sdist and wheel"])
@pytest.mark.parametrize("unwritable", ["cache", "cache/locks"])
@pytest.mark.slow
@as_root
def test_a_cache_folder_that_the_user_may_not_write_is_one_warning(
    place: PublicPlace, unwritable: str, options: tuple[str, ...]
) -> None:
    folder = place.path / unwritable
    folder.mkdir(parents=True)
    alice = place.user(ALICE)
    env = alice.environ | {"LOCKBUILD_CACHE_DIR": str(place.path / "cache")}
    build = place.tree.start(*options, command=alice.lockbuild, env=env)
    [(status, _, error)] = place.tree.finish(build)
    assert status == 0, error
    assert len(warnings_in(error)) == 1, error
    check_fallback(fallback_of(alice.folder / "tmp", ALICE), ALICE)


@as_root
def test_a_user_without_a_home_and_without_an_entry_builds_with_one_warning(place: PublicPlace) -> None:
    alice = place.user(ALICE)
    env = alice.environ | {"LOCKBUILD_CACHE_DIR": None, "HOME": None, "XDG_CACHE_HOME": None}
    build = place.tree.start(command=alice.lockbuild, env=env)
    [(status, _, error)] = place.tree.finish(build)
    assert status == 0, error
    assert [warning.partition(";")[0] for warning in warnings_in(error)] == [
        "WARNING there is no home folder for a cache"
    ]
    check_fallback(fallback_of(alice.folder / "tmp", ALICE), ALICE)
    assert not (place.tree.path / "~").exists()


@as_root
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_user_without_a_home_and_without_an_entry_has_no_configuration_of_his_own(
    place: PublicPlace, installer: str
) -> None:
    alice = place.user(ALICE)
    script = (
        f"from lockbuild.environments.key import environment_key as key; print(key([], '', {installer!r}, {{}}).digest)"
    )
    process = place.tree.start_process(*alice.command("-c", script), env=alice.environ | {"HOME": None}, cwd="/")
    [(status, digest, error)] = place.tree.finish(process)
    assert status == 0, error
    assert len(digest.strip()) == 24


@pytest.mark.slow
@as_root
def test_root_without_home_in_the_environment_builds(witness_tree: WitnessTree, tmp_path: Path) -> None:
    """The user database says where the home is; what is there in truth is hidden by a mount of ours."""
    import pwd

    home = Path(pwd.getpwuid(0).pw_dir)
    (tmp_path / "cache-home").mkdir()
    was_there = (home / ".cache").exists()
    (home / ".cache").mkdir(exist_ok=True)
    command = after_setup(bind(tmp_path / "cache-home", home / ".cache"))
    env = {"HOME": None, "LOCKBUILD_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    try:
        build = witness_tree.start(command=command, env=env)
        [(status, _, error)] = witness_tree.finish(build)
    finally:
        if not was_there:
            (home / ".cache").rmdir()
    assert status == 0, error
    assert not warnings_in(error)
    assert list((tmp_path / "cache-home" / "lockbuild" / "locks").glob("setuptools-*.lock"))


def read_only_root(*writable: Path) -> str:
    """Return a script that makes every file system read-only, and these folders writable again."""
    keep = "\n".join(bind(folder, folder) for folder in writable)
    # Mounts of mounts: the folders' own mounts keep their flags when the root's change.
    return f"{keep}\nmount -o remount,bind,ro /\n" + "\n".join(
        f"! mountpoint -q {folder} || mount -o remount,bind,ro {folder}" for folder in ("/tmp", "/var/tmp", "/dev/shm")
    )


@as_root
@pytest.mark.slow
def test_on_a_read_only_root_file_system_a_writable_tmpdir_is_enough(witness_tree: WitnessTree, tmp_path: Path) -> None:
    script = read_only_root(tmp_path / "tmp", witness_tree.control)
    env = {"LOCKBUILD_CACHE_DIR": None, "HOME": "/nowhere/home", "XDG_CACHE_HOME": None}
    build = witness_tree.start(*DEFAULT_RUN, command=after_setup(script), env=env)
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 0, error
    [warning] = warnings_in(error)
    assert "Read-only file system" in warning
    check_fallback(fallback_of(tmp_path / "tmp", 0), 0)


@as_root
@pytest.mark.slow
def test_a_cache_folder_on_a_read_only_file_system_is_one_warning_even_with_lock_files_in_it(
    witness_tree: WitnessTree, tmp_path: Path
) -> None:
    witness_tree.assert_all_succeed(witness_tree.start())
    script = bind(tmp_path / "cache", tmp_path / "cache", "ro")
    build = witness_tree.start(command=after_setup(script))
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 0, error
    assert len(warnings_in(error)) == 1
    check_fallback(fallback_of(tmp_path / "tmp", 0), 0)


@as_root
@pytest.mark.slow
def test_without_any_writable_folder_nothing_is_built(witness_tree: WitnessTree) -> None:
    script = read_only_root(witness_tree.control)
    build = witness_tree.start(command=after_setup(script), cwd=Path("/"))
    message = error_line(witness_tree.finish(build)[0])
    assert message.startswith("ERROR No usable temporary directory found in ")
    assert witness_tree.log() == []


def test_without_a_place_for_lock_files_nothing_is_built(witness_tree: WitnessTree, tmp_path: Path) -> None:
    """There is a folder for temporary files, but the fallback's name in it is taken by something else."""
    fallback_of(tmp_path / "tmp", os.getuid()).touch()
    build = witness_tree.start(env={"LOCKBUILD_CACHE_DIR": "/proc/cannot/be"})
    message = error_line(witness_tree.finish(build)[0])
    assert "No folder for lock files: " in message
    assert "--cache-dir" in message
    assert witness_tree.log() == []


@pytest.mark.slow
def test_a_fallback_folder_with_something_else_in_it_is_one_clear_line(
    witness_tree: WitnessTree, tmp_path: Path
) -> None:
    folder = fallback_of(tmp_path / "tmp", os.getuid())
    folder.mkdir(mode=0o700)
    (folder / "locks").touch()
    build = witness_tree.start(env={"LOCKBUILD_CACHE_DIR": "/proc/cannot/be"})
    message = error_line(witness_tree.finish(build)[0])
    assert "No folder for lock files: " in message
    assert str(folder) in message
    assert "Posix" not in message
    assert witness_tree.log() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place_of_it"),
    [("caches/mine", "{cwd}/caches/mine"), ("", "{home}/.cache/lockbuild"), ("~/mine", "{home}/mine")],
    ids=["relative", "empty", "tilde"],
)
def test_what_the_variable_may_say(witness_tree: WitnessTree, tmp_path: Path, name: str, place_of_it: str) -> None:
    """Relative: to the working directory. Empty: as if it were not set. A tilde that no shell has read: the home."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    env = {"LOCKBUILD_CACHE_DIR": name, "HOME": str(home), "XDG_CACHE_HOME": None}
    build = witness_tree.start(env=env, cwd=cwd)
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 0, error
    assert not warnings_in(error)
    assert list(Path(place_of_it.format(cwd=cwd, home=home), "locks").glob("setuptools-*.lock"))
    assert not (cwd / "~").exists()


@pytest.mark.slow
def test_the_option_wins_over_the_variable(witness_tree: WitnessTree, tmp_path: Path) -> None:
    build = witness_tree.start("--wheel", "--cache-dir", str(tmp_path / "chosen"))
    witness_tree.assert_all_succeed(build)
    assert list((tmp_path / "chosen" / "locks").glob("setuptools-*.lock"))
    assert not (tmp_path / "cache").exists()

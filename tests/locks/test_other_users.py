"""Two users who build one tree exclude each other, and neither can use a lock file against the other.

Users are root and two plain numbers that no user database knows. They run this interpreter and these packages through
bind mounts in their own mount namespaces (`machine.User.command`), because both may lie in a folder closed to others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockbuild.locks import cache_digest
from machine import PublicPlace, User, as_root, as_user, error_line, public_place, wait_until_it_waits, warnings_in

pytestmark = as_root

ALICE, MALLORY = 64_001, 64_002

Environ = dict[str, str | None]


@pytest.fixture
def place() -> Iterator[PublicPlace]:
    with public_place() as made:
        yield made


def root_environ(place: PublicPlace) -> Environ:
    folder = place.path / "user-0"
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(folder / "tmp"), "HOME": str(folder), "LOCKBUILD_CACHE_DIR": str(folder / "cache")}


def out_of(place: PublicPlace, name: str) -> Path:
    folder = place.tree.control / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return folder


@dataclass(frozen=True)
class Side:
    """One of the two who build: root, or Alice."""

    command: tuple[str, ...]
    environ: Environ


def sides(place: PublicPlace, common: Environ | None = None) -> dict[str, Side]:
    from witness import LOCKBUILD

    alice = place.user(ALICE)
    return {
        "root": Side(LOCKBUILD, root_environ(place) | (common or {})),
        "alice": Side(alice.lockbuild, alice.environ | (common or {})),
    }


def check_that_second_waits_for_first(
    place: PublicPlace, first: Side, second: Side, umask: int, holder_is_seen: bool
) -> list[str]:
    """Build on both sides at once; return what they wrote to standard error (without the first wait's message)."""
    tree = place.tree
    gate = tree.make_gate()
    known = len(tree.entered("build_wheel"))
    holder = tree.start(
        command=first.command, env=first.environ, gate=gate.path, out_dir=out_of(place, "out1"), umask=umask
    )
    tree.wait_for_entry(count=known + 1)
    waiter = tree.start(command=second.command, env=second.environ, out_dir=out_of(place, "out2"), umask=umask)
    message = wait_until_it_waits(waiter)
    if holder_is_seen:
        assert f"held by {holder.pid} (" in message
    gate.open()
    results = tree.finish(holder, waiter)
    for status, _, error in results:
        assert status == 0, error
        assert "ermission" not in error
    tree.assert_no_overlap()
    gate.path.unlink()
    return [error for _, _, error in results]


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["umask 022", "umask 077"])
@pytest.mark.parametrize("order", ["root first", "alice first"])
@pytest.mark.slow
def test_two_users_with_their_own_caches_exclude_each_other(place: PublicPlace, order: str, umask: int) -> None:
    both = sides(place)
    first, second = (both["root"], both["alice"]) if order == "root first" else (both["alice"], both["root"])
    errors = check_that_second_waits_for_first(place, first, second, umask, holder_is_seen=True)
    assert not any(warnings_in(error) for error in errors)


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["umask 022", "umask 077"])
@pytest.mark.parametrize("order", ["root first", "alice first"])
@pytest.mark.parametrize("prepared", [False, True], ids=["new cache", "prepared cache"])
@pytest.mark.slow
def test_two_users_with_one_cache_and_one_tmpdir_exclude_each_other(
    place: PublicPlace, order: str, umask: int, prepared: bool
) -> None:
    """An administrator may have prepared a folder for everybody's lock files; otherwise the first user makes it."""
    cache, temporary = place.shared_folder("cache"), place.shared_folder("tmp")
    if prepared:
        place.shared_folder("cache/locks")
    both = sides(place, {"LOCKBUILD_CACHE_DIR": str(cache), "TMPDIR": str(temporary)})
    first, second = (both["root"], both["alice"]) if order == "root first" else (both["alice"], both["root"])
    # Twice, because the second time the lock files of the first are there.
    for one, other in ((first, second), (second, first)):
        errors = check_that_second_waits_for_first(place, one, other, umask, holder_is_seen=True)
        if prepared:
            assert not any(warnings_in(error) for error in errors)
    # Even where the tree's directory could not be locked, the lock file alone does for both in a prepared folder.
    for file in (cache / "locks").glob("*.lock"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666
    for file in temporary.glob("uv-*.lock"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666


def test_a_user_and_root_exclude_each_other(place: PublicPlace) -> None:
    both = sides(place)
    check_that_second_waits_for_first(place, both["alice"], both["root"], 0o022, holder_is_seen=True)


# Attacks. Mallory makes something of a lock file's name, in a folder that everybody may write, before Alice or root
# builds. The victim's file is one that only the victim may write.


@dataclass(frozen=True)
class Battlefield:
    place: PublicPlace
    victim: str
    side: Side
    cache: Path
    temporary: Path

    @property
    def lock_file(self) -> Path:
        return self.cache / "locks" / f"setuptools-{cache_digest(os.path.realpath(self.place.tree.path))}.lock"

    @property
    def record(self) -> Path:
        return self.lock_file.with_name(f"{self.lock_file.name}.holder")

    @property
    def uv_lock_file(self) -> Path:
        return self.temporary / f"uv-{self.lock_file.name}"

    def precious_file(self) -> Path:
        """Make a file that only the victim may write."""
        file = self.place.path / "precious"
        file.write_text("precious")
        file.chmod(0o600)
        number = 0 if self.victim == "root" else ALICE
        os.chown(file, number, number)
        os.utime(file, (1_000_000_000, 1_000_000_000))
        return file

    def build(self, *options: str) -> tuple[int, str, str]:
        tree = self.place.tree
        process = tree.start(
            *("--wheel", *options),
            command=self.side.command,
            env=self.side.environ,
            out_dir=out_of(self.place, "out"),
        )
        return tree.finish(process)[0]


@pytest.fixture(params=["root", "alice"])
def battlefield(request: pytest.FixtureRequest, place: PublicPlace) -> Battlefield:
    cache, temporary = place.shared_folder("cache"), place.shared_folder("tmp")
    place.shared_folder("cache/locks")
    common: Environ = {"LOCKBUILD_CACHE_DIR": str(cache), "TMPDIR": str(temporary)}
    return Battlefield(place, request.param, sides(place, common)[request.param], cache, temporary)


def as_mallory(action: Callable[[], object]) -> None:
    as_user(MALLORY, action)


def look_at(file: Path) -> tuple[object, ...]:
    status = file.stat()
    return file.read_text(), status.st_mode, status.st_uid, status.st_mtime, status.st_size


@contextlib.contextmanager
def locked_by_us(file: Path) -> Iterator[None]:
    """Hold the lock on a file: whoever tries to lock it has to wait."""
    with file.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_a_symbolic_link_in_place_of_the_lock_file_is_refused(battlefield: Battlefield) -> None:
    precious = battlefield.precious_file()
    before = look_at(precious)
    as_mallory(lambda: battlefield.lock_file.symlink_to(precious))
    with locked_by_us(precious):
        message = error_line(battlefield.build())
    assert str(battlefield.lock_file) in message
    assert "symbolic link" in message
    assert look_at(precious) == before
    assert battlefield.place.tree.log() == []


@pytest.mark.slow
def test_a_symbolic_link_to_nowhere_in_place_of_the_lock_file_makes_no_file_there(battlefield: Battlefield) -> None:
    nowhere = battlefield.place.path / "user-0" / "made"
    nowhere.parent.mkdir(exist_ok=True)
    as_mallory(lambda: battlefield.lock_file.symlink_to(nowhere))
    assert "symbolic link" in error_line(battlefield.build())
    assert not nowhere.exists()


@pytest.mark.slow
def test_a_symbolic_link_in_place_of_the_record_is_neither_read_nor_followed(battlefield: Battlefield) -> None:
    precious = battlefield.precious_file()
    before = look_at(precious)
    as_mallory(lambda: battlefield.record.symlink_to(precious))
    status, _, error = battlefield.build()
    assert status == 0, error
    assert look_at(precious) == before
    # In a sticky folder, root can replace Mallory's link, Alice cannot. Neither may leave files behind.
    assert {file.name for file in battlefield.record.parent.iterdir()} <= {
        battlefield.lock_file.name,
        battlefield.record.name,
    }


@pytest.mark.slow
def test_a_symbolic_link_in_place_of_uvs_lock_file_is_told_and_not_followed(battlefield: Battlefield) -> None:
    precious = battlefield.precious_file()
    before = look_at(precious)
    as_mallory(lambda: battlefield.uv_lock_file.symlink_to(precious))
    with locked_by_us(precious):
        status, _, error = battlefield.build("-v")
    assert status == 0, error
    assert "Not sharing uv's lock" in " ".join(error.split())
    assert look_at(precious) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lock_file", "uv_lock_file"])
def test_a_hard_link_in_place_of_a_lock_file_changes_nothing_in_it(battlefield: Battlefield, name: str) -> None:
    precious = battlefield.precious_file()
    before = look_at(precious)
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "0":
        as_mallory(lambda: getattr(battlefield, name).hardlink_to(precious))
    else:
        getattr(battlefield, name).hardlink_to(precious)
    status, _, error = battlefield.build()
    assert status == 0, error
    assert look_at(precious) == before


@pytest.mark.slow
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
@pytest.mark.parametrize("name", ["lock_file", "uv_lock_file", "record"])
def test_what_is_no_regular_file_in_place_of_a_lock_file_hangs_nobody(
    battlefield: Battlefield, make: Callable[[Path, int], None], name: str
) -> None:
    as_mallory(lambda: make(getattr(battlefield, name), 0o777))
    result = battlefield.build()
    if name == "lock_file":
        assert "not a regular file" in error_line(result)
        assert battlefield.place.tree.log() == []
    else:
        assert result[0] == 0, result[2]


@pytest.mark.slow
def test_a_fifo_or_a_lie_in_place_of_the_record_does_not_hang_who_waits_or_break_the_line(
    battlefield: Battlefield,
) -> None:
    tree = battlefield.place.tree
    lies: list[Callable[[], object]] = [
        lambda: os.mkfifo(battlefield.record),
        lambda: battlefield.record.symlink_to("/dev/zero"),
        lambda: battlefield.record.write_text('{"pid": 1e400}'),
        lambda: battlefield.record.write_text("[" * 200_000),
        lambda: battlefield.record.write_text(
            f'{{"pid": {holder.pid}, "started": null, "command": "a\\nERROR b\\u001b[2J", "since": 0}}'
        ),
    ]
    gate = tree.make_gate()
    holder = tree.start(
        command=battlefield.side.command,
        env=battlefield.side.environ,
        gate=gate.path,
        out_dir=out_of(battlefield.place, "out"),
    )
    tree.wait_for_entry()
    for lie in lies:
        battlefield.record.unlink()
        as_mallory(lie)
        status, _, error = battlefield.build("--lock-timeout", "0.6")
        assert status == 75, error
        # "Waiting for", and then the error: two lines, and no character that does more than stand there.
        assert [line[:10] for line in error.splitlines()] == ["* Waiting ", "ERROR Gave"]
        assert error.replace("\n", "").isprintable()
        assert f"held by {holder.pid} (" in error
    gate.open()
    tree.assert_all_succeed(holder)


@pytest.mark.slow
def test_a_lock_folder_that_is_anothers_symbolic_link_is_not_used(battlefield: Battlefield) -> None:
    private = battlefield.place.path / "user-0"
    private.mkdir(exist_ok=True)
    (battlefield.cache / "locks").rmdir()
    as_mallory(lambda: (battlefield.cache / "locks").symlink_to(private))
    status, _, error = battlefield.build()
    assert status == 0, error
    assert len(warnings_in(error)) == 1
    assert list(private.glob("*.lock*")) == []


def foreign(folder: Path, _: User) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, MALLORY, MALLORY)


def open_to_the_world(folder: Path, user: User) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    os.chown(folder, user.number, user.number)


def open_to_the_group(folder: Path, user: User) -> None:
    folder.mkdir()
    folder.chmod(0o770)
    os.chown(folder, user.number, MALLORY)


def link(folder: Path, user: User) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    os.chown(folder.parent / "elsewhere", user.number, user.number)
    folder.symlink_to("elsewhere")


def plain_file(folder: Path, user: User) -> None:
    folder.touch()
    os.chown(folder, user.number, user.number)


@pytest.mark.parametrize(
    "make",
    [
        foreign,
        pytest.param(open_to_the_world, marks=pytest.mark.slow),
        pytest.param(open_to_the_group, marks=pytest.mark.slow),
        pytest.param(link, marks=pytest.mark.slow),
        pytest.param(plain_file, marks=pytest.mark.slow),
    ],
)
def test_a_fallback_folder_that_is_not_the_users_alone_is_refused(
    place: PublicPlace, make: Callable[[Path, User], None]
) -> None:
    alice, temporary = place.user(ALICE), place.shared_folder("tmp")
    make(temporary / f"lockbuild-{ALICE}", alice)
    environ: Environ = {"TMPDIR": str(temporary), "LOCKBUILD_CACHE_DIR": "/proc/cannot/be"}
    build = place.tree.start(command=alice.lockbuild, env=alice.environ | environ, out_dir=out_of(place, "out"))
    message = error_line(place.tree.finish(build)[0])
    assert str(temporary / f"lockbuild-{ALICE}") in message
    assert "--cache-dir" in message
    assert place.tree.log() == []

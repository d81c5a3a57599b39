"""A folder that is used is the one that was meant: other users cannot write to it, rename it, or lead elsewhere.

Users are root and plain numbers; the tests themselves run as root. Mallory attacks from a process of his own.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.environments.contents import look_at
from lockbuild.errors import CacheFolderError
from lockbuild.events import Reporter
from lockbuild.folders import make_private_folder, open_folder
from lockbuild.locks.holders import record_beside, write_record
from lockbuild.locks.kernel import LockFile, NotALockFileError
from lockbuild.paths import builds_folder, environment_folder, lock_folder, wheel_folder
from machine import Attack, PublicPlace, as_root, as_user, public_place, warnings_in
from wheelhouse import ProbeTree, make_probe_tree
from witness import end_all

pytestmark = as_root

MALLORY = 64_002

# A user and a group that every system has, of one name.
DAEMON = 1


@pytest.fixture
def place() -> Iterator[PublicPlace]:
    with public_place() as made:
        yield made


def folder(path: Path, mode: int, owner: int = 0, group: int | None = None) -> Path:
    path.mkdir()
    os.chown(path, owner, owner if group is None else group)
    path.chmod(mode)
    return path


REFUSED: list[tuple[str, int, int, int, str]] = [
    ("writable by all", 0o777, 0, 0, "is writable by every user (mode 0777)"),
    ("another user's", 0o755, MALLORY, MALLORY, f"belongs to user {MALLORY}"),
    ("another user's and sticky", 0o1777, MALLORY, MALLORY, f"belongs to user {MALLORY}"),
    ("writable by a group", 0o775, 0, MALLORY, f"is writable by group {MALLORY} (mode 0775)"),
    ("writable by a named group", 0o770, 0, DAEMON, f"is writable by group {DAEMON} (mode 0770)"),
    ("set-gid and writable by a group", 0o2775, 0, MALLORY, f"is writable by group {MALLORY} (mode 2775)"),
]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(("mode", "owner", "group", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_folder_in_which_others_can_rename_is_refused_wherever_it_is_on_the_way(
    place: PublicPlace, mode: int, owner: int, group: int, message: str, depth: int
) -> None:
    bad = folder(place.path / "bad", mode, owner, group)
    cache = bad.joinpath(*("below" for _ in range(depth)))
    cache.mkdir(parents=True, exist_ok=True)
    for find in (environment_folder, builds_folder, wheel_folder):
        with pytest.raises(CacheFolderError) as caught:
            find(cache)
        assert f"{bad} {message}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(("mode", "group"), [(0o1777, 0), (0o755, MALLORY), (0o775, 0), (0o1770, MALLORY)], ids=oct)
def test_a_folder_in_which_only_we_and_root_can_rename_is_used(place: PublicPlace, mode: int, group: int) -> None:
    cache = folder(place.path / "cache", mode, 0, group)
    made = environment_folder(cache)
    assert made == str(cache / "environments")
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700


@pytest.mark.parametrize(("group", "is_used"), [(DAEMON, True), (DAEMON + 1, False)])
def test_a_folder_that_the_users_private_group_can_write_is_used(place: PublicPlace, group: int, is_used: bool) -> None:
    cache = folder(place.path / "cache", 0o775, DAEMON, group)

    def act() -> None:
        try:
            environment_folder(cache)
        except CacheFolderError:
            assert not is_used

    as_user(DAEMON, act)
    assert (cache / "environments").exists() == is_used


def test_users_of_one_sticky_folder_have_folders_of_their_own(place: PublicPlace) -> None:
    cache = folder(place.path / "cache", 0o1777)
    assert environment_folder(cache) == str(cache / "environments")
    as_user(MALLORY, lambda: environment_folder(cache))
    assert (cache / f"environments-{MALLORY}").stat().st_uid == MALLORY


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o1777], ids=oct)
def test_a_folder_of_ours_that_others_can_enter_is_not_private(place: PublicPlace, mode: int) -> None:
    ours = folder(place.path / "ours", mode)
    with pytest.raises(CacheFolderError, match="is not a folder that only you can write"):
        make_private_folder(str(ours))


def test_links_of_ours_and_of_root_are_followed(place: PublicPlace) -> None:
    real = folder(place.path / "real", 0o700)
    (place.path / "relative").symlink_to("real/../real")
    (place.path / "absolute").symlink_to(place.path / "relative")
    made = environment_folder(place.path / "absolute" / "cache")
    assert os.path.samefile(made, real / "cache" / "environments")
    as_user(MALLORY, lambda: open_folder("/proc/self/cwd/..", shared=True).__enter__())


def test_a_ring_of_links_is_an_error(place: PublicPlace) -> None:
    (place.path / "one").symlink_to("two")
    (place.path / "two").symlink_to("one")
    with pytest.raises(CacheFolderError, match="cannot be used: "):
        environment_folder(place.path / "one")


def test_a_link_of_another_user_is_not_followed(place: PublicPlace) -> None:
    shared = place.shared_folder("shared")
    precious = folder(place.path / "precious", 0o755)
    as_user(MALLORY, lambda: (shared / "cache").symlink_to(precious))
    with pytest.raises(CacheFolderError, match=f"shared/cache is a symbolic link .*user {MALLORY}"):
        environment_folder(shared / "cache")
    with pytest.raises(NotALockFileError, match="symbolic link"):
        LockFile(str(shared / "cache" / "lock")).open()
    write_record(str(shared / "cache" / "lock.holder"))
    told = Reporter.__new__(Told)
    told.warnings = []
    assert str(precious) not in lock_folder(shared / "cache", told)
    [warning] = told.warnings
    assert f"{shared / 'cache'} is a symbolic link" in warning
    assert not list(precious.iterdir())


def test_a_link_of_roots_is_not_followed_where_others_could_have_moved_it(place: PublicPlace) -> None:
    shared = folder(place.path / "shared", 0o777)
    precious = folder(place.path / "precious", 0o755)
    (shared / "roots").symlink_to(precious)
    as_user(MALLORY, lambda: (shared / "roots").rename(shared / "cache"))
    with pytest.raises(NotALockFileError, match="symbolic link"):
        LockFile(str(shared / "cache" / "lock")).open()
    assert not list(precious.iterdir())


class Told(Reporter):
    """Hears warnings."""

    warnings: list[str]

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_folder_that_is_made_can_be_written_by_its_owner_alone_whatever_the_umask(place: PublicPlace) -> None:
    before = os.umask(0)
    try:
        environment_folder(place.path / "a" / "b")
        lock_folder(place.path / "a" / "b", Reporter())
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/locks"):
        assert stat.S_IMODE((place.path / path).stat().st_mode) == 0o755
    environment_folder(place.path / "a" / "b")


def test_a_refused_folder_is_one_line_and_the_build_goes_on(place: PublicPlace, tmp_path: Path) -> None:
    cache = folder(place.path / "cache", 0o777)
    tree = make_probe_tree(tmp_path / "probe")
    error = tree.build("--cache-dir", str(cache))
    [warning] = warnings_in(error)
    assert f"{cache} is writable by every user" in warning
    assert not tree.prefixes()[0].startswith(str(cache))
    assert not {*os.listdir(cache)} - {"locks"}


def test_wheels_that_are_anothers_do_not_fail_a_build(place: PublicPlace, tmp_path: Path) -> None:
    cache = folder(place.path / "cache", 0o1777)
    for name in ("wheels", "wheels-0"):
        folder(cache / name, 0o700, MALLORY)
    tree = make_probe_tree(tmp_path / "probe")
    [warning] = warnings_in(tree.build("--cache-dir", str(cache)))
    assert "wheels-0 is not a folder that only you can write" in warning


# The attack: Mallory exchanges folders for his own as fast as he can, while root builds.

# renameat2(2): exchanges two names at one moment.
_EXCHANGE = 2
_WORKING_DIRECTORY = -100


def exchanging(*pairs: tuple[Path, Path]) -> Attack:
    """Have Mallory exchange the names of each pair for ever."""
    library = ctypes.CDLL(None, use_errno=True)
    names = [(os.fsencode(one), os.fsencode(two)) for one, two in pairs]

    def exchange() -> int:
        done = [library.renameat2(_WORKING_DIRECTORY, one, _WORKING_DIRECTORY, two, _EXCHANGE) for one, two in names]
        return done.count(0)

    return Attack(MALLORY, exchange)


PARENTS: list[tuple[int, int]] = [(0o777, 0), (0o1777, MALLORY)]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "owner"), PARENTS, ids=["not sticky", "Mallory's own"])
def test_no_lock_file_appears_where_an_exchanged_link_leads(place: PublicPlace, mode: int, owner: int) -> None:
    parent = folder(place.path / "parent", mode, owner)
    precious = folder(place.path / "precious", 0o755)
    (precious / "locks").mkdir()
    cache = folder(parent / "cache", 0o777)
    folder(cache / "locks", 0o777)
    as_user(MALLORY, lambda: (parent / "link").symlink_to(precious))
    pairs = [(cache, parent / "link")]
    if owner == 0:
        as_user(MALLORY, lambda: (cache / "link").symlink_to(precious / "locks"))
        pairs.append((cache / "locks", cache / "link"))
    refused = opened = 0
    with exchanging(*pairs) as attack:
        for number in range(1500):
            found = lock_folder(cache, Reporter())
            lock_file = os.path.join(str(cache / "locks") if number % 2 else found, f"{number}.lock")
            try:
                os.close(LockFile(lock_file).open())
                opened += 1
            except (NotALockFileError, OSError):
                refused += 1
            write_record(record_beside(lock_file))
            with pytest.raises(CacheFolderError):
                environment_folder(cache)
    assert attack.successes > 100
    assert opened
    assert refused
    assert [path.relative_to(precious) for path in precious.rglob("*")] == [Path("locks")]


def plant(tree: ProbeTree, honest: Path, evil: Path, trap: Path) -> None:
    """Make a cache folder of Mallory's with what root's has, in which another program is the interpreter."""
    shutil.copytree(honest, evil, symlinks=True)
    program = evil / "python"
    program.write_text(f'#!/bin/sh\nid -u >> {trap}\nexec {sys.executable} "$@"\n')
    for name in ("environments", f"environments-{os.getuid()}"):
        if not (evil / name).exists():
            shutil.copytree(evil / "environments", evil / name, symlinks=True)
        for manifest in (evil / name).glob("*/*.json"):
            environment = manifest.with_suffix("")
            python = environment / "bin" / "python"
            python.unlink()
            shutil.copy(program, python)
            python.chmod(0o755)
            content = json.loads(manifest.read_text())
            # It is found by the path that root's has while it is exchanged.
            content["python_executable"] = str(tree.cache / python.relative_to(evil))
            content["seen"] = look_at(str(environment)).digest
            manifest.write_text(json.dumps(content))
    for path in (evil, *evil.rglob("*")):
        os.chown(path, MALLORY, MALLORY, follow_symlinks=False)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "owner"), PARENTS, ids=["not sticky", "Mallory's own"])
def test_a_planted_interpreter_never_runs(
    place: PublicPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int
) -> None:
    """Mallory has a whole cache folder, and root's takes its place and gives it back thousands of times a second."""
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    parent = folder(place.path / "parent", 0o755)
    monkeypatch.setenv("LOCKBUILD_CACHE_DIR", str(parent / "cache"))
    tree = make_probe_tree(tmp_path / "probe")
    try:
        # As long as nobody else can write there, root's cache is used.
        tree.build()
        tree.build()
        trap = place.path / "trap"
        plant(tree, tree.cache, parent / "evil", trap)
        os.chown(parent, owner, owner)
        parent.chmod(mode)
        with exchanging((tree.cache, parent / "evil")) as attack:
            for _ in range(2):
                tree.build()
    finally:
        end_all(tree.started)
    assert attack.successes > 100
    assert not trap.exists()


def test_pruned_is_made_and_touched_where_no_link_can_lead(place: PublicPlace, tmp_path: Path) -> None:
    cache = place.shared_folder("cache")
    precious = tmp_path / "precious"
    as_user(MALLORY, lambda: (cache / "pruned").symlink_to(precious))
    tree = make_probe_tree(tmp_path / "probe")
    tree.build("--cache-dir", str(cache))
    assert not precious.exists()
    assert (cache / "environments" / "pruned").is_file()

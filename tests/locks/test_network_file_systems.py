"""A tree that several hosts see has a lock file of its own, and a lost lock is noticed before anything is published."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockbuild.errors import LockLostError, LockUnavailableError
from lockbuild.locks import SourceTreeLock
from lockbuild.locks.holders import find_holder
from lockbuild.locks.kernel import try_to_lock_bytes
from lockbuild.locks.mounts import is_exported, mount_of
from lockbuild.locks.network import LOCK_FILE, TreeFile, signed
from machine import as_root, error_line, linux_only, public_place, wait_until_it_waits
from witness import LOCKBUILD, WitnessTree, wait_until

pytestmark = linux_only

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 27 0:52 / /srv/my\040-\040tree rw,noatime master:1 propagate_from:2 - nfs4 server:/export\040-\040ext4 rw,vers=4.2
37 36 0:52 /below /srv/again rw,noatime - nfs4 server:/export\040-\040ext4 rw,vers=4.2
38 27 0:53 / /srv/glued rw shared:7 - fuse.glusterfs host:/volume rw
39 27 0:54 / /srv/nfs4 rw - tmpfs nfs4 rw
40 27 0:5 / /srv/- rw - ext4 - rw
41 27 0:60 / /srv/old rw - nfs server:/export rw,vers=3,nolock,local_lock=all
42 27 0:61 / /srv/local rw - nfs server:/export rw,vers=3,local_lock=posix
43 27 0:62 / /srv/flock rw - nfs server:/export rw,vers=3,local_lock=flock
44 27 0:63 / /srv/ssh rw - fuse.sshfs server: rw
45 27 0:64 / /srv/windows rw - cifs //server/share rw,nobrl
47 27 0:66 / /srv/sandbox rw - virtiofs kataShared rw
46 27 0:65 / /srv/none rw - nfs4 server:/export rw,local_lock=none
torn 0:55 line
"""


@pytest.mark.parametrize(
    ("device", "is_network", "problem"),
    [
        ((254, 0), False, None),
        ((0, 52), True, None),
        ((0, 53), True, None),
        ((0, 54), False, None),
        ((0, 60), True, "nolock"),
        ((0, 61), True, "local_lock=posix"),
        ((0, 62), True, None),
        ((0, 63), True, "may be local"),
        ((0, 64), True, "nobrl"),
        ((0, 65), True, None),
        ((0, 66), False, None),
    ],
    ids=str,
)
def test_the_kernels_list_of_mounts_tells_what_locks_exclude(
    device: tuple[int, int], is_network: bool, problem: str | None
) -> None:
    mount = mount_of(os.makedev(*device), MOUNTS)
    assert mount is not None
    assert mount.is_network == is_network
    if is_network:
        assert problem in (mount.problem or "") if problem else mount.problem is None


def test_a_file_system_of_the_host_of_a_virtual_machine_is_told_apart() -> None:
    mount = mount_of(os.makedev(0, 66), MOUNTS)
    assert mount is not None
    assert mount.is_of_host


def test_a_device_that_is_not_in_the_list_has_no_mount() -> None:
    assert mount_of(os.makedev(0, 55), MOUNTS) is None
    assert mount_of(os.makedev(0, 99), MOUNTS) is None


EXPORTS = "/srv/my\\040trees\t*(rw,sync)\n/home\thost(rw)\n"


@pytest.mark.parametrize(
    ("folder", "exported"), [("/srv/my trees/a", True), ("/home", True), ("/homes/a", False), ("/srv/my", False)]
)
def test_a_folder_below_an_export_is_exported(folder: str, exported: bool) -> None:
    assert is_exported(folder, EXPORTS) == exported


@pytest.fixture
def mount_as(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a folder on a file system of a type that the kernel calls as it calls a network file system."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs or /dev/fuse is missing")
    mounted = tmp_path / "shared"

    def mount(kind: str) -> Path:
        (tmp_path / "server").mkdir()
        mounted.mkdir()
        command = ["bindfs", "-o", f"subtype={kind}", str(tmp_path / "server"), str(mounted)]
        if (tried := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
            pytest.skip(f"no FUSE file system can be mounted: {tried.stderr}")
        return mounted

    yield mount
    subprocess.run(["umount", "--lazy", str(mounted)], check=False)


def on_share(tree: WitnessTree, share: Path) -> WitnessTree:
    shutil.copytree(tree.path, share / "tree")
    return WitnessTree(share / "tree", tree.control, tree.started)


def test_a_mount_whose_locks_may_be_local_is_refused(
    witness_tree: WitnessTree, mount_as: Callable[[str], Path]
) -> None:
    tree = on_share(witness_tree, mount_as("sshfs"))
    line = error_line(tree.finish(tree.start())[0])
    assert "locks on fuse.sshfs may be local to this host" in line
    assert line.endswith("build it on one host at a time with --lock never")
    assert not tree.log()
    tree.assert_all_succeed(tree.start("--wheel", "--lock", "never"))


def test_a_tree_on_a_network_file_system_has_a_lock_file_that_git_ignores(
    witness_tree: WitnessTree, mount_as: Callable[[str], Path]
) -> None:
    tree = on_share(witness_tree, mount_as("glusterfs"))
    subprocess.run(["git", "init", "--quiet", tree.path], check=True)
    tree.assert_all_succeed(tree.start())
    assert (tree.path / LOCK_FILE).stat().st_mode & 0o777 == 0o666
    status = subprocess.run(["git", "-C", tree.path, "status", "--porcelain"], capture_output=True, check=True)
    assert b".lockbuild" not in status.stdout
    assert sorted(path.name for path in (tree.path / LOCK_FILE).parent.iterdir()) == [
        ".gitignore",
        "lock",
        "lock.holder",
    ]


def make_lock_file(tree: Path) -> Path:
    path = tree / LOCK_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_where_the_file_exists_it_is_locked_and_its_record_names_the_host(witness_tree: WitnessTree) -> None:
    path = make_lock_file(witness_tree.path)
    record = path.with_name("lock.holder")
    record.write_text(
        '{"pid": 1, "started": "1", "command": "lockbuild", "since": 1, "host": "far", "boot": "b", "namespace": "n"}'
    )
    with path.open("r+") as file:
        assert try_to_lock_bytes(file.fileno())
        waiter = witness_tree.start()
        assert "held by 1 on far (lockbuild) for " in wait_until_it_waits(waiter)
    witness_tree.assert_all_succeed(waiter)
    assert find_holder(os.open(path, os.O_RDONLY), str(record)) is None


def test_the_lock_outlives_a_killed_process_that_another_one_has_inherited_it_from(tmp_path: Path) -> None:
    make_lock_file(tmp_path)
    source = (
        "import os, subprocess, sys\nfrom lockbuild.locks import SourceTreeLock\n"
        "lock = SourceTreeLock(sys.argv[1]); lock.__enter__()\n"
        "heir = subprocess.Popen(['sh', '-c', 'echo heir; read line'], pass_fds=lock.descriptors)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", source, str(tmp_path)]
    killed = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdin is not None
    assert killed.stdout.readline() == b"heir\n"
    killed.wait()
    with (tmp_path / LOCK_FILE).open("r+") as file:
        assert not try_to_lock_bytes(file.fileno())
        killed.stdin.close()
        wait_until(lambda: try_to_lock_bytes(file.fileno()), "the end of the heir")
    killed.stdout.close()


def test_a_release_frees_the_lock_for_those_that_have_inherited_it(tmp_path: Path) -> None:
    path = make_lock_file(tmp_path)
    with SourceTreeLock(tmp_path) as lock:
        copies = [os.dup(descriptor) for descriptor in lock.descriptors]
    with path.open("r+") as file:
        assert try_to_lock_bytes(file.fileno())
    for copy in copies:
        os.close(copy)


def test_a_lock_file_that_was_removed_is_made_again(mount_as: Callable[[str], Path]) -> None:
    share = mount_as("glusterfs")
    with SourceTreeLock(share):
        (share / LOCK_FILE).unlink()
    with SourceTreeLock(share) as lock:
        assert os.path.samestat((share / LOCK_FILE).stat(), os.fstat(lock.descriptors[-1]))


def test_a_lost_lock_is_an_error_and_nothing_is_published(witness_tree: WitnessTree) -> None:
    """The record of another holder appears while a hook runs, as it does when the server gave the lock away."""
    record = make_lock_file(witness_tree.path).with_name("lock.holder")
    gate = witness_tree.make_gate()
    build = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    theirs = record.read_text().replace('"host": "', '"host": "other-')
    record.unlink()
    record.write_text(theirs)
    gate.open()
    line = error_line(witness_tree.finish(build)[0])
    assert "Lost the lock on " in line
    assert "nothing was published" in line
    assert list(witness_tree.out_dir.iterdir()) == []
    # It is the record of the process that has the lock now.
    assert record.read_text() == theirs


@pytest.mark.slow
def test_a_lost_lock_ends_the_hook(witness_tree: WitnessTree) -> None:
    record = make_lock_file(witness_tree.path).with_name("lock.holder")
    build = witness_tree.start(gate=witness_tree.make_gate().path)
    hook = witness_tree.wait_for_entry()
    record.unlink()
    line = error_line(witness_tree.finish(build)[0])
    assert "Lost the lock on " in line
    assert not Path(f"/proc/{hook}").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_the_server_refuses_what_a_holder_writes_that_has_lost_its_lock(tmp_path: Path, shared: bool) -> None:
    make_lock_file(tmp_path)
    with SourceTreeLock(tmp_path, shared=shared) as lock:
        lock.confirm()
        # NFSv4 says EIO. A descriptor that cannot be written to says EBADF.
        read_only = os.open(tmp_path / LOCK_FILE, os.O_RDONLY)
        os.dup2(read_only, lock.descriptors[-1])
        os.close(read_only)
        with pytest.raises(LockLostError):
            lock.confirm()


@pytest.mark.parametrize("attack", ["symbolic link", "hard link", "other contents", "folder"])
def test_a_file_that_may_be_another_one_is_refused(tmp_path: Path, attack: str) -> None:
    tree, victim = tmp_path / "tree", tmp_path / "victim"
    victim.write_text("precious")
    path = tree / LOCK_FILE
    path.parent.mkdir(parents=True)
    if attack == "symbolic link":
        path.symlink_to(victim)
    elif attack == "hard link":
        path.hardlink_to(victim)
    elif attack == "folder":
        path.mkdir()
    else:
        path.write_text("precious")
    with pytest.raises(LockUnavailableError, match="remove it"), SourceTreeLock(tree):
        pass
    assert victim.read_text() == "precious"


def test_a_waiter_asks_less_and_less_often(tmp_path: Path) -> None:
    path = make_lock_file(tmp_path)
    with path.open("r+") as file:
        assert try_to_lock_bytes(file.fileno())
        with contextlib.closing(SourceTreeLock(tmp_path)._acquire()) as waiting:
            delays = [next(waiting) for _ in range(20)]
    assert delays == sorted(delays)
    assert delays[0] == 0.01
    assert delays[-1] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("manifest", ["graft .\n", "include *\nrecursive-include * *\nglobal-include *\n"])
def test_no_sdist_contains_the_files_of_the_lock(tmp_path: Path, manifest: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "setup.py").write_text("from setuptools import setup\nsetup(name='grafted', version='1', packages=[])\n")
    (tree / "MANIFEST.in").write_text(manifest)
    make_lock_file(tree)
    words = [*LOCKBUILD, "-n", "--sdist", "--out-dir", str(tmp_path / "out"), str(tree)]
    subprocess.run(words, check=True, capture_output=True)
    with tarfile.open(tmp_path / "out" / "grafted-1.tar.gz") as sdist:
        names = sdist.getnames()
    assert "grafted-1/MANIFEST.in" in names
    assert not [name for name in names if "lockbuild/" in name]


def test_a_tree_in_which_the_file_cannot_be_made_is_refused(mount_as: Callable[[str], Path]) -> None:
    share = mount_as("glusterfs")
    (share / ".lockbuild").write_text("")
    with pytest.raises(LockUnavailableError, match="make the tree writable"), SourceTreeLock(share):
        pass


def test_flock_and_the_lock_on_the_bytes_of_a_file_are_two_locks(tmp_path: Path) -> None:
    """On a local file system; so a program that takes one of them does not keep a build from the other."""
    path = make_lock_file(tmp_path)
    with path.open("r+") as one, path.open("r+") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        assert try_to_lock_bytes(other.fileno())


def test_the_backend_of_other_frontends_publishes_nothing_after_a_lost_lock(tmp_path: Path) -> None:
    tree, out_dir = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    record = make_lock_file(tree).with_name("lock.holder")
    (tree / "setup.py").write_text(
        f"import pathlib\nrecord = pathlib.Path({str(record)!r})\nrecord.unlink()\nrecord.write_text('{{}}')\n"
        "from setuptools import setup\nsetup(name='lost', version='1')\n"
    )
    words = [sys.executable, "-c", f"import lockbuild.backend; lockbuild.backend.build_wheel({str(out_dir)!r})"]
    ended = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Lost the lock on " in ended.stderr.splitlines()[-1]
    assert list(out_dir.iterdir()) == []


def test_one_that_shares_the_lock_notices_a_holder_that_has_come_and_gone(tmp_path: Path) -> None:
    """The server gave the shared lock away, and the exclusive holder has ended by the time of the look."""
    make_lock_file(tmp_path)
    with SourceTreeLock(tmp_path, shared=True) as lock:
        lock.confirm()
        with tmp_path.joinpath(LOCK_FILE).open("r+") as file:
            signed(TreeFile(str(tmp_path / LOCK_FILE)), file.fileno(), shared=False).end_record()
        with pytest.raises(LockLostError):
            lock.confirm()


@as_root
def test_a_holder_that_may_not_leave_a_record_is_refused() -> None:
    with public_place() as place:
        make_lock_file(place.tree.path).chmod(0o666)
        user = place.user(64_001)
        [result] = place.tree.finish(
            place.tree.start(command=user.lockbuild, env=user.environ, out_dir=user.folder / "out")
        )
        assert "you may not write a record of the holder beside it" in error_line(result)


@as_root
def test_a_link_of_another_user_is_not_followed_when_the_file_is_made(mount_as: Callable[[str], Path]) -> None:
    share = mount_as("glusterfs")
    victim = share.parent / "victim"
    victim.mkdir()
    share.chmod(0o777)
    (share / ".lockbuild").symlink_to(victim)
    os.chown(share / ".lockbuild", 64_001, 64_001, follow_symlinks=False)
    with pytest.raises(LockUnavailableError), SourceTreeLock(share):
        pass
    assert list(victim.iterdir()) == []


def test_a_command_under_a_lost_lock_is_an_error(tmp_path: Path) -> None:
    record = make_lock_file(tmp_path).with_name("lock.holder")
    words = [sys.executable, "-m", "lockbuild.commands.run", "-C", str(tmp_path), "--"]
    script = f"rm {record}; echo '{{}}' > {record}"
    ended = subprocess.run([*words, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, "Lost the lock on " in ended.stderr) == (1, True)

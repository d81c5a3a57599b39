"""A tree on a network file system: builds on other hosts are not excluded, and that is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.events import Reporter
from lockbuild.locks import SourceTreeLock
from lockbuild.locks.mounts import network_file_system
from machine import linux_only, warnings_in
from witness import WitnessTree

pytestmark = linux_only

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 27 0:52 / /srv/my\040-\040tree rw,noatime master:1 propagate_from:2 - nfs4 server:/export\040-\040ext4 rw,vers=4.2
37 36 0:52 /below /srv/again rw,noatime - nfs4 server:/export\040-\040ext4 rw,vers=4.2
38 27 0:53 / /srv/glued rw shared:7 - fuse.glusterfs host:/volume rw
39 27 0:54 / /srv/nfs4 rw - tmpfs nfs4 rw
40 27 0:5 / /srv/- rw - ext4 - rw
torn 0:55 line
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ((254, 0), None),
        ((0, 52), "nfs4"),
        ((0, 53), "fuse.glusterfs"),
        ((0, 54), None),
        ((0, 5), None),
        ((0, 55), None),
        ((0, 99), None),
    ],
    ids=str,
)
def test_the_kernels_list_of_mounts_tells_the_type(device: tuple[int, int], kind: str | None) -> None:
    assert network_file_system(os.makedev(*device), MOUNTS) == kind


def test_what_tests_run_on_is_in_the_list() -> None:
    """No network file system, that is; but /proc has a line as well, and its type is found where it is asked for."""
    own = Path("/proc/self/mountinfo").read_text()
    assert network_file_system(os.stat("/proc").st_dev) is None
    assert network_file_system(os.stat("/proc").st_dev, own.replace("- proc ", "- nfs ")) == "nfs"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of a type that the kernel calls as it calls sshfs."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs or /dev/fuse is missing")
    (tmp_path / "server").mkdir()
    mounted = tmp_path / "shared"
    mounted.mkdir()
    command = ["bindfs", "-o", "subtype=sshfs", str(tmp_path / "server"), str(mounted)]
    if (tried := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no FUSE file system can be mounted: {tried.stderr}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


class Warnings(Reporter):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def warn(self, message: str) -> None:
        self.seen.append(message)


def test_the_lock_on_a_tree_says_so_each_time_it_is_taken(shared: Path) -> None:
    heard = Warnings()
    lock = SourceTreeLock(shared, reporter=heard)
    assert heard.seen == []
    with lock, lock.lent():
        [warning] = heard.seen
    assert warning.startswith(
        f"{shared} is on a network file system (fuse.sshfs): builds on other hosts are not excluded; "
    )


def test_a_build_says_so_once(witness_tree: WitnessTree, shared: Path) -> None:
    tree = shared / "tree"
    shutil.copytree(witness_tree.path, tree)
    on_share = WitnessTree(tree, witness_tree.control)
    [(status, _, error)] = on_share.finish(on_share.start("--sdist", "--wheel"))
    assert status == 0, error
    [warning] = warnings_in(error)
    assert f"{tree} is on a network file system (fuse.sshfs)" in warning


def test_a_tree_on_a_local_file_system_is_taken_without_a_word(tmp_path: Path) -> None:
    heard = Warnings()
    with SourceTreeLock(tmp_path, reporter=heard):
        assert heard.seen == []

"""Builds of one tree on several hosts. ``HOSTS=1 python -m pytest -n 0 tests/hosts`` runs these tests.

With ``HOSTS_ROUNDS`` the storms have as many rounds.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shares import EXPORT, LEASE, Place, Share, mount_gluster, mount_nfs, serve_gluster, serve_nfs
from uml import PATH, Command, Network

pytestmark = pytest.mark.slow

# A short storm may miss the overlaps.
not_between_hosts = pytest.mark.xfail(strict=False, reason="no lock on a tree excludes builds on other hosts")

PROGRAMS = "linux.uml nsenter setpriv ip exportfs rpc.nfsd rpcbind mount.nfs glusterfs glusterfsd mkfs.ext4"


def _reason_to_skip() -> str | None:
    if "HOSTS" not in os.environ:
        return "boots kernels, which takes minutes: set HOSTS=1"
    if platform.machine() != "x86_64" or os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        return "needs x86-64, root and /dev/net/tun"
    missing = [program for program in PROGRAMS.split() if not shutil.which(program, path=PATH)]
    return f"needs {', '.join(missing)}" if missing else None


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := _reason_to_skip():
        pytest.skip(reason)
    with Network(tmp_path_factory.mktemp("hosts")) as network:
        server, *_ = network.add_hosts("server", "alpha", "beta")
        serve_nfs(server)
        yield network


@pytest.fixture(scope="session", params=["vers=3", "vers=4.2", "gluster"])
def share(network: Network, request: pytest.FixtureRequest) -> Share:
    server, *clients = network.hosts
    folder = f"/mnt/{request.param}"
    if request.param == "gluster":
        serve_gluster(server)
        for host in network.hosts:
            mount_gluster(host, server, folder)
        return Share(request.param, *(Place(host, folder) for host in network.hosts))
    for host in clients:
        mount_nfs(host, server, request.param, folder)
    server.run(f"mkdir {EXPORT}/{request.param}")
    folders = [EXPORT, folder, folder]
    # Versions of NFS share the exported folder.
    places = [Place(host, f"{each}/{request.param}") for host, each in zip(network.hosts, folders, strict=True)]
    return Share(request.param, *places)


def storm(share: Share, tree: str, *places: Place, options: tuple[str, ...] = ()) -> None:
    """Start three builds in each place, for some rounds; all of them have to succeed, and none may see another."""
    share.server.make_tree(tree)
    failed: list[str] = []
    for _ in range(int(os.environ.get("HOSTS_ROUNDS", "2"))):
        builds = [place.build(tree, *options) for _ in range(3) for place in places]
        failed += [result.output for result in (build.wait() for build in builds) if result.status]
    overlaps = share.server.overlaps(tree)
    assert (overlaps, failed) == (0, []), f"{share.kind}: {overlaps} overlaps, {len(failed)} lost builds"


def test_hooks_on_two_hosts_that_do_not_lock_notice_each_other(share: Share) -> None:
    tree = share.server.make_tree("unlocked")
    inside, go_on = f"/mnt/{share.kind}.inside", f"/mnt/{share.kind}.go-on"
    held = share.alpha.build(tree, "--lock", "never", INSIDE=inside, HELD=go_on)
    share.alpha.host.wait_for(inside)
    assert share.beta.build(tree, "--lock", "never").wait().status == 0
    share.alpha.host.run(f"touch {go_on}")
    assert held.wait().status == 0
    assert share.server.overlaps(tree) == 1


@not_between_hosts
def test_builds_on_two_hosts_exclude_each_other(share: Share) -> None:
    storm(share, "storm", share.alpha, share.beta)


def test_hosts_with_one_cache_folder_at_one_path_exclude_each_other(share: Share) -> None:
    assert share.alpha.folder == share.beta.folder
    storm(share, "one-cache", share.alpha, share.beta, options=("--cache-dir", f"{share.alpha.folder}/cache"))


@not_between_hosts
def test_a_server_and_a_client_that_build_exclude_each_other(share: Share) -> None:
    storm(share, "served", share.server, share.beta)


OFD = Path(__file__).with_name("ofd.py")


def hold(place: Place, name: str) -> Command:
    """Hold the lock on a file until there is a file ``/mnt/NAME.check``."""
    words = [sys.executable, str(OFD), f"{place.folder}/{name}", "hold", f"/mnt/{name}.held", f"/mnt/{name}.check"]
    command = place.host.start(words)
    place.host.wait_for(f"/mnt/{name}.held")
    return command


def is_free(place: Place, name: str) -> bool:
    return place.host.start([sys.executable, str(OFD), f"{place.folder}/{name}", "try"]).wait().status == 0


def test_an_ofd_lock_excludes_other_clients_and_the_server(share: Share) -> None:
    name = f"{share.kind}-excludes"
    holder = hold(share.alpha, name)
    assert not is_free(share.beta, name)
    assert not is_free(share.server, name)
    holder.kill()
    holder.wait()
    assert is_free(share.beta, name)


def test_an_ofd_lock_of_the_server_excludes_clients(share: Share) -> None:
    name = f"{share.kind}-served"
    holder = hold(share.server, name)
    assert not is_free(share.alpha, name)
    holder.kill()
    holder.wait()
    assert is_free(share.alpha, name)


def test_a_holder_on_nfs4_that_was_cut_off_for_longer_than_its_lease_cannot_write(
    network: Network, share: Share
) -> None:
    if share.kind != "vers=4.2":
        pytest.skip("the other file systems have no lease")
    name = "cut-off"
    holder = hold(share.alpha, name)
    network.cut_off("alpha")
    try:
        for _ in range(10 * LEASE):
            if got := is_free(share.beta, name):
                break
            share.beta.host.run("sleep 0.5")
        assert got
    finally:
        network.join("alpha")
    share.alpha.host.run(f"touch /mnt/{name}.check")
    assert holder.wait().output == "Input/output error\n"

"""Builds of one tree on several hosts. ``HOSTS=1 python -m pytest -n 0 tests/hosts`` runs these tests.

With ``HOSTS_ROUNDS`` the storms have as many rounds.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence

import pytest

from shares import EXPORT, Place, Share, mount_gluster, mount_nfs, serve_gluster, serve_nfs
from uml import PATH, Network

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("HOSTS_ROUNDS", "2"))

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


def storm(share: Share, tree: str, *builders: tuple[Place, Sequence[str]]) -> None:
    """Start three builds in each place, for some rounds; all of them have to succeed, and none may see another."""
    share.server.make_tree(tree)
    failed: list[str] = []
    for _ in range(ROUNDS):
        builds = [place.build(tree, *options) for _ in range(3) for place, options in builders]
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


def test_builds_on_two_hosts_exclude_each_other(share: Share) -> None:
    storm(share, "storm", (share.alpha, ()), (share.beta, ()))


def test_hosts_with_one_cache_folder_at_one_path_exclude_each_other(share: Share) -> None:
    assert share.alpha.folder == share.beta.folder
    options = ("--cache-dir", f"{share.alpha.folder}/cache")
    storm(share, "one-cache", (share.alpha, options), (share.beta, options))


def test_hosts_with_one_cache_folder_at_two_paths_exclude_each_other(share: Share) -> None:
    elsewhere = f"/mnt/{share.kind}-elsewhere"
    share.beta.host.run(f"mkdir {elsewhere}; mount --bind {share.beta.folder} {elsewhere}")
    here = ("--cache-dir", f"{share.alpha.folder}/cache-of-two")
    there = ("--cache-dir", f"{elsewhere}/cache-of-two")
    storm(share, "two-paths", (share.alpha, here), (share.beta, there))
    # Nothing is locked here but the cache. Each host takes an environment of the other path for a moved one.
    tree = share.server.make_tree("isolated", requires="")
    for _ in range(ROUNDS):
        builds = [
            place.build(tree, *options, "--lock=never", f"--outdir=/mnt/{number}", isolated=True)
            for number in range(2)
            for place, options in ((share.alpha, here), (share.beta, there))
        ]
        failed = [result.output for result in (build.wait() for build in builds) if result.status]
        assert not failed


def test_a_server_and_a_client_that_build_exclude_each_other(share: Share) -> None:
    storm(share, "served", (share.server, ()), (share.beta, ()))


def test_a_build_waits_for_one_on_another_host_until_that_is_killed(share: Share) -> None:
    tree = share.server.make_tree("waited-for")
    for number, (holder, other) in enumerate([(share.alpha, share.beta), (share.server, share.alpha)]):
        inside = f"/mnt/{share.kind}.waited-for-{number}"
        held = holder.build(tree, INSIDE=inside, HELD="/mnt/never")
        holder.host.wait_for(inside)
        refused = other.build(tree, "--lock-timeout", "2").wait()
        assert refused.status != 0
        assert "lock" in refused.output
        held.kill()
        assert held.wait().status == -9
        built = other.build(tree).wait()
        assert built.status == 0, built.output


def test_builds_in_private_views_on_two_hosts_run_together_and_write_nothing_to_the_share(share: Share) -> None:
    tree = share.server.make_tree("private")
    go_on = f"/mnt/{share.kind}.go-on-in-view"
    builds = []
    for place in (share.alpha, share.beta):
        inside = f"/mnt/{share.kind}.in-view"
        builds.append(place.build(tree, "--tree=private", "--lock-timeout=30", INSIDE=inside, HELD=go_on))
        place.host.wait_for(inside)
    # Each of the hooks has made a folder in its view.
    assert "busy" not in share.server.host.run(f"ls {share.server.folder}/{tree}")
    waits = share.server.build(tree, "--lock-timeout=1").wait()
    assert waits.status == 75, waits.output
    for place, build in zip((share.alpha, share.beta), builds, strict=True):
        place.host.run(f"touch {go_on}")
        result = build.wait()
        assert result.status == 0, result.output
    assert share.server.host.run(f"ls {share.server.folder}/{tree}").split() == [
        "backend.py",
        "pyproject.toml",
        "witness_backend.py",
    ]


# The last one: a client of GlusterFS may take minutes to connect again.
def test_a_host_that_was_cut_off_publishes_nothing_after_another_host_had_the_lock(
    network: Network, share: Share
) -> None:
    tree = share.server.make_tree("cut-off")
    inside, go_on = f"/mnt/{share.kind}.cut-off", f"/mnt/{share.kind}.joined"
    alpha = share.alpha.host
    out_dir = f"/mnt/{share.kind}.out"
    held = share.alpha.build(tree, "--outdir", out_dir, INSIDE=inside, HELD=go_on)
    alpha.wait_for(inside)
    network.cut_off(alpha.name)
    built = share.beta.build(tree, "--lock-timeout", "60").wait()
    network.join(alpha.name)
    alpha.run(f"touch {go_on}")
    result = held.wait()
    if share.kind == "vers=3":
        # Its server does not notice that a client is gone, and keeps the lock for it.
        assert (built.status, result.status) == (75, 0), (built.output, result.output)
        return
    assert built.status == 0, built.output
    assert result.status == 1, result.output
    assert "another host" in result.output
    assert alpha.run(f"ls -A {out_dir}") == ""

"""File systems that hosts share: a server and its clients, without daemons of the machine that runs the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from uml import Command, Host

_TESTS = Path(__file__).parents[1]

EXPORT = "/mnt/export"

# In seconds. A killed client loses its locks after that time, and a server that starts is soon ready.
LEASE = 10

_RPC = "mkdir -p /run/rpcbind /var/lib/nfs/sm /var/lib/nfs/sm.bak; rpcbind -w; rpc.statd --no-notify"

_NFS_SERVER = f"""
mkdir -p {EXPORT} /run/lock /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t nfsd nfsd /proc/fs/nfsd
echo {LEASE} >/proc/fs/nfsd/nfsv4leasetime
echo {LEASE} >/proc/fs/nfsd/nfsv4gracetime
exportfs -o rw,no_root_squash,insecure,fsid=0,no_subtree_check,async '*:{EXPORT}'
rpc.mountd
rpc.nfsd 4
# No client had a lock before, so that none has to be waited for.
echo Y >/proc/fs/nfsd/v4_end_grace
"""

_BRICK = """
volume posix
  type storage/posix
  option directory /mnt/brick
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.listen-port 24007
  option auth.addr.locks.allow *
  subvolumes locks
end-volume
"""

_CLIENT = """
volume client
  type protocol/client
  option transport-type tcp
  option remote-host {address}
  option remote-port 24007
  option remote-subvolume locks
end-volume
"""


def serve_nfs(server: Host) -> None:
    server.run(_RPC)
    server.run(_NFS_SERVER)


def mount_nfs(client: Host, server: Host, options: str, place: str) -> None:
    """Mount the export with options that name a version."""
    path = EXPORT if "vers=3" in options else "/"
    client.run("[ -e /run/rpcbind ] || { " + _RPC + "; }")
    client.run(f"mkdir -p {place}; mount -t nfs -o {options} {server.address}:{path} {place}")


def serve_gluster(server: Host) -> None:
    # This kernel's tmpfs has no extended attributes.
    server.run(
        "mkdir /mnt/brick; truncate -s 64M /mnt/disk; mkfs.ext4 -q /mnt/disk; mount -o loop /mnt/disk /mnt/brick"
    )
    server.run(f"printf '%s' '{_BRICK}' >/mnt/brick.vol; glusterfsd -f /mnt/brick.vol -l /mnt/brick.log")


def mount_gluster(client: Host, server: Host, place: str) -> None:
    volume = _CLIENT.format(address=server.address)
    client.run(f"mkdir -p {place}; printf '%s' '{volume}' >/mnt/client.vol")
    client.run(f"glusterfs -f /mnt/client.vol -l /mnt/client.log {place}")


class Place(NamedTuple):
    """A folder of a share, as one host has it mounted."""

    host: Host
    folder: str

    def build(self, tree: str, *options: str, isolated: bool = False, **environ: str) -> Command:
        words = [sys.executable, "-m", "lockbuild", "--wheel", "--outdir", "/mnt/out", *options]
        words += [] if isolated else ["-n"]
        return self.host.start([*words, f"{self.folder}/{tree}"], WITNESS_LOG="/mnt/witness.log", **environ)

    def make_tree(self, name: str, requires: str = '"setuptools"') -> str:
        tree = f"{self.folder}/{name}"
        sources = f"{_TESTS}/hosts/backend.py {_TESTS}/witness_backend.py"
        project = rf'[build-system]\nrequires = [{requires}]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        self.host.run(f"mkdir {tree}; cp {sources} {tree}; printf '%b' '{project}' >{tree}/pyproject.toml")
        return name

    def overlaps(self, tree: str) -> int:
        """Count the overlaps in a tree. Only a server sees all of them at once: clients keep listings of folders."""
        return self.host.run(f"ls {self.folder}/{tree}").count("overlap-")


class Share(NamedTuple):
    """One folder, as three hosts see it: on a server of NFS it is a local one."""

    kind: str
    server: Place
    alpha: Place
    beta: Place

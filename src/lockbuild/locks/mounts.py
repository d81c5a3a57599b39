"""Network file systems, which several hosts may mount, and what their locks exclude, as the kernel tells it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

# Types in the kernel's list of mounts whose byte-range locks exclude other hosts.
_EXCLUDE = frozenset(
    [
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.glusterfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
    ]
)

# Types whose locks may be local to a host.
_MAY_NOT_EXCLUDE = frozenset(
    (
        "afs",
        "beegfs",
        "fuse.beegfs",
        "fuse.gcsfuse",
        "fuse.juicefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smbfs",
    ),
)

# Types by which a virtual machine sees its host's files. Locks may be local to it. But sandboxes such as Kata and
# gVisor have all their files there, which nothing else uses.
_OF_VIRTUAL_MACHINES = frozenset(("9p", "fuse.vmhgfs-fuse", "vboxsf", "virtiofs"))

# Options of a mount with which byte-range locks are local. The kernel shows those that are in force.
_LOCAL = ("nolock", "local_lock=posix", "local_lock=all", "nobrl")

_EXPORTS = "/var/lib/nfs/etab"


class Mount(NamedTuple):
    """A mounted file system."""

    kind: str
    options: tuple[str, ...]

    @property
    def is_network(self) -> bool:
        """Whether other hosts may see the file system."""
        return self.kind in _EXCLUDE | _MAY_NOT_EXCLUDE

    @property
    def is_of_host(self) -> bool:
        """Whether the host of this virtual machine, if it is one, may see the file system."""
        return self.kind in _OF_VIRTUAL_MACHINES

    @property
    def problem(self) -> str | None:
        """Why a lock on this network file system does not exclude other hosts; ``None`` if it does."""
        local = [option for option in self.options if option in _LOCAL]
        if local:
            return f"its mount ({self.kind}) has the option {local[0]}, so locks are local to this host"
        return None if self.kind in _EXCLUDE else f"locks on {self.kind} may be local to this host"


def mount_of(device: int, mounts: str | None = None) -> Mount | None:
    """
    Return the mount with a device number (``st_dev``), or ``None`` if the kernel does not tell.

    ``mounts`` is a text like ``/proc/self/mountinfo`` (proc(5)), which is the default.
    """
    if not hasattr(os, "major"):
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (_own_mounts() if mounts is None else mounts).split("\n"):
        # "36 35 0:52 / /srv/my\040tree rw,noatime master:1 - nfs4 server:/export rw". All mounts of a device have the
        # same type, so the path does not matter. A dash ends the optional fields, which begin with the seventh.
        fields = line.split(" ")
        if len(fields) > 7 and fields[2] == wanted and "-" in fields[6:-1]:
            kind, _, *options = fields[fields.index("-", 6) + 1 :]
            return Mount(kind, tuple(options[0].split(",")) if options else ())
    return None


def is_exported(folder: str, exports: str | None = None) -> bool:
    """
    Return whether this host exports a folder by NFS.

    ``exports`` is a text like ``/var/lib/nfs/etab`` (exportfs(8)), which is the default.
    """
    if exports is None:
        try:
            with open(_EXPORTS, encoding="utf-8", errors="surrogateescape") as file:
                exports = file.read()
        except OSError:
            return False
    for line in exports.splitlines():
        # "/srv/my\040trees	*(rw,sync,...)"
        path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split("\t")[0]).rstrip("/")
        if line and f"{folder}/".startswith(f"{path}/"):
            return True
    return False


def _own_mounts() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

"""Which file systems other hosts may have mounted too: there the kernel's lock on a directory ends at this host."""

from __future__ import annotations

import os

# The types that the kernel gives in its list of mounts. 9p and virtiofs are a virtual machine's view of its host.
_NETWORK_TYPES = (
    "9p afs beegfs ceph cifs fuse.beegfs fuse.ceph fuse.glusterfs fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs lustre nfs "
    "nfs4 ocfs2 orangefs pvfs2 smb3 smbfs virtiofs"
)


def network_file_system(device: int, mounts: str | None = None) -> str | None:
    """
    Return the type of the network file system that a device number (``st_dev``) is of; ``None`` for any other.

    ``mounts`` is a text as in ``/proc/self/mountinfo`` (proc(5)), which is read if it is left out. Where there is no
    such file, nothing is known.
    """
    if not hasattr(os, "major"):
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (_own_mounts() if mounts is None else mounts).split("\n"):
        # "36 35 0:52 / /srv/my\040tree rw,noatime master:1 - nfs4 server:/export rw". All mounts of a device have one
        # type, so that the path does not matter. Optional fields end with a dash, and a path is no field of one.
        fields = line.split(" ")
        if len(fields) > 7 and fields[2] == wanted and "-" in fields[6:-1]:
            kind = fields[fields.index("-", 6) + 1]
            return kind if kind in _NETWORK_TYPES.split() else None
    return None


def _own_mounts() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

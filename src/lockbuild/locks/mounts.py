"""Network file systems, which several hosts may mount. There, the kernel's lock on a directory is local to a host."""

from __future__ import annotations

import os

# Types in the kernel's list of mounts. With 9p and virtiofs, a virtual machine sees its host's files.
_NETWORK_TYPES = (
    "9p afs beegfs ceph cifs fuse.beegfs fuse.ceph fuse.glusterfs fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs lustre nfs "
    "nfs4 ocfs2 orangefs pvfs2 smb3 smbfs virtiofs"
)


def network_file_system(device: int, mounts: str | None = None) -> str | None:
    """
    Return the type of the network file system with a device number (``st_dev``); ``None`` for other file systems.

    ``mounts`` is a text like ``/proc/self/mountinfo`` (proc(5)), which is the default. Without that file, no file
    system is known to be a network file system.
    """
    if not hasattr(os, "major"):
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (_own_mounts() if mounts is None else mounts).split("\n"):
        # "36 35 0:52 / /srv/my\040tree rw,noatime master:1 - nfs4 server:/export rw". All mounts of a device have the
        # same type, so the path does not matter. A dash ends the optional fields, which begin with the seventh.
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

"""Enters a private view of a source tree: a script for the interpreter in which hooks run. It imports nothing of ours.

The hook host loads it by its path and calls `enter`. As a program, ``python overlay.py VIEW [COMMAND...]`` enters the
view and then becomes the command; without one it ends, and so tells whether the view is possible.

VIEW is a JSON object:
    "tree": the path of the tree, absolute and without symbolic links
    "scratch": an empty folder of this build, for what the hooks write
    "real": folders inside the tree that stay what they are, such as the cache or the folder for temporary files
    "hidden": folders inside the tree that look empty, such as the out-dir, into which other builds publish
    "missing": paths of the tree that are missing in the view, such as an out-dir of other builds
    "clean": whether files that git ignores are missing in the view

What a view is. This process and its children get a mount namespace of their own. In there, an overlay of the tree
(overlayfs in the kernel's documentation) is mounted on the tree's own path: its lower folder is the tree, and every
change goes to the upper folder, in ``scratch``. Where the file system of ``scratch`` cannot be an upper folder, as an
overlay or NFS cannot, a tmpfs takes its place, which ends with the namespace.

What a process in the view sees: the paths, names, contents, times and modes of the tree. Its device and inode numbers
differ. `VARIABLE` tells the programs of lockbuild which is which. Links out of the tree and the folders around it lead
to the real ones. Renaming a folder of the tree gives EXDEV, and hard links between its files split, as on every overlay
with these options.

Nothing here has to be cleaned up but ``scratch``: the kernel removes the mounts with the last process of the namespace.

An ordinary user needs a user namespace for it, in which the user and group keep their numbers and all others are the
overflow user and group. The kernel of some distributions, and the profiles of most containers, refuse one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypedDict

    class View(TypedDict):
        tree: str
        scratch: str
        real: list[str]
        hidden: list[str]
        missing: list[str]
        clean: bool


VARIABLE = "LOCKBUILD_VIEWS"
"""Its value is a JSON list of views, each with the device and inode numbers of its tree, in the view and outside."""

# From <sched.h> and <sys/mount.h>. Python has them since 3.12, and no `mount`.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000

# From <linux/capability.h>.
_CAPABILITY_VERSION_3 = 0x20080522

# Whom files of users without a number in the user namespace belong to: /proc/sys/kernel/overflowuid, by default.
_OVERFLOW_USER = 65534

# The kernel's answers for an upper folder on an overlay, on NFS, or on a file system without its attributes.
_NO_UPPER_FOLDER = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)

_LIBC = ctypes.CDLL(None, use_errno=True)

# Nothing in the upper folder may refer to the tree by more than its name. A crash of the machine loses this build only.
_OPTIONS = "index=off,metacopy=off,xino=off,redirect_dir=nofollow,volatile"


class RefusedError(Exception):
    """There can be no view. ``str()`` says why, in words for a message."""


def enter(view: View) -> None:
    """Move this process, which may have one thread only, into a view. Raises `RefusedError`."""
    tree = view["tree"]
    try:
        real = outside = _identity(tree)
        _refuse_mounts_below(tree)
        is_user = _unshare()
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
        _mount_all(view, is_user)
        if is_user:
            _drop_capabilities()
        inside = _identity(tree)
        shares_file_system = os.stat(os.path.dirname(tree)).st_dev == outside[0]
        # Until now, this process is in the folder below the mount.
        os.chdir(os.getcwd())
    except OSError as error:
        what = os.fsdecode(error.filename) if error.filename else tree
        raise RefusedError(f"{what}: {error.strerror}") from error
    views = json.loads(os.environ.get(VARIABLE, "[]"))
    for *seen, device, inode in views:
        # A view of a view, for a build that a hook has started.
        if seen == outside:
            real = [device, inode]
    os.environ[VARIABLE] = json.dumps([*views, [*inside, *real]])
    # The repository may be around the tree. git would not look for it beyond the view, which is a file system.
    if shares_file_system:
        os.environ.setdefault("GIT_DISCOVERY_ACROSS_FILESYSTEM", "1")


def _identity(tree: str) -> list[int]:
    status = os.stat(tree)
    return [status.st_dev, status.st_ino]


def _refuse_mounts_below(tree: str) -> None:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    for point in points:
        for octal in ("040", "011", "012", "134"):
            point = point.replace(f"\\{octal}", chr(int(octal, 8)))
        if point.startswith(tree.rstrip("/") + "/"):
            raise RefusedError(f"{point} is a mount of its own, whose files the view could not show")


def _unshare() -> bool:
    """Give this process a mount namespace of its own; return whether that took a user namespace as well."""
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWNS) == 0:
        return False
    if _LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWUSER) != 0:
        raise RefusedError(f"this user may not have a mount namespace ({os.strerror(ctypes.get_errno())})")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return True


def _mount_all(view: View, is_user: bool) -> None:
    tree, scratch = view["tree"], view["scratch"]
    # All are opened before a mount covers them. The path of a descriptor also has no character that would have to be
    # escaped in the options of a mount.
    with contextlib.ExitStack() as stack:
        lower = stack.enter_context(_opened(tree))
        real = {path: stack.enter_context(_opened(path)) for path in view["real"]}
        try:
            _mount_overlay(lower, view, is_user)
        except OSError as error:
            if error.errno not in _NO_UPPER_FOLDER:
                raise
            _mount("tmpfs", scratch, "tmpfs", 0)
            _mount_overlay(lower, view, is_user)
        for path, descriptor in real.items():
            os.makedirs(path, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
    empty = os.path.join(scratch, "empty")
    os.makedirs(empty, exist_ok=True)
    for path in view["hidden"]:
        os.makedirs(path, exist_ok=True)
        _mount(empty, path, None, _MS_BIND)


def _mount_overlay(lower: int, view: View, is_user: bool) -> None:
    scratch = view["scratch"]
    upper = os.path.join(scratch, "upper")
    if not os.path.isdir(upper):
        os.mkdir(upper)
        _copy_status(view["tree"], upper)
        if is_user:
            _make_foreign_folders(view["tree"], upper)
        for path in [*view["missing"], *(_ignored(view["tree"]) if view["clean"] else ())]:
            _make_whiteout(view["tree"], path, upper)
    # A second host of this build goes on with what the hooks of the first have written.
    work = os.path.join(scratch, f"work-{os.getpid()}")
    os.mkdir(work)
    with _opened(upper) as upper_folder, _opened(work) as work_folder:
        folders = {"lowerdir": lower, "upperdir": upper_folder, "workdir": work_folder}
        options = [f"{name}=/proc/self/fd/{number}" for name, number in folders.items()]
        _mount(
            "overlay",
            f"/proc/self/fd/{lower}",
            "overlay",
            0,
            ",".join([*options, *(["userxattr"] if is_user else []), _OPTIONS]),
        )
    # The kernel makes folders that their owner could not remove.
    for folder, names, _ in os.walk(work):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o700)


def _make_foreign_folders(tree: str, upper: str) -> None:
    """
    Make those folders of the tree in the upper folder that belong to other users. In these, this user may write.

    Nothing is copied: the overlay shows the contents of both.
    """
    # To `nobody`, the folders of all users look like its own here.
    own = os.geteuid() if os.geteuid() != _OVERFLOW_USER else None
    if os.stat(tree).st_uid == own:
        return
    for folder, names, _ in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.stat(path).st_uid != own:
                _make_above(tree, path, upper)


def _make_whiteout(tree: str, path: str, upper: str) -> None:
    """Hide a path of the tree, as an overlay hides what was removed in it."""
    whiteout = os.path.join(_make_above(tree, os.path.dirname(path), upper), os.path.basename(path))
    with contextlib.suppress(FileExistsError):
        os.mknod(whiteout, stat.S_IFCHR)


def _ignored(tree: str) -> list[str]:
    """Return the paths of the tree that git ignores."""
    command = ["git", "-c", "safe.directory=*", "-C", tree, "ls-files", "--others", "--ignored", "--directory", "-z"]
    try:
        listed = subprocess.run(
            [*command, "--exclude-standard"], capture_output=True, stdin=subprocess.DEVNULL, check=True
        )
    except FileNotFoundError:
        raise RefusedError("git is not installed, which knows the files that it ignores") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise RefusedError(f"git cannot list the files that it ignores: {said[0] if said else error}") from None
    names: list[bytes] = []
    for name in sorted(filter(None, listed.stdout.split(b"\0"))):
        # git lists a folder that has ignored files only, and then these files.
        if not (names and names[-1].endswith(b"/") and name.startswith(names[-1])):
            names.append(name)
    return [os.path.join(tree, os.fsdecode(name).rstrip("/")) for name in names]


def _make_above(tree: str, folder: str, upper: str) -> str:
    """Make a folder of the tree in the upper folder, with those around it; return its path there."""
    made = upper
    for name in filter(None, os.path.relpath(folder, tree).split("/")):
        if name != ".":
            tree, made = os.path.join(tree, name), os.path.join(made, name)
            if not os.path.isdir(made):
                os.mkdir(made)
                _copy_status(tree, made)
    return made


def _copy_status(original: str, copy: str) -> None:
    """Give a folder in the upper folder the owner, times and mode of the one in the tree; its owner may write to it."""
    status = os.stat(original)
    # To an ordinary user, or to a user that has no number in this namespace, the kernel refuses it.
    with contextlib.suppress(OSError):
        os.chown(copy, status.st_uid, status.st_gid)
    os.chmod(copy, stat.S_IMODE(status.st_mode) | 0o700)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def _drop_capabilities() -> None:
    """Give up what a user namespace gives its first process. What is executed loses it anyway; forks would not."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _LIBC.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if _LIBC.mount(*words, ctypes.c_ulong(flags), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def main() -> None:
    """Enter the view of the first argument, and execute the others."""
    try:
        enter(json.loads(sys.argv[1]))
    except RefusedError as error:
        sys.exit(str(error))
    if sys.argv[2:]:
        os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()

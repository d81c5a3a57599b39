"""Artifacts on their way from a backend to the out-dir.

A backend writes into a staging folder, outside the source tree and the out-dir. lockbuild copies each complete artifact
to a hidden name in the out-dir, syncs it, and then renames it. So a file with a final name is always complete, even
after a power failure, and a failed build leaves nothing behind. No file is linked: a new file belongs to the group, and
has the ACL, that the out-dir gives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import zipfile
from typing import TYPE_CHECKING, Any

from lockbuild.errors import ArtifactError, OutDirError, shown
from lockbuild.files import digest_of_file, errors_naming, replacing, sync, write_whole
from lockbuild.folders import Folder, named_folder
from lockbuild.request import Artifact, Distribution, Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_SUFFIXES = (".whl", ".tar.gz")

# Opens an existing file, device or pipe for writing.
_INTO = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)

# How many bytes of a file to read at a time.
_COPY_SIZE = 1 << 20


def check_artifact(staging: str, returned: str, distribution: Distribution) -> str:
    """
    Check that the artifact that the backend names exists and is complete; return its name in the staging folder.

    Raises `ArtifactError`.
    """
    path = os.path.realpath(os.path.join(staging, returned))
    name = os.path.basename(path)
    if os.path.dirname(path) != os.path.realpath(staging):
        raise ArtifactError(f"The backend says it built {returned}, which is not in the folder that it was given")
    if not os.path.isfile(path):
        raise ArtifactError(f"The backend says it built {name}, but there is no such file")
    problem = None
    if distribution != "sdist":
        problem = _problem_with_wheel(path)
    elif name.endswith(".tar.gz"):
        problem = _problem_with_sdist(path)
    if problem is not None:
        raise ArtifactError(f"The backend built {name}, which cannot be read: {problem}") from problem
    return name


def _problem_with_wheel(path: str) -> Exception | None:
    try:
        with _opened(path) as archive:
            archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        return error
    return None


@contextlib.contextmanager
def _opened(wheel: str) -> Iterator[zipfile.ZipFile]:
    """Open a wheel. Raises `zipfile.BadZipFile` for one that is damaged, `OSError` for one that cannot be opened."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except Exception as error:
        if isinstance(error, zipfile.BadZipFile) or (isinstance(error, OSError) and error.filename):
            raise
        # For a damaged file, zipfile and the decompressors raise nearly anything.
        raise zipfile.BadZipFile(shown(str(error)) or type(error).__name__) from error


def _problem_with_sdist(path: str) -> Exception | None:
    from lockbuild.sdist import UNREADABLE, read_through

    try:
        # A backend that was cut short, for example by a full disk, may have left an incomplete file.
        read_through(path)
    except UNREADABLE as error:
        return error
    return None


def make_out_dir(out_dir: str) -> None:
    """Make the out-dir before the backend runs. Errors have the words of ``build``."""
    path = os.path.abspath(out_dir)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise OutDirError(f"Build path '{path}' exists and is not a directory") from None
    except (NotADirectoryError, FileNotFoundError):
        raise OutDirError(f"Build path '{path}' does not exist and cannot be a directory") from None


def publish(staging: str, name: str, out_dir: str) -> str:
    """
    Publish all files in the staging folder, the artifact ``name`` last; return the path of the artifact.

    Each file replaces one of the same name in the out-dir atomically. The staging folder keeps its files.
    """
    with named_folder(out_dir) as folder:
        for other in sorted(os.listdir(staging)):
            if other != name:
                _publish_entry(os.path.join(staging, other), folder)
        _publish_entry(os.path.join(staging, name), folder)
    return os.path.join(out_dir, name)


def _publish_entry(source: str, folder: Folder) -> None:
    name = os.path.basename(source)
    if os.path.isdir(source):
        # No standard hook writes folders. The files of one are published one by one.
        with folder.enter(name) as inner:
            for each in sorted(os.listdir(source)):
                _publish_entry(os.path.join(source, each), inner)
        return
    _publish_file(source, name, folder)


def _publish_file(source: str, name: str, folder: Folder) -> None:
    """
    Copy a file with its permissions and times; a default ACL of the folder gives the permissions.

    These are set by way of the descriptor: if the folder belongs to another user, a link may take the name meanwhile.
    """
    target, dir_fd, has_acl = folder.at(name), folder.descriptor, _has_default_acl(folder)
    with open(source, "rb") as read, errors_naming(os.path.join(folder.path, name)):
        status = os.fstat(read.fileno())
        mode = stat.S_IMODE(status.st_mode)
        with replacing(target, mode | 0o666 if has_acl else 0o600, dir_fd) as written:
            shutil.copyfileobj(read, written, _COPY_SIZE)
            written.flush()
            if dir_fd is not None:
                # Some file systems have no permissions.
                with contextlib.suppress(PermissionError):
                    if not has_acl:
                        os.fchmod(written.fileno(), mode)
                os.utime(written.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            sync(written.fileno())
    if dir_fd is None:
        shutil.copystat(source, target)


def _has_default_acl(folder: Folder) -> bool:
    """Tell whether a folder has a default ACL. New files get it, and the umask does not apply to them."""
    try:
        # The descriptor is one that getxattr itself refuses.
        path = f"/proc/self/fd/{folder.descriptor}"
        return hasattr(os, "getxattr") and bool(os.getxattr(path, "system.posix_acl_default"))
    except OSError:
        return False


def list_artifacts(out_dir: str) -> dict[str, tuple[int, int]]:
    """Return the artifacts in an out-dir, each with an identity that a later file of the same name does not have."""
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(out_dir) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file():
                status = entry.stat()
                found[entry.name] = (status.st_ino, status.st_mtime_ns)
    return found


def clear_older(out_dir: str, before: dict[str, tuple[int, int]], built: Iterable[str]) -> None:
    """
    Remove artifacts that were in the out-dir ``before`` this build and belong to the same project as those built.

    Artifacts that other builds have published since stay.
    """
    kept = set(built)
    projects = {_project_name(name) for name in kept} - {None}
    now = list_artifacts(out_dir)
    for name, identity in before.items():
        if name not in kept and now.get(name) == identity and _project_name(name) in projects:
            # Another build with --clear may have removed it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(out_dir, name))


def _project_name(artifact: str) -> str | None:
    """Return the project of an artifact; ``None`` for a file whose name is not that of an artifact."""
    from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename

    try:
        return parse_wheel_filename(artifact)[0] if artifact.endswith(".whl") else parse_sdist_filename(artifact)[0]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def metadata_of_wheel(wheel: str) -> bytes:
    """Return the METADATA of a wheel. Raises `ArtifactError` when it has none."""
    try:
        with _opened(wheel) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
            content = archive.read(names[0]) if len(names) == 1 else None
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{wheel!r} is not a valid wheel: {error}") from error
    if content is None:
        raise ArtifactError(f"{wheel!r} is not a valid wheel: expected one .dist-info/METADATA, found {len(names)}")
    return content


def describe(path: str, kind: Distribution) -> Artifact:
    """Describe a published artifact. Reads the whole file."""
    return Artifact(os.path.basename(path), path, kind, os.path.getsize(path), digest_of_file(path))


def report(artifacts: Sequence[Artifact], timings: Sequence[Timing] = ()) -> dict[str, Any]:
    """Return the report that ``python -m build --report`` writes, with the timings in seconds if there are any."""
    content: dict[str, Any] = {
        "version": "1.0",
        "artifacts": [
            {
                "name": artifact.name,
                "path": artifact.path,
                "kind": artifact.kind,
                "size": artifact.size,
                "hashes": {"sha256": artifact.sha256},
            }
            for artifact in artifacts
        ],
    }
    if timings:
        content["timings"] = [{"step": step, "seconds": round(seconds, 6)} for step, seconds in timings]
    return content


def encoded(content: Mapping[str, Any]) -> bytes:
    """Return a report as JSON."""
    return f"{json.dumps(content, indent=2)}\n".encode()


def write_report(path: str, content: bytes) -> None:
    """
    Write a report: replace a regular file atomically, or write into a device, a pipe or a standard stream.

    Raises `OSError`.
    """
    try:
        # This does not change a file. For a pipe, it waits until there is a reader.
        opened = os.open(path, _INTO)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        write_whole(path, content)
        return
    with open(opened, "wb") as existing:
        found = os.fstat(opened)
        # /dev/stdout may be a file, which has other output before and after the report.
        ours = [number for number in (1, 2) if os.path.samestat(os.fstat(number), found)]
        if not ours and stat.S_ISREG(found.st_mode):
            write_whole(path, content)
        elif ours:
            with open(ours[0], "wb", closefd=False) as stream:
                stream.write(content)
        else:
            existing.write(content)

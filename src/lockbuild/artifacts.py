"""Artifacts on their way from a backend to the out-dir.

A backend writes into a staging folder of its own, outside the source tree and the out-dir. What it has completed is
linked or copied to a hidden name in the out-dir and renamed to its own: whoever opens a file of the out-dir by its
final name finds it whole, and a build that fails, at any moment and for any reason, leaves nothing there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any

from lockbuild.digest import digest_of_file
from lockbuild.errors import ArtifactError, OutDirError
from lockbuild.request import Artifact, Distribution, Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SUFFIXES = (".whl", ".tar.gz")


def check_artifact(staging: str, returned: str, distribution: Distribution) -> str:
    """
    Check that what the backend says it has built is there and is whole; return its name in the staging folder.

    Raises `ArtifactError` with what is wrong.
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
        raise ArtifactError(f"The backend built {name}, but it cannot be read: {problem}") from problem
    return name


def _problem_with_wheel(path: str) -> Exception | None:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        return error
    return None


def _problem_with_sdist(path: str) -> Exception | None:
    from lockbuild.sdist import UNREADABLE, read_through

    try:
        # A backend that was cut short, by a full disk say, may have left the beginning of one.
        read_through(path)
    except UNREADABLE as error:
        return error
    return None


def make_out_dir(out_dir: str) -> None:
    """Make the out-dir before the backend works in vain; the errors are worded as ``build`` words them."""
    path = os.path.abspath(out_dir)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise OutDirError(f"Build path '{path}' exists and is not a directory") from None
    except (NotADirectoryError, FileNotFoundError):
        raise OutDirError(f"Build path '{path}' does not exist and cannot be a directory") from None


def publish(staging: str, name: str, out_dir: str) -> str:
    """
    Give the artifact ``name``, and what else the backend left beside it, its place in the out-dir; return its path.

    Two builds that publish the same name replace each other's file whole. The staging folder keeps its files.
    """
    for other in sorted(os.listdir(staging)):
        if other != name:
            _publish_entry(os.path.join(staging, other), os.path.join(out_dir, other))
    return _publish_entry(os.path.join(staging, name), os.path.join(out_dir, name))


def _publish_entry(source: str, target: str) -> str:
    if os.path.isdir(source):
        # No standard hook writes folders. Where one does, its files are published one by one.
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(source)):
            _publish_entry(os.path.join(source, name), os.path.join(target, name))
        return target
    hidden = os.path.join(os.path.dirname(target), f".{os.path.basename(target)[:100]}.{os.urandom(8).hex()}.tmp")
    try:
        try:
            os.link(source, hidden)
        except OSError:
            # Another file system, or one without hard links.
            shutil.copy2(source, hidden)
        os.replace(hidden, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(hidden)
        if isinstance(error, OSError) and error.errno and (error.filename, error.filename2) != (source, None):
            # It names the hidden file, or both, the one that is read first, or none.
            raise OSError(error.errno, error.strerror, target) from error
        raise
    return target


def list_artifacts(out_dir: str) -> dict[str, tuple[int, int]]:
    """Return the artifacts that are in an out-dir, each with what tells it from a later one of the same name."""
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(out_dir) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file():
                status = entry.stat()
                found[entry.name] = (status.st_ino, status.st_mtime_ns)
    return found


def clear_older(out_dir: str, before: dict[str, tuple[int, int]], built: Iterable[str]) -> None:
    """
    Remove the artifacts that stood in the out-dir ``before`` this build and are of the same project as those built.

    What another build has put there since is left alone, under whatever name.
    """
    kept = set(built)
    projects = {_project_name(name) for name in kept} - {None}
    now = list_artifacts(out_dir)
    for name, identity in before.items():
        if name not in kept and now.get(name) == identity and _project_name(name) in projects:
            # Another build with --clear may be quicker.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(out_dir, name))


def _project_name(artifact: str) -> str | None:
    """Return the project that an artifact is of; ``None`` for a file whose name no artifact has, which is not ours."""
    from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename

    try:
        return parse_wheel_filename(artifact)[0] if artifact.endswith(".whl") else parse_sdist_filename(artifact)[0]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def metadata_of_wheel(wheel: str) -> bytes:
    """Return the METADATA of a wheel. Raises `ArtifactError` when there is none."""
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
            if len(names) != 1:
                raise ArtifactError(
                    f"{wheel!r} is not a valid wheel: expected one .dist-info/METADATA, found {len(names)}"
                )
            return archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{wheel!r} is not a valid wheel: {error}") from error


def describe(path: str, kind: Distribution) -> Artifact:
    """Describe a published artifact. Reads the whole file."""
    return Artifact(os.path.basename(path), path, kind, os.path.getsize(path), digest_of_file(path))


def report(artifacts: Sequence[Artifact], timings: Sequence[Timing] = ()) -> dict[str, Any]:
    """Return the report that ``python -m build --report`` writes, and timings in seconds."""
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


def write_report(path: str, artifacts: Sequence[Artifact], timings: Sequence[Timing] = ()) -> None:
    """Write the report as JSON, whole or not at all."""
    import json

    folder = os.path.dirname(os.path.abspath(path))
    hidden = os.path.join(folder, f".{os.path.basename(path)[:100]}.{os.urandom(8).hex()}.tmp")
    try:
        with open(hidden, "x", encoding="utf-8") as file:
            json.dump(report(artifacts, timings), file, indent=2)
            file.write("\n")
        os.replace(hidden, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(hidden)
        raise

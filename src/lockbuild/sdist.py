"""A source distribution as the source of a build: checked, and unpacked for as long as a wheel is built from it."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lockbuild.errors import SdistError

if TYPE_CHECKING:
    from collections.abc import Iterator


def top_level_folder(archive: str) -> str:
    """
    Check that a file is a source distribution (PEP 625) and return the name of the folder that it consists of.

    Raises `SdistError`, in the words of ``build`` where it has some.
    """
    from packaging.utils import InvalidSdistFilename, parse_sdist_filename
    from packaging.version import InvalidVersion

    name = os.path.basename(archive)
    try:
        parse_sdist_filename(name)
    except (InvalidSdistFilename, InvalidVersion) as error:
        raise SdistError(f"{name!r} does not look like a source distribution: {error}") from error
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise SdistError(f"failed to read source distribution {archive}: {error}") from error
    folders = {member.name.split("/", 1)[0] for member in members if member.name} - {""}
    # "." and ".." are no folders of its own: they would be removed before it is unpacked, with all that is in them.
    if len(folders) != 1 or folders & {".", ".."}:
        raise SdistError(
            f"source distribution {archive} must contain a single top-level directory, got: {sorted(folders)}"
        )
    folder = folders.pop()
    if not any(member.name == f"{folder}/PKG-INFO" and member.isfile() for member in members):
        raise SdistError(
            f"source distribution {archive} does not contain {folder}/PKG-INFO; "
            "this does not appear to be a valid source distribution"
        )
    return folder


@contextmanager
def unpacked(archive: str, folder: str, extract_dir: str | None) -> Iterator[str]:
    """
    Unpack a source distribution and yield the path of its source tree, which is removed afterwards.

    With ``extract_dir`` it is unpacked there, over what an earlier build left, and kept. Members that would leave the
    folder are refused (PEP 706's ``data`` filter). Raises `SdistError` when it cannot be unpacked.
    """
    if extract_dir is None:
        root = tempfile.mkdtemp(prefix="build-via-sdist-")
        try:
            _unpack(archive, root)
            yield os.path.join(root, folder)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    else:
        tree = os.path.join(extract_dir, folder)
        shutil.rmtree(tree, ignore_errors=True)
        _unpack(archive, extract_dir)
        yield tree


def _unpack(archive: str, root: str) -> None:
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(root, filter="data")
            else:
                # Python before 3.11.5.
                from lockbuild.build_library import safe_extractall

                safe_extractall(tar, root)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SdistError(f"failed to unpack source distribution {archive}: {error}") from error

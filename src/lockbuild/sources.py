"""The source of a build: a source tree that the user has named, or an sdist that is unpacked for the build."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lockbuild.locks import InheritableLock
    from lockbuild.sdist import Sdist
    from lockbuild.session import Session


class SourceTree(NamedTuple):
    """A source tree to build from."""

    path: str
    locks: tuple[InheritableLock, ...] = ()
    """The locks that are held around it: on a shared build, on folders that the user named."""
    is_private: bool = False
    """Whether it was unpacked for this build alone, at a path that no other process knows."""


def is_sdist(source: str) -> bool:
    """Tell whether a build's source is a source distribution rather than a tree."""
    return source.lower().endswith(".tar.gz") and os.path.isfile(source)


def sdist_of(session: Session, built: str | None = None) -> Sdist:
    """Read the sdist that is the request's source, or one that was just built, which may be of any size."""
    from lockbuild.sdist import read_sdist

    with session.step("unpack"):
        if built is not None:
            return read_sdist(built, session.folder())
        return read_sdist(session.request.source, session.folder(), session.request.max_sdist_size)


@contextlib.contextmanager
def source_tree(
    session: Session, source: Sdist | str, outer_locks: Sequence[InheritableLock] = ()
) -> Iterator[SourceTree]:
    """Yield the source tree of a build, which an sdist is unpacked into."""
    if isinstance(source, str):
        yield SourceTree(source)
        return
    from lockbuild.sdist import unpacked

    extract_dir = session.request.sdist_extract_dir
    with contextlib.ExitStack() as stack:
        locks = [*outer_locks]
        if extract_dir is not None:
            # Two builds with one --sdist-extract-dir would each remove the tree in which the other one builds. With
            # --env-dir, both folders are locked here in the order of their names: another build may have been given
            # the same two the other way round.
            folders = [extract_dir, *([session.request.env_dir] if session.request.env_dir is not None else [])]
            in_order = sorted(folders, key=os.path.realpath)
            locks.extend(stack.enter_context(session.lock_directory(path)) for path in in_order)
        with session.step("unpack"):
            tree = stack.enter_context(unpacked(source, extract_dir))
        yield SourceTree(tree, tuple(locks), is_private=extract_dir is None)

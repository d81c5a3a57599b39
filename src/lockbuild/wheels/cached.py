"""The unpacked wheels in the store, as ``lockbuild-cache`` looks after them."""

from __future__ import annotations

import time
from typing import NamedTuple

from lockbuild.paths import disk_use, key_folders, wheel_folder
from lockbuild.wheels.store import last_used, read, remove_if_unused


class CachedWheel(NamedTuple):
    """An unpacked wheel, as a person sees it."""

    folder: str
    name: str
    """The distribution and its version."""
    size: int
    """In bytes, as far as it is not shared with environments by hard links."""
    last_used: float
    """When it was last installed, in seconds since the epoch."""


def list_wheels(cache_dir: str | None = None) -> list[CachedWheel]:
    """Return the unpacked wheels, the one last installed first."""
    found = [
        CachedWheel(folder, f"{wheel.name} {wheel.version}", disk_use(wheel.path), last_used(folder))
        for folder in key_folders(cache_dir, wheel_folder)
        if (wheel := read(folder))
    ]
    return sorted(found, key=lambda wheel: -wheel.last_used)


def prune_wheels(older_than: float, cache_dir: str | None = None) -> int:
    """Remove the unpacked wheels that were last installed more than ``older_than`` seconds ago; return how many."""
    oldest = time.time() - older_than
    return sum(remove_if_unused(folder, cache_dir, oldest) for folder in key_folders(cache_dir, wheel_folder))

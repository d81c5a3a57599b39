"""What a build is asked for, and what it gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Distribution = Literal["sdist", "wheel"]
Installer = Literal["pip", "uv"]
LockPolicy = Literal["auto", "always", "never"]

LOCK_POLICIES: tuple[LockPolicy, ...] = ("auto", "always", "never")
INSTALLERS: tuple[Installer, ...] = ("pip", "uv")


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides what a build does. Paths may be relative to the working directory."""

    source: str
    """A source tree, or a ``.tar.gz`` source distribution."""
    distributions: tuple[Distribution, ...] = ()
    """What to build, in this order. Empty: of a tree an sdist and from that a wheel, of an sdist a wheel."""
    out_dir: str | None = None
    """Where artifacts go; by default ``dist`` in the tree, or the folder that the sdist is in."""
    config_settings: Mapping[str, Any] = field(default_factory=dict)
    """Passed to every hook."""
    isolation: bool = True
    """Build in an environment made for it, or in the one that runs lockbuild."""
    skip_dependency_check: bool = False
    """Without isolation: do not check that the build requirements are installed."""
    constraints_file: str | None = None
    """A ``constraints.txt`` for the build requirements."""
    installer: Installer = "pip"
    env_dir: str | None = None
    """Where the build environment is made; by default in a temporary folder."""
    sdist_extract_dir: str | None = None
    """Where an sdist is unpacked; by default in a temporary folder."""
    lock: LockPolicy | None = None
    """Overrides what the project's ``[tool.lockbuild]`` says; ``None`` does not."""
    lock_timeout: float | None = None
    """Seconds to wait for a lock; ``None`` waits for ever."""
    cache_dir: str | None = None
    """The cache folder; ``None`` is ``LOCKBUILD_CACHE_DIR`` or the platform's place for caches."""
    use_cache: bool = True
    """Use a build environment from the store, and keep a new one there."""
    env_max_age: float = 86400.0
    """Seconds after which the requirements of a kept environment are resolved again."""
    refresh: bool = False
    """Resolve them again at once."""
    clear: bool = False
    """Remove the project's older artifacts from the out-dir once the new ones are complete."""
    verbosity: int = 0
    """As many steps above or below normal as ``-v`` or ``-q`` were given."""


@dataclass(frozen=True)
class Artifact:
    """One file that a build has left in the out-dir."""

    name: str
    path: str
    kind: Distribution
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True)
class BuildResult:
    """What a build gave: its artifacts in the order in which they were built."""

    artifacts: tuple[Artifact, ...]

"""
What a build is asked for, and what it gave.

Data on the way of a warm build are named tuples and not dataclasses: the module `dataclasses` and the classes that it
writes would take a fifth of the time that a frontend needs before its hook host can start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Distribution = Literal["sdist", "wheel", "editable"]
Installer = Literal["pip", "uv"]
LinkMode = Literal["auto", "hardlink", "copy"]
LockPolicy = Literal["auto", "always", "never"]

LOCK_POLICIES: tuple[LockPolicy, ...] = ("auto", "always", "never")
INSTALLERS: tuple[Installer, ...] = ("pip", "uv")
LINK_MODES: tuple[LinkMode, ...] = ("auto", "hardlink", "copy")


class BuildRequest(NamedTuple):
    """Everything that decides what a build does. Paths may be relative to the working directory."""

    source: str
    """A source tree, or a ``.tar.gz`` source distribution."""
    distributions: tuple[Distribution, ...] = ()
    """
    What to build, in this order. Empty: of a tree an sdist and from that a wheel, of an sdist a wheel.

    ``editable`` is a wheel that leads to the tree (PEP 660), for an installer and not for publishing.
    """
    out_dir: str | None = None
    """Where artifacts go; by default ``dist`` in the tree, or the folder that the sdist is in."""
    config_settings: Mapping[str, Any] = {}
    """Passed to every hook."""
    isolation: bool = True
    """Build in an environment made for it, or in the one that runs lockbuild."""
    skip_dependency_check: bool = False
    """Without isolation: do not check that the build requirements are installed."""
    constraints_file: str | None = None
    """A ``constraints.txt`` for the build requirements."""
    installer: Installer = "pip"
    link_mode: LinkMode = "auto"
    """How unpacked wheels get from the cache into a kept build environment."""
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
    preimport: bool = True
    """Import the backend once, and fork a process with it for each hook; without, each hook imports it anew."""
    reuse: bool = False
    """Take a wheel that was built of the same sdist before."""
    coalesce: bool = False
    """Take the artifact of a build of the same tree that started after this one was asked for."""
    max_sdist_size: float = 4 * 1024.0**3
    """Bytes to which an sdist that is the source may unpack; infinite for no limit."""
    clear: bool = False
    """Remove the project's older artifacts from the out-dir once the new ones are complete."""
    verbosity: int = 0
    """As many steps above or below normal as ``-v`` or ``-q`` were given."""


class Artifact(NamedTuple):
    """One file that a build has left in the out-dir."""

    name: str
    path: str
    kind: Distribution
    size: int
    """In bytes."""
    sha256: str


class Timing(NamedTuple):
    """How long one step of a build took."""

    step: str
    """``start``, ``environment``, ``lock`` (waiting for it), ``publish``, or the name of a hook."""
    seconds: float


class BuildResult(NamedTuple):
    """What a build gave."""

    artifacts: tuple[Artifact, ...]
    """In the order in which they were built."""
    timings: tuple[Timing, ...] = ()
    """The steps in the order in which they ended."""

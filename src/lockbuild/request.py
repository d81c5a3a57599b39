"""The request for a build, and its result.

These are named tuples: importing `dataclasses` and making such classes would take a fifth of the time that a frontend
needs before its hook host can start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Distribution = Literal["sdist", "wheel", "editable"]
Installer = Literal["pip", "uv"]
LinkMode = Literal["auto", "hardlink", "copy"]
LockPolicy = Literal["auto", "always", "never"]
TreeMode = Literal["shared", "private", "clean", "auto"]

LOCK_POLICIES: tuple[LockPolicy, ...] = ("auto", "always", "never")
INSTALLERS: tuple[Installer, ...] = ("pip", "uv")
TREE_MODES: tuple[TreeMode, ...] = ("shared", "private", "clean", "auto")
LINK_MODES: tuple[LinkMode, ...] = ("auto", "hardlink", "copy")


class BuildRequest(NamedTuple):
    """Everything that a build is asked for. Paths may be relative to the working directory."""

    # What to build, and where to put it.
    source: str
    """A source tree, or a ``.tar.gz`` source distribution."""
    distributions: tuple[Distribution, ...] = ()
    """
    What to build, in this order. By default, an sdist and a wheel from it; for an sdist, a wheel.

    ``editable`` is a wheel that refers to the tree (PEP 660), for an installer and not for publishing.
    """
    config_settings: Mapping[str, Any] = {}
    """Passed to every hook."""
    out_dir: str | None = None
    """The folder for artifacts; by default ``dist`` in the tree, or the folder of the sdist."""
    clear: bool = False
    """Remove the project's older artifacts from the out-dir once the new ones are complete."""
    sdist_extract_dir: str | None = None
    """The folder to unpack an sdist into; by default a temporary folder."""
    max_sdist_size: float = 4 * 1024.0**3
    """The number of bytes to which a source sdist may unpack; infinity for no limit."""

    # The environment that hooks run in.
    isolation: bool = True
    """Build in a build environment, or, if false, in the environment that runs lockbuild."""
    skip_dependency_check: bool = False
    """Without isolation, do not check that the build requirements are installed."""
    constraints_file: str | None = None
    """A ``constraints.txt`` for the build requirements."""
    installer: Installer = "pip"
    link_mode: LinkMode = "auto"
    """How to put unpacked wheels from the cache into a kept build environment."""
    env_dir: str | None = None
    """The folder for the build environment, instead of the store or a temporary folder."""
    use_cache: bool = True
    """Take the build environment from the cache, and keep a new one there."""
    env_max_age: float = 86400.0
    """Seconds after which the requirements of a kept environment are resolved again."""
    refresh: bool = False
    """Resolve them again at once."""
    preimport: bool = True
    """Import the backend once and fork a process for each hook; otherwise, each hook imports it."""

    # How the build runs beside others, and what it tells.
    lock: LockPolicy | None = None
    """Overrides ``[tool.lockbuild]`` in pyproject.toml, unless ``None``."""
    tree: TreeMode = "shared"
    """
    Build in the tree (``shared``) or in a private view of it (``private``), in which no file ignored by git exists
    (``clean``). ``auto`` is ``private`` where that is possible, else ``shared``.
    """
    lock_timeout: float | None = None
    """Seconds to wait for a lock; ``None`` waits forever."""
    cache_dir: str | None = None
    """The cache folder; ``None`` is ``LOCKBUILD_CACHE_DIR`` or the platform's cache folder."""
    sources: Mapping[str, str | None] = {}
    """
    Wheels that build environments get instead of releases of these projects, by their normalized names.

    If a build needs one that is not there yet, ``None``, it raises `SourceNotBuiltError`.
    """
    reuse: bool = False
    """Take a wheel that was built from the same sdist before."""
    coalesce: bool = False
    """Take the artifact of a build of the same tree that began after this request was made."""
    verbosity: int = 0
    """The number of ``-v`` options, or minus the number of ``-q`` options."""


class Artifact(NamedTuple):
    """A file that a build has put into the out-dir."""

    name: str
    path: str
    kind: Distribution
    size: int
    """In bytes."""
    sha256: str


class Timing(NamedTuple):
    """The duration of one step of a build."""

    step: str
    """``start``, ``environment``, ``lock`` (waiting for it), ``unpack``, ``publish``, or the name of a hook."""
    seconds: float


class BuildResult(NamedTuple):
    """The result of a build."""

    artifacts: tuple[Artifact, ...]
    """The artifacts in the order in which they were built."""
    timings: tuple[Timing, ...] = ()
    """The steps in the order in which they ended."""

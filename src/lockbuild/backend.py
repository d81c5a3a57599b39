"""A build backend: setuptools' hooks, each under the lock on the source tree, for frontends that take no lock.

A project names it in its pyproject.toml, and is then safe from every frontend::

    [build-system]
    requires = ["setuptools", "lockbuild"]
    build-backend = "lockbuild.backend"

The hooks are those of PEP 517 and PEP 660, with the arguments and results of `setuptools.build_meta`; one that the
installed setuptools does not have is not here either. A frontend runs each of them in a process of its own, so that
another build's hooks may come between two hooks of this one. They pass nothing to each other through the tree: what
a hook leaves there the next one writes anew. But frontends do read and replace each other's files in an out-dir that
they share, and there setuptools removes the old file before it has the new one; so what is built is published whole.

Only the standard library, filelock and platformdirs are imported here, and setuptools. That one is imported at once:
a frontend looks for the hooks to learn which there are, and a hook host shares the import between hooks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from lockbuild.artifacts import publish
from lockbuild.console import Console
from lockbuild.errors import LockbuildError
from lockbuild.locks import SourceTreeLock
from lockbuild.settings import LOCK_TIMEOUT_VARIABLE, from_environment, seconds

try:
    from setuptools import build_meta as _setuptools
except ModuleNotFoundError as error:
    if error.name != "setuptools":
        raise
    raise ImportError(
        "lockbuild.backend runs the hooks of setuptools, which is not installed: write "
        'requires = ["setuptools", "lockbuild"] under [build-system] in pyproject.toml'
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    _ConfigSettings: TypeAlias = Mapping[str, Any] | None

# For in-tree backends that take all hooks from here and replace some.
__all__ = [
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_sdist(config_settings: _ConfigSettings = None) -> list[str]:
    """Return what else is required to build an sdist. It writes ``*.egg-info`` into the tree, and so needs the lock."""
    with _locked_tree():
        return _setuptools.get_requires_for_build_sdist(config_settings)


def get_requires_for_build_wheel(config_settings: _ConfigSettings = None) -> list[str]:
    """Return what else is required to build a wheel."""
    with _locked_tree():
        return _setuptools.get_requires_for_build_wheel(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: _ConfigSettings = None) -> str:
    """Write the wheel's ``.dist-info`` into a directory; return its name there."""
    with _locked_tree():
        return _setuptools.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: _ConfigSettings = None) -> str:
    """Build an sdist into a directory; return its name there."""
    with _locked_tree():
        return _published(lambda folder: _setuptools.build_sdist(folder, config_settings), sdist_directory)


def build_wheel(
    wheel_directory: str, config_settings: _ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel into a directory; return its name there."""
    with _locked_tree():
        return _published(
            lambda folder: _setuptools.build_wheel(folder, config_settings, metadata_directory), wheel_directory
        )


# setuptools has these since version 64.
if hasattr(_setuptools, "build_editable"):
    __all__ += ["build_editable", "get_requires_for_build_editable", "prepare_metadata_for_build_editable"]

    def get_requires_for_build_editable(config_settings: _ConfigSettings = None) -> list[str]:
        """Return what else is required to build an editable wheel."""
        with _locked_tree():
            return _setuptools.get_requires_for_build_editable(config_settings)

    def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: _ConfigSettings = None) -> str:
        """Write the editable wheel's ``.dist-info`` into a directory; return its name there."""
        with _locked_tree():
            return _setuptools.prepare_metadata_for_build_editable(metadata_directory, config_settings)

    def build_editable(
        wheel_directory: str, config_settings: _ConfigSettings = None, metadata_directory: str | None = None
    ) -> str:
        """Build an editable wheel, which leads to the tree, into a directory; return its name there."""
        with _locked_tree():
            return _published(
                lambda folder: _setuptools.build_editable(folder, config_settings, metadata_directory), wheel_directory
            )


@contextlib.contextmanager
def _locked_tree() -> Iterator[None]:
    """
    Lock the tree that a hook is called for: the working directory, says PEP 517.

    Where a lockbuild frontend holds the lock already, that is known from the environment, and nobody waits. Builds
    that the hook runs on its own tree go on under the lock in the same way.

    A lock that cannot be had ends the process, as PEP 517 allows it, with one line on standard error: a frontend
    would show the exception with its traceback.
    """
    console = Console(0)
    with contextlib.ExitStack() as stack:
        try:
            timeout = from_environment(LOCK_TIMEOUT_VARIABLE, seconds, "a number of seconds")
            lock = stack.enter_context(SourceTreeLock(os.getcwd(), timeout=timeout, reporter=console))
        except LockbuildError as error:
            console.error(str(error))
            sys.exit(error.exit_status)
        # It stays in the environment. Without the file that goes with it, it means nothing to anybody.
        os.environ.update(stack.enter_context(lock.lent()))
        yield


def _published(build: Callable[[str], str], directory: str) -> str:
    """Have an artifact built elsewhere, and give it its place in a directory at once; return its name there."""
    os.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lockbuild-", ignore_cleanup_errors=True) as staging:
        name = build(staging)
        publish(staging, name, directory)
        return name

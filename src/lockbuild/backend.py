"""A build backend: runs setuptools' hooks under the lock on the source tree, for frontends that take no lock.

A project that names it in its pyproject.toml can be built by any frontend, any number of times at once::

    [build-system]
    requires = ["setuptools", "lockbuild"]
    build-backend = "lockbuild.backend"

The hooks are those of PEP 517 and PEP 660 that the installed setuptools has, with the arguments and results of
`setuptools.build_meta`. A frontend runs each hook in a process of its own, so hooks of another build may run between
two hooks of one build. That is harmless: each hook rewrites what an earlier one left in the tree. But builds may share
an out-dir, where setuptools removes the old file before the new one is complete. So this backend has setuptools build
elsewhere, and then publishes each artifact whole.

This module imports only the standard library, filelock, platformdirs and setuptools. It imports setuptools at once: a
frontend looks here for the hooks that exist, and a hook host shares the import between hooks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from lockbuild.artifacts import publish
from lockbuild.console import Console
from lockbuild.errors import LockbuildError, LockLostError
from lockbuild.locks import SourceTreeLock
from lockbuild.settings import LOCK_TIMEOUT_VARIABLE, from_environment, seconds
from lockbuild.staging import Staging

try:
    from setuptools import build_meta as _setuptools
except ModuleNotFoundError as error:
    if error.name != "setuptools":
        raise
    raise ImportError(
        "lockbuild.backend needs setuptools, which is not installed: write "
        'requires = ["setuptools", "lockbuild"] under [build-system] in pyproject.toml'
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    _ConfigSettings: TypeAlias = Mapping[str, Any] | None

# For in-tree backends that import all hooks from here and replace some.
__all__ = [
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_sdist(config_settings: _ConfigSettings = None) -> list[str]:
    """Return the extra requirements for an sdist. setuptools writes ``*.egg-info`` into the tree for that."""
    with _locked_tree():
        return _setuptools.get_requires_for_build_sdist(config_settings)


def get_requires_for_build_wheel(config_settings: _ConfigSettings = None) -> list[str]:
    """Return the extra requirements for a wheel."""
    with _locked_tree():
        return _setuptools.get_requires_for_build_wheel(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: _ConfigSettings = None) -> str:
    """Write the wheel's ``.dist-info`` into a directory; return its name there."""
    with _locked_tree():
        return _setuptools.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: _ConfigSettings = None) -> str:
    """Build an sdist into a directory; return its name there."""
    with _locked_tree() as lock:
        return _published(lambda folder: _setuptools.build_sdist(folder, config_settings), sdist_directory, lock)


def build_wheel(
    wheel_directory: str, config_settings: _ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel into a directory; return its name there."""
    with _locked_tree() as lock:
        return _published(
            lambda folder: _setuptools.build_wheel(folder, config_settings, metadata_directory), wheel_directory, lock
        )


# setuptools has these since version 64.
if hasattr(_setuptools, "build_editable"):
    __all__ += ["build_editable", "get_requires_for_build_editable", "prepare_metadata_for_build_editable"]

    def get_requires_for_build_editable(config_settings: _ConfigSettings = None) -> list[str]:
        """Return the extra requirements for an editable wheel."""
        with _locked_tree():
            return _setuptools.get_requires_for_build_editable(config_settings)

    def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: _ConfigSettings = None) -> str:
        """Write the editable wheel's ``.dist-info`` into a directory; return its name there."""
        with _locked_tree():
            return _setuptools.prepare_metadata_for_build_editable(metadata_directory, config_settings)

    def build_editable(
        wheel_directory: str, config_settings: _ConfigSettings = None, metadata_directory: str | None = None
    ) -> str:
        """Build an editable wheel, which refers to the tree, into a directory; return its name there."""
        with _locked_tree() as lock:
            return _published(
                lambda folder: _setuptools.build_editable(folder, config_settings, metadata_directory),
                wheel_directory,
                lock,
            )


@contextlib.contextmanager
def _locked_tree() -> Iterator[SourceTreeLock]:
    """
    Lock the tree of a hook, which is its working directory (PEP 517); yield the lock.

    Under a lockbuild frontend that holds the lock, the hook finds the lock in its environment and does not wait.
    Builds that the hook runs on its own tree go on under the lock in the same way.

    When the lock cannot be taken, the process ends with one line on standard error, as PEP 517 allows. For an
    exception, a frontend would show a traceback.
    """
    console = Console(0)
    with contextlib.ExitStack() as stack:
        try:
            timeout = from_environment(LOCK_TIMEOUT_VARIABLE, seconds, "a number of seconds")
            lock = stack.enter_context(SourceTreeLock(os.getcwd(), timeout=timeout, reporter=console))
        except LockbuildError as error:
            console.error(str(error))
            sys.exit(error.exit_status)
        # The variable stays in the environment. Without the file that goes with it, it has no effect.
        os.environ.update(stack.enter_context(lock.lent()))
        yield lock


def _published(build: Callable[[str], str], directory: str, lock: SourceTreeLock) -> str:
    """Build an artifact elsewhere and publish it whole in a directory; return its name there."""
    os.makedirs(directory, exist_ok=True)
    with Staging() as staging:
        name = build(staging.path)
        try:
            lock.confirm()
        except LockLostError as error:
            Console(0).error(str(error))
            sys.exit(error.exit_status)
        publish(staging.path, name, directory)
        return name

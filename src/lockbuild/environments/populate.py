"""How a build environment gets its contents: `build` makes it, and pip or uv installs what is required.

Only builds whose environment is not in the store import this.
"""

from __future__ import annotations

import contextlib
import subprocess
import sysconfig
import time
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from build.env import DefaultIsolatedEnv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lockbuild.build_library import forward_log
from lockbuild.environments.local import describe_source, digest_of_sources
from lockbuild.environments.resolve import can_fill, fill, fill_again
from lockbuild.environments.store import Manifest
from lockbuild.events import Reporter
from lockbuild.installers import install_with_pip, log_requirements, run_uv, written
from lockbuild.interruption import killing_descendants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.environments.store import Generation

# Of two threads that ask first, one may find half of the variables (Python 3.11). The import is done by one thread.
sysconfig.get_config_vars()

# For uv a wheel that was rebuilt under its old name is the one in its cache. This has it look past that, as --refresh
# does, which uv refuses where UV_OFFLINE is set.
_REINSTALL = "--reinstall"

# What installers say when an index cannot be reached, as opposed to: when it has no such version.
_UNREACHABLE = (
    "connection broken by",
    "NewConnectionError",
    "Could not fetch URL",
    "ProxyError",
    "error sending request",
    "client error (Connect)",
    "dns error",
    "Network is unreachable",
)


class IndexUnreachableError(Exception):
    """An installer has failed because it could not reach an index."""

    def __init__(self, error: subprocess.CalledProcessError) -> None:
        self.error = error
        super().__init__(error)


def populate(
    generation: Generation,
    wanted: EnvironmentRequest,
    key: EnvironmentKey,
    variables: Mapping[str, str],
    resolution: Manifest | None = None,
) -> Manifest:
    """
    Make an environment in the folder of a generation; return its manifest, whose contents are still to be digested.

    ``variables`` are those of the installer's environment beside ours. With a resolution, no installer runs: the
    environment gets the same wheels. Raises what `build` raises, what `lockbuild.environments.resolve` raises, and
    `IndexUnreachableError`.
    """
    made = time.time() if resolution is None else resolution.made
    wheels: Mapping[str, str] | None = {}
    heard = InstallerOutput(wanted.reporter)
    try:
        with forward_log(heard, wanted.build.verbosity), killing_descendants():
            environment = DefaultIsolatedEnv(installer=wanted.build.installer, path=generation.path).__enter__()
            paths = _paths(environment.path)
            if resolution and resolution.wheels:
                wheels = fill_again(environment, paths, wanted, resolution.wheels)
            elif wanted.requirements:
                wheels = _install(environment, paths, wanted, key, variables)
    except subprocess.CalledProcessError as error:
        if heard.index_was_unreachable:
            raise IndexUnreachableError(error) from error
        raise
    packages = _installed_packages({paths["purelib"], paths["platlib"]})
    names = _names(wanted.requirements)
    return Manifest(
        made=made,
        python_executable=environment.python_executable,
        scripts=paths["scripts"],
        requirements=tuple(sorted(wanted.requirements)),
        packages=packages,
        required={name: version for name, version in sorted(packages.items()) if name in names},
        contents="",
        sources=digest_of_sources(key.sources, packages, made) if resolution is None else resolution.sources,
        wheels=wheels,
    )


def _install(
    environment: DefaultIsolatedEnv,
    paths: Mapping[str, str],
    wanted: EnvironmentRequest,
    key: EnvironmentKey,
    variables: Mapping[str, str],
) -> Mapping[str, str] | None:
    """Install what is required; return the wheels of the store that are in the environment, if they are known."""
    log_requirements(wanted.requirements)
    if wanted.build.installer == "uv":
        _install_with_uv(environment, wanted, key, variables)
        return None
    if can_fill(wanted):
        return fill(environment, paths, wanted, variables)
    install_with_pip(environment, wanted.requirements, wanted.constraints_for_installer(), variables)
    return None


def _install_with_uv(
    environment: DefaultIsolatedEnv, wanted: EnvironmentRequest, key: EnvironmentKey, variables: Mapping[str, str]
) -> None:
    """Install as `DefaultIsolatedEnv.install` does, and look past uv's cache where local distributions may be newer."""
    reinstall = [_REINSTALL] if wanted.wheels or any(map(describe_source, key.sources)) else []
    with written((), wanted.constraints_for_installer()) as files:
        words = [*reinstall, *wanted.requirements, "--python", environment.python_executable, *files]
        run_uv(environment, ["install", *words], variables)


def _paths(environment: str) -> dict[str, str]:
    """Return where an environment that was made by this interpreter has what, by the names of ``sysconfig``."""
    base = {"base": environment, "platbase": environment, "installed_base": environment}
    return sysconfig.get_paths("venv", {**sysconfig.get_config_vars(), **base})


def _installed_packages(folders: Collection[str]) -> dict[str, str]:
    found = distributions(path=sorted(folders))
    return {canonicalize_name(distribution.name): distribution.version for distribution in found}


def _names(requirements: Collection[str]) -> set[str]:
    names = set()
    for requirement in requirements:
        with contextlib.suppress(InvalidRequirement):
            names.add(str(canonicalize_name(Requirement(requirement).name)))
    return names


class InstallerOutput(Reporter):
    """Listens for an installer that cannot reach its index, and passes on what it hears."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.index_was_unreachable = False

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        self.index_was_unreachable |= any(sign in message for sign in _UNREACHABLE)
        # It is no requirement, though `build` lists it with them.
        self._reporter.log(message.replace(f"\n- {_REINSTALL}", ""), kind)

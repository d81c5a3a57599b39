"""How a build environment gets its contents: `build` makes it, and pip or uv installs what is required.

Only builds whose environment is not in the store import this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sysconfig
import time
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lockbuild.build_library import forward_log
from lockbuild.environments.local import describe_source, digest_of_sources
from lockbuild.environments.store import Manifest
from lockbuild.errors import InstallerError
from lockbuild.installers import install_with_pip, install_with_uv, isolated_environment, log_requirements, written
from lockbuild.interruption import killing_descendants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from build.env import DefaultIsolatedEnv

    from lockbuild.environments.key import EnvironmentKey
    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.environments.store import Generation

# Of two threads that ask first, one may find half of the variables (Python 3.11). The import is done by one thread.
sysconfig.get_config_vars()

# For uv a wheel that was rebuilt under its old name is the one in its cache. This has it look past that, as --refresh
# does, which uv refuses where UV_OFFLINE is set.
_REINSTALL = "--reinstall"

# What installers say when a disk or an inode table is full.
_FULL = os.strerror(errno.ENOSPC)


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
    environment gets the same wheels. Raises what `build` raises, and what `lockbuild.environments.resolve` raises.
    """
    made = time.time() if resolution is None else resolution.made
    wheels: Mapping[str, str] | None = {}
    try:
        with forward_log(wanted.reporter, wanted.build.verbosity), killing_descendants():
            environment = isolated_environment(wanted.build.installer, generation.path).__enter__()
            paths = _paths(environment.path)
            if resolution and resolution.wheels:
                from lockbuild.environments.resolve import fill_again

                wheels = fill_again(environment, paths, wanted, resolution.wheels)
            elif wanted.requirements:
                wheels = _install(environment, paths, wanted, key, variables)
    except InstallerError as error:
        if _FULL in error.output:
            raise OSError(errno.ENOSPC, _FULL, generation.path) from error
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
    constraints, staging = wanted.constraints_for_installer(), wanted.staging()
    if wanted.build.installer == "uv":
        # Where local distributions may be newer, uv looks past its cache.
        options = [_REINSTALL] if wanted.wheels or any(map(describe_source, key.sources)) else []
        files = written((), constraints, staging)
        install_with_uv(environment, [*options, *wanted.requirements, *files], variables)
        return None
    from lockbuild.environments.resolve import can_fill, fill

    if can_fill(wanted):
        return fill(environment, paths, wanted, variables)
    # What pip leaves there when it is killed is removed with the staging folder.
    files = written(wanted.requirements, constraints, staging)
    install_with_pip(environment, files, {**variables, "TMPDIR": staging})
    return None


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

"""How a build environment gets its contents: `build` makes it, and pip or uv installs what is required.

Only builds whose environment is not in the store import this.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import tempfile
import time
from importlib.metadata import distributions
from typing import TYPE_CHECKING, NamedTuple

from build.env import DefaultIsolatedEnv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lockbuild.environments.store import Manifest
from lockbuild.events import Reporter
from lockbuild.interruption import killing_descendants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lockbuild.environments.store import Generation
    from lockbuild.request import BuildRequest

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


class InstallRequest(NamedTuple):
    """What is to be installed into an environment, and for whom."""

    requirements: Collection[str]
    constraints: str
    """The text of a constraints file."""
    request: BuildRequest
    """That of the build for which the environment is made: its installer, its cache, how long it waits."""
    variables: Mapping[str, str]
    """What the installer's environment has beside ours."""
    reporter: Reporter
    from_folders: bool = False
    """Whether settings name local folders with distributions."""


def populate(generation: Generation, wanted: InstallRequest) -> Manifest:
    """
    Make an environment in the folder of a generation; return its manifest, whose contents are still to be digested.

    Raises what `build` raises, and `lockbuild.environments.resolve.fill`.
    """
    made = time.time()
    with killing_descendants():
        environment = DefaultIsolatedEnv(installer=wanted.request.installer, path=generation.path).__enter__()
        paths = _paths(environment.path)
        if wanted.requirements:
            _install(environment, paths, wanted)
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
    )


def _install(environment: DefaultIsolatedEnv, paths: Mapping[str, str], wanted: InstallRequest) -> None:
    from lockbuild.build_library import log_step, run_pip, run_uv, write_requirements

    listed = "\n".join(f"- {requirement}" for requirement in sorted(wanted.requirements))
    log_step(f"Installing packages in isolated environment:\n{listed}")
    if wanted.request.installer == "pip":
        from lockbuild.environments.resolve import can_fill, fill

        if can_fill(wanted):
            fill(environment, paths, wanted)
            return
    # The command of `DefaultIsolatedEnv.install`, which hands on no other variables than those of this process. They
    # are the same for all its threads.
    with contextlib.ExitStack() as stack:
        if wanted.request.installer == "pip":
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lockbuild-install-", ignore_cleanup_errors=True)
            )
            options = ["--ignore-installed", "--use-pep517", "--no-warn-script-location", "--no-compile", "--no-input"]
            written = write_requirements(wanted.requirements, wanted.constraints, folder)
            run_pip(environment, ["install", *options, *written], wanted.variables)
        else:
            options = [_REINSTALL] if wanted.from_folders else []
            words = [*options, *wanted.requirements, "--python", environment.python_executable]
            if wanted.constraints.strip():
                # Under the name that `build` gives it, which uv's messages show.
                descriptor, path = tempfile.mkstemp(".txt", "build-constraints-")
                stack.callback(os.unlink, path)
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(wanted.constraints)
                words += ["-c", path]
            run_uv(environment, ["install", *words], wanted.variables)


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

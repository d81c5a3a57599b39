"""From requirements to an environment that has them: pip resolves and fetches, and the wheels come from the store.

pip is run once, as ``pip wheel``: it resolves, takes each wheel from its own cache or from the index, builds what is
only there as an sdist (in isolation, as for `build`; then it is in pip's cache), and leaves all of them in a folder.
What has been resolved is read from that folder. A resolution report (``pip install --dry-run --report``) would name the
wheels and not leave them; a second run of pip would have to fetch those that the store does not have, and the start of
pip alone takes longer than to link a small environment.

All that pip is told holds, because it is pip that acts on it: variables, configuration files, constraints with hashes.
Only the section ``[install]`` of a configuration file does not count for ``pip wheel``; so its settings are handed over
as variables, which override a file as that section overrides ``[global]``.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lockbuild.environments.key import configuration_files
from lockbuild.installers import run_pip, written
from lockbuild.interruption import killing_descendants
from lockbuild.paths import wheel_folder
from lockbuild.wheels.destination import Destination, with_headers
from lockbuild.wheels.install import install_archives, install_unpacked
from lockbuild.wheels.plan import Installation
from lockbuild.wheels.store import WheelStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from build.env import DefaultIsolatedEnv

    from lockbuild.environments.request import EnvironmentRequest
    from lockbuild.events import Reporter


def fill(
    environment: DefaultIsolatedEnv, paths: Mapping[str, str], wanted: EnvironmentRequest, variables: Mapping[str, str]
) -> dict[str, str]:
    """
    Install what is wanted into an empty environment, with what `build` has pip install.

    ``paths`` are those of ``sysconfig`` for it, ``variables`` those of pip's environment beside ours. Returns the
    SHA-256 of each wheel that it has installed, by the name of its file. Raises `InstallerError` when pip fails, and
    what `install_archives` raises.
    """
    reporter, staging = wanted.reporter, wanted.staging()
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=staging, ignore_cleanup_errors=True) as folder:
        with _step(reporter, "resolving"), killing_descendants():
            files = written(wanted.requirements, wanted.constraints_for_installer(), staging)
            words = ["wheel", "--use-pep517", "--no-input", "--wheel-dir", folder, *files]
            # What a pip that is killed has left in its temporary folder is removed with ours.
            run_pip(environment, words, {**_settings_for_install(), **variables, "TMPDIR": staging})
        archives = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".whl")]
        with _step(reporter, "filling"):
            return install_archives(archives, {}, _store(wanted), _installation(environment, paths, wanted))


def can_fill_again(wanted: EnvironmentRequest, wheels: Mapping[str, str]) -> bool:
    """Tell whether the store has all wheels that `fill` has returned."""
    return all(map(_store(wanted).has_unchanged, wheels.values()))


def fill_again(
    environment: DefaultIsolatedEnv, paths: Mapping[str, str], wanted: EnvironmentRequest, wheels: Mapping[str, str]
) -> Mapping[str, str]:
    """
    Install wheels that `fill` has returned into an empty environment, from the store; return them.

    Raises `WheelMissingError` if the store has not all of them any more.
    """
    with _step(wanted.reporter, "filling"):
        install_unpacked(wheels, _store(wanted), _installation(environment, paths, wanted))
    return wheels


def _store(wanted: EnvironmentRequest) -> WheelStore:
    request = wanted.build
    return WheelStore(wheel_folder(request.cache_dir), request.cache_dir, request.lock_timeout, wanted.reporter)


def _installation(
    environment: DefaultIsolatedEnv, paths: Mapping[str, str], wanted: EnvironmentRequest
) -> Installation:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Installation(
        destination=Destination(with_headers(paths, environment.path, version), environment.python_executable),
        reporter=wanted.reporter,
        link_mode=wanted.build.link_mode,
        installer="pip",
        requested=_distributions(wanted.requirements),
    )


@contextlib.contextmanager
def _step(reporter: Reporter, name: str) -> Iterator[None]:
    reporter.began(name)
    began = time.perf_counter()
    try:
        yield
    finally:
        reporter.ended(name, time.perf_counter() - began)


def _settings_for_install() -> dict[str, str]:
    """Return what configuration files set for ``pip install``, as the variables that set the same for any command."""
    settings = {}
    for path in configuration_files("pip"):
        if os.path.dirname(path) == sys.prefix:
            # pip reads this one for our own environment, and is run for another.
            continue
        parser = configparser.RawConfigParser()
        # One that pip cannot read either, or a broken one: pip itself says so.
        try:
            parser.read(path)
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        if parser.has_section("install"):
            for name, value in parser.items("install"):
                variable = f"PIP_{name.lstrip('-').upper().replace('-', '_')}"
                if value and variable not in os.environ:
                    settings[variable] = value
    return settings


def can_fill(wanted: EnvironmentRequest) -> bool:
    """
    Tell whether `fill` does for what is wanted.

    It does not where something is named by its URL: for that pip leaves a direct_url.json (PEP 610) that it alone can
    write.
    """
    return " @ " not in wanted.constraints_for_installer() and not any(
        Requirement(each).url for each in wanted.requirements
    )


def _distributions(requirements: Collection[str]) -> frozenset[str]:
    """Return the normalized names of the distributions that are required."""
    return frozenset(canonicalize_name(Requirement(requirement).name) for requirement in requirements)

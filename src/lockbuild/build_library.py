"""What lockbuild takes from the library ``build`` beyond its documented API, in one place.

`build` tells its steps through two context variables of its own. Its command line sets them; so does `forward_log`,
and the steps that a user of ``python -m build`` knows reach our reporter in `build`'s own words.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from build import _ctx
from build._compat.tarfile import safe_extractall
from build._util import format_unmet_dependencies
from build.env import DefaultIsolatedEnv, _has_keyring_cli, _pip_env

from lockbuild.errors import UnmetDependenciesError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from lockbuild.events import Reporter

__all__ = [
    "check_dependencies",
    "forward_log",
    "log_step",
    "run_pip",
    "run_uv",
    "safe_extractall",
    "write_requirements",
]

# What is in the traceback of a pip before 23.2 that has read a file in its cache, origin.json, at the moment at which
# another pip wrote it (pip issue 11985). Debian 12 and Python 3.11.4 come with such a pip.
_HALF_WRITTEN = "DirectUrl.from_json(origin_path"

# How often pip is run for that.
_ATTEMPTS = 5


@contextmanager
def forward_log(reporter: Reporter, verbosity: int) -> Iterator[None]:
    """Give the reporter what `build` logs in this thread or task. From verbosity 1 on, installers' output as well."""

    def log(message: str, *, kind: tuple[str, ...] | None = None) -> None:
        reporter.log(message, kind)

    logger = _ctx.LOGGER.set(log)
    level = _ctx.VERBOSITY.set(verbosity)
    try:
        yield
    finally:
        _ctx.VERBOSITY.reset(level)
        _ctx.LOGGER.reset(logger)


def log_step(message: str) -> None:
    """Log a step as `build` does."""
    _ctx.log(message, kind=("step",))


def write_requirements(requirements: Collection[str], constraints: str, folder: str) -> list[str]:
    """Write what is to be installed into a folder, where installers heed markers and hashes; return the options."""
    options = []
    for option, name, content in (
        ("-r", "requirements.txt", "\n".join(requirements)),
        ("-c", "constraints.txt", constraints),
    ):
        if content.strip():
            path = os.path.join(folder, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
            options += [option, path]
    return options


def run_pip(environment: DefaultIsolatedEnv, words: Sequence[str], variables: Mapping[str, str]) -> None:
    """
    Run pip for an environment as `build` does, with the same pip, verbosity, keyring and log.

    ``words`` are its command and the arguments, ``variables`` what its environment has beside ours. An old pip that
    was disturbed by another one is run again. Raises `subprocess.CalledProcessError`.
    """
    command, more = _pip_command(environment)
    log = _ctx.LOGGER.get()
    heard: list[tuple[str, tuple[str, ...] | None]] = []

    def hear(message: str, *, kind: tuple[str, ...] | None = None) -> None:
        heard.append((message, kind))
        if _ctx.VERBOSITY.get() > 0:
            log(message, kind=kind)

    for attempts_left in reversed(range(_ATTEMPTS)):
        logger = _ctx.LOGGER.set(hear)
        try:
            _ctx.run_subprocess([*command, *words], env={**(_pip_env() or os.environ), **more, **variables})
            return
        except subprocess.CalledProcessError:
            if not attempts_left or not any(_HALF_WRITTEN in message for message, _ in heard):
                if _ctx.VERBOSITY.get() <= 0:
                    for message, kind in heard:
                        log(message, kind=kind)
                raise
            heard.clear()
        finally:
            _ctx.LOGGER.reset(logger)


def run_uv(environment: DefaultIsolatedEnv, words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run ``uv pip`` for an environment as `build` does; ``words`` and ``variables`` are as for `run_pip`."""
    command = [environment._env_backend._uv_bin, "pip"]  # type: ignore[attr-defined]
    if _ctx.verbosity > 1:
        command.append(f"-{'v' * min(2, _ctx.verbosity - 1)}")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ["VIRTUAL_ENV"] = environment.path
    if "UV_KEYRING_PROVIDER" not in environ and _has_keyring_cli():
        environ["UV_KEYRING_PROVIDER"] = "subprocess"
    _ctx.run_subprocess([*command, *words], env={**environ, **variables})


def _pip_command(environment: DefaultIsolatedEnv) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs pip for an environment, and the variables that it needs."""
    variables = {}
    if environment._env_backend._has_valid_outer_pip:  # type: ignore[attr-defined]
        # `build` runs ``pip --python``. That starts pip twice: the first one only looks for its option, and starts its
        # own ``__pip-runner__.py`` under the other interpreter. Starting that at once saves a third of a second.
        runner = _pip_runner()
        if runner is None:
            command = [sys.executable, "-m", "pip", "--python", environment.python_executable]
        else:
            command = [environment.python_executable, runner]
            variables["_PIP_RUNNING_IN_SUBPROCESS"] = "1"
    else:
        command = [environment.python_executable, "-Im", "pip"]
    if _ctx.verbosity > 1:
        command.append(f"-{'v' * (_ctx.verbosity - 1)}")
    return command, variables


def _pip_runner() -> str | None:
    """Return the script by which pip runs itself under another interpreter, where this pip has one."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        # Not by the import system: setuptools takes whoever looks for pip there for pip, and takes its distutils away.
        runner = os.path.realpath(str(distribution("pip").locate_file("pip/__pip-runner__.py")))
    except PackageNotFoundError:
        return None
    return runner if os.path.isfile(runner) else None


def check_dependencies(requirements: Collection[str]) -> None:
    """Check that requirements are installed where this runs. Raises `UnmetDependenciesError`."""
    if missing := {chain for requirement in requirements for chain in _missing(requirement)}:
        raise UnmetDependenciesError(format_unmet_dependencies(missing))


def _missing(requirement: str) -> Iterator[tuple[str, ...]]:
    from build import check_dependency
    from packaging.requirements import InvalidRequirement

    try:
        yield from check_dependency(requirement)
    except InvalidRequirement as error:
        problem = str(error).partition("\n")[0]
        raise UnmetDependenciesError(f"{requirement!r} is not a requirement: {problem}") from error

"""pip and uv, run for an environment that `build` has made: with the options, keyring and log that `build` gives them.

`DefaultIsolatedEnv.install` of `build` runs them too, but takes no options and no variables. A kept environment needs
these. And pip must not take for installed what PYTHONPATH leads to (pypa/build#405): `build` has an option for that,
``_fresh``, which is for its own command line. pypa/build#833 asks for installers of a user's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

from lockbuild.build_library import log, verbosity
from lockbuild.pip_library import pip_for, was_disturbed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from build.env import DefaultIsolatedEnv

# How often pip is run when another pip disturbs it.
_ATTEMPTS = 5


def log_requirements(requirements: Collection[str]) -> None:
    """Say what is about to be installed, as `build` does."""
    listed = "\n".join(f"- {requirement}" for requirement in sorted(requirements))
    log(f"Installing packages in isolated environment:\n{listed}", "step")


def install_with_pip(
    environment: DefaultIsolatedEnv,
    requirements: Collection[str],
    constraints: str,
    variables: Mapping[str, str],
    staging: str,
) -> None:
    """
    Have pip install requirements into a new environment, as `build` does; ``variables`` are as for `run_pip`.

    What it leaves in its temporary folder when it is killed is removed with the staging folder.
    """
    options = ["--ignore-installed", "--use-pep517", "--no-warn-script-location", "--no-compile", "--no-input"]
    files = written(requirements, constraints, staging)
    run_pip(environment, ["install", *options, *files], {**variables, "TMPDIR": staging})


def written(requirements: Collection[str], constraints: str, staging: str) -> list[str]:
    """
    Write what is to be installed into files in the staging folder; return the options that name them.

    In files pip heeds markers and hashes. They have the names that `build` gives them, which installers' messages show.
    """
    options = []
    for option, name, content in (
        ("-r", "requirements", "\n".join(requirements)),
        ("-c", "constraints", constraints),
    ):
        if content.strip():
            descriptor, path = tempfile.mkstemp(".txt", f"build-{name}-", staging)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            options += [option, path]
    return options


def run_pip(environment: DefaultIsolatedEnv, words: Sequence[str], variables: Mapping[str, str]) -> None:
    """
    Run pip for a new environment: the pip that `build` has put there, or else our own.

    ``words`` are its command and arguments; ``variables`` are added to ours. An old pip that another one has disturbed
    is run again. Raises `subprocess.CalledProcessError`.
    """
    if environment.installed_versions(["pip"]):
        command, needed = [environment.python_executable, "-Im", "pip"], dict[str, str]()
    else:
        command, needed = pip_for(environment.python_executable)
    environ = {**_with_keyring("PIP_KEYRING_PROVIDER"), **needed, **variables}
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _run([*command, *_verbose(verbosity() - 1), *words], environ)
            return
        except subprocess.CalledProcessError as error:
            if not attempts_left or not was_disturbed(f"{error.stdout}{error.stderr}"):
                _log_failure(error)
                raise


def run_uv(environment: DefaultIsolatedEnv, words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run ``uv pip`` for an environment; ``words`` and ``variables`` are as for `run_pip`."""
    environ = {**_with_keyring("UV_KEYRING_PROVIDER"), "VIRTUAL_ENV": environment.path, **variables}
    environ.pop("PYTHONPATH", None)
    try:
        _run([_uv(), "pip", *_verbose(min(2, verbosity() - 1)), *words], environ)
    except subprocess.CalledProcessError as error:
        _log_failure(error)
        raise


def _uv() -> str:
    """Return the path of uv: that of the package of this name, else ``UV`` or what PATH has."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ModuleNotFoundError, FileNotFoundError):
        name = os.environ.get("UV") or "uv"
        return shutil.which(name) or name


def _with_keyring(variable: str) -> dict[str, str]:
    """Return our variables; one more has the installer ask the program ``keyring`` for passwords, if there is one."""
    if variable not in os.environ and shutil.which("keyring"):
        return {**os.environ, variable: "subprocess"}
    return dict(os.environ)


def _verbose(times: int) -> list[str]:
    return [f"-{'v' * times}"] if times > 0 else []


def _run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run an installer; from verbosity 1 on log its output line by line."""
    if verbosity() <= 0:
        subprocess.run(command, env=environ, capture_output=True, check=True, encoding="utf-8", errors="replace")
        return
    output = []
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        try:
            log(subprocess.list2cmdline(command), "subprocess", "cmd")
            assert process.stdout is not None
            for line in process.stdout:
                log(line, "subprocess", "stdout")
                output.append(line)
        except BaseException:
            # Interrupted. Leaving the context waits for the process.
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(output))


def _log_failure(error: subprocess.CalledProcessError) -> None:
    """Log what a failed installer has said, unless it was logged line by line."""
    if verbosity() > 0:
        return
    log(subprocess.list2cmdline(error.cmd), "subprocess", "cmd")
    for stream, text in (("stdout", error.stdout), ("stderr", error.stderr)):
        if text:
            log(text, "subprocess", stream)

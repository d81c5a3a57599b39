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
from lockbuild.errors import InstallerError, SettingsError
from lockbuild.pip_library import pip_for, was_disturbed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from build.env import DefaultIsolatedEnv

    from lockbuild.request import Installer

# How often pip is run when another pip disturbs it.
_ATTEMPTS = 5


def isolated_environment(installer: Installer, path: str | None) -> DefaultIsolatedEnv:
    """
    Return `build`'s environment, which is made when it is entered.

    Raises `SettingsError` when there is no uv, or no module that makes virtual environments.
    """
    from importlib.util import find_spec

    from build.env import DefaultIsolatedEnv

    if installer == "uv":
        _uv()
    if find_spec("venv") is None:
        raise SettingsError(
            "This Python has no module venv, which makes build environments: choose another Python with --python, or "
            "install the build requirements and use --no-isolation"
        )
    return DefaultIsolatedEnv(installer=installer, path=path)


def log_requirements(requirements: Collection[str]) -> None:
    """Say what is about to be installed, as `build` does."""
    listed = "\n".join(f"- {requirement}" for requirement in sorted(requirements))
    log(f"Installing packages in isolated environment:\n{listed}", "step")


def install_with_pip(
    environment: DefaultIsolatedEnv, files: Sequence[str], variables: Mapping[str, str], *, fresh: bool = True
) -> None:
    """
    Have pip install what `written` has written, as `build` does; ``variables`` are as for `run_pip`.

    In a ``fresh`` environment nothing is installed, whatever PYTHONPATH leads to.
    """
    options = ["--use-pep517", "--no-warn-script-location", "--no-compile", "--no-input"]
    run_pip(environment, ["install", *(["--ignore-installed"] if fresh else []), *options, *files], variables)


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

    ``words`` are its command and arguments; ``variables`` are added to ours. Raises `InstallerError`.
    """
    if environment.installed_versions(["pip"]):
        command, needed = [environment.python_executable, "-Im", "pip"], dict[str, str]()
    else:
        command, needed = pip_for(environment.python_executable)
    environ = {**_with_keyring("PIP_KEYRING_PROVIDER"), **needed, **variables}
    command = [*command, *_verbose(verbosity() - 1), *words]
    try:
        _run_undisturbed(command, environ)
    except subprocess.CalledProcessError as error:
        from lockbuild.installer_messages import hides_unreachable

        if hides_unreachable(_output(error)):
            _run_with_log(command, environ)
        else:
            raise _failure("pip", error) from None


def _run_undisturbed(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run pip. An old one that another pip has disturbed is run again."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _run(command, environ)
            return
        except subprocess.CalledProcessError as error:
            if not attempts_left or not was_disturbed(_output(error)):
                raise


def _run_with_log(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """
    Run a pip that has found no version of something again. An index that it cannot reach is named only in its log.

    Writing the log takes a tenth of pip's time, so the first run writes none.
    """
    with tempfile.TemporaryDirectory(prefix="lockbuild-pip-", ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "log")
        try:
            _run(command, {**environ, "PIP_LOG": path, "PIP_RETRIES": "0"})
        except subprocess.CalledProcessError as error:
            with open(path, encoding="utf-8", errors="replace") as file:
                logged = file.read()
            raise _failure("pip", error, logged) from None


def install_with_uv(environment: DefaultIsolatedEnv, words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Have uv install requirements, as `build` does; ``variables``, and what it raises, are as for `run_pip`."""
    environ = {**_with_keyring("UV_KEYRING_PROVIDER"), "VIRTUAL_ENV": environment.path, **variables}
    environ.pop("PYTHONPATH", None)
    # uv would break its messages into lines of this width.
    environ.pop("COLUMNS", None)
    command = [_uv(), "pip", *_verbose(min(2, verbosity() - 1)), "install", *words]
    try:
        _run([*command, "--python", environment.python_executable], environ)
    except subprocess.CalledProcessError as error:
        raise _failure("uv", error) from None


def _uv() -> str:
    """Return the path of uv: that of the package of this name, else ``UV`` or what PATH has."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ModuleNotFoundError, FileNotFoundError):
        if path := shutil.which(os.environ.get("UV") or "uv"):
            return path
        raise SettingsError("There is no uv: install lockbuild[uv], or put uv on PATH") from None


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


def _failure(installer: str, error: subprocess.CalledProcessError, logged: str = "") -> InstallerError:
    """Return why an installer has failed; log what it has said, unless it was logged line by line."""
    from lockbuild.installer_messages import is_unreachable, reason

    if verbosity() <= 0:
        for stream, text in (("stdout", error.stdout), ("stderr", error.stderr)):
            if text:
                log(text, "subprocess", stream)
    output = _output(error)
    said = f"{logged}\n{output}"
    return InstallerError(installer, reason(said), output, is_unreachable=is_unreachable(said))


def _output(error: subprocess.CalledProcessError) -> str:
    return f"{error.stdout or ''}{error.stderr or ''}"

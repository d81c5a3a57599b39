"""Settings as people write them: values of options and of environment variables, where an option wins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from lockbuild.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from lockbuild.request import BuildRequest

T = TypeVar("T")

LOCK_TIMEOUT_VARIABLE = "LOCKBUILD_LOCK_TIMEOUT"
ENV_MAX_AGE_VARIABLE = "LOCKBUILD_ENV_MAX_AGE"
INSTALLER_VARIABLE = "LOCKBUILD_INSTALLER"
LINK_MODE_VARIABLE = "LOCKBUILD_LINK_MODE"
PREIMPORT_VARIABLE = "LOCKBUILD_PREIMPORT"
REUSE_VARIABLE = "LOCKBUILD_REUSE"

DEFAULT_ENV_MAX_AGE = 24 * 3600.0
DEFAULT_MAX_SDIST_SIZE = 4 * 1024.0**3


def seconds(text: str) -> float:
    """Read a number of seconds, not negative. Raises `ValueError`."""
    value = float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """Read a time: seconds, or a number with ``s``, ``m``, ``h`` or ``d`` behind it. Raises `ValueError`."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * unit


def size(text: str) -> float:
    """Read a size in bytes, or with ``K``, ``M``, ``G`` or ``T`` behind a number; ``none`` is infinite."""
    if text.lower() == "none":
        return float("inf")
    unit = {"k": 1, "m": 2, "g": 3, "t": 4}.get(text[-1:].lower())
    return seconds(text) if unit is None else seconds(text[:-1]) * 1024.0**unit


def switch(text: str) -> bool:
    """Read ``1`` or ``0``. Raises `ValueError`."""
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


# What argparse calls a value that is none of these.
seconds.__name__ = "number of seconds"
duration.__name__ = "time"
size.__name__ = "size"


def from_environment(variable: str, parse: Callable[[str], T], meaning: str) -> T | None:
    """Return the value of an environment variable; ``None`` when it is unset or empty. Raises `SettingsError`."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"{variable} must be {meaning}, not {text!r}") from error


def make_request(parsed: argparse.Namespace) -> BuildRequest:
    """Return what a parsed command line asks for, with the environment variables. Raises `SettingsError`."""
    from lockbuild.request import INSTALLERS, LINK_MODES, BuildRequest

    if parsed.installer not in INSTALLERS:
        raise SettingsError(f"{INSTALLER_VARIABLE} must be one of {', '.join(INSTALLERS)}, not {parsed.installer!r}")
    if parsed.link_mode not in LINK_MODES:
        raise SettingsError(f"{LINK_MODE_VARIABLE} must be one of {', '.join(LINK_MODES)}, not {parsed.link_mode!r}")
    timeout, max_age = parsed.lock_timeout, parsed.env_max_age
    if timeout is None:
        timeout = from_environment(LOCK_TIMEOUT_VARIABLE, seconds, "a number of seconds")
    if max_age is None:
        max_age = from_environment(ENV_MAX_AGE_VARIABLE, duration, "a time like 3600 or 24h")
    preimport = from_environment(PREIMPORT_VARIABLE, switch, "0 or 1")
    return BuildRequest(
        source=parsed.srcdir,
        distributions=tuple(parsed.distributions or ()),
        out_dir=parsed.outdir,
        config_settings=_config_settings(parsed),
        isolation=not parsed.no_isolation,
        skip_dependency_check=parsed.skip_dependency_check,
        constraints_file=parsed.dependency_constraints_txt,
        installer=parsed.installer,
        link_mode=parsed.link_mode,
        env_dir=parsed.env_dir,
        sdist_extract_dir=parsed.sdist_extract_dir,
        lock=parsed.lock,
        # An infinite one is how the option overrides the variable.
        lock_timeout=None if timeout == float("inf") else timeout,
        cache_dir=parsed.cache_dir,
        use_cache=not parsed.no_cache,
        env_max_age=DEFAULT_ENV_MAX_AGE if max_age is None else max_age,
        refresh=parsed.refresh,
        preimport=preimport is not False,
        reuse=bool(from_environment(REUSE_VARIABLE, switch, "1 or 0") if parsed.reuse is None else parsed.reuse),
        coalesce=parsed.coalesce,
        max_sdist_size=parsed.max_sdist_size,
        clear=parsed.clear,
        verbosity=parsed.verbosity,
    )


def words_of(request: BuildRequest) -> list[str]:
    """Return the command line that `make_request` makes this request of, in an environment with `variables_of` it."""
    import json

    words = [f"--{kind}" for kind in request.distributions]
    words.append(f"--link-mode={request.link_mode}")
    words.append(f"--lock-timeout={float('inf') if request.lock_timeout is None else request.lock_timeout}")
    words.append(f"--env-max-age={request.env_max_age}")
    words.append(f"--max-sdist-size={'none' if request.max_sdist_size == float('inf') else request.max_sdist_size}")
    words.append("--reuse" if request.reuse else "--no-reuse")
    words += ["--quiet" if request.verbosity < 0 else "--verbose"] * abs(request.verbosity)
    with_values = {
        "--outdir": request.out_dir,
        "--config-json": json.dumps(dict(request.config_settings)) if request.config_settings else None,
        "--dependency-constraints-txt": request.constraints_file,
        "--env-dir": request.env_dir,
        "--sdist-extract-dir": request.sdist_extract_dir,
        "--lock": request.lock,
        "--cache-dir": request.cache_dir,
    }
    words += [f"{option}={value}" for option, value in with_values.items() if value is not None]
    switches = {
        "--no-isolation": not request.isolation,
        "--skip-dependency-check": request.skip_dependency_check,
        "--no-cache": not request.use_cache,
        "--refresh": request.refresh,
        "--coalesce": request.coalesce,
        "--clear": request.clear,
    }
    words += [option for option, is_on in switches.items() if is_on]
    return [*words, "--", request.source]


def variables_of(request: BuildRequest) -> dict[str, str]:
    """Return the variables for what no option says, or none together with the others of a request."""
    return {INSTALLER_VARIABLE: request.installer, PREIMPORT_VARIABLE: "1" if request.preimport else "0"}


def _config_settings(parsed: argparse.Namespace) -> Mapping[str, Any]:
    if parsed.config_json:
        from lockbuild.config_settings import from_json

        return from_json(parsed.config_json)
    if parsed.config_settings:
        from lockbuild.config_settings import from_words

        return from_words(parsed.config_settings)
    return {}

"""Makes a `BuildRequest` from the command line and the environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockbuild.errors import SettingsError
from lockbuild.request import INSTALLERS, LINK_MODES, BuildRequest
from lockbuild.settings import (
    DEFAULT_ENV_MAX_AGE,
    ENV_MAX_AGE_VARIABLE,
    INSTALLER_VARIABLE,
    LINK_MODE_VARIABLE,
    LOCK_TIMEOUT_VARIABLE,
    PREIMPORT_VARIABLE,
    REUSE_VARIABLE,
    duration,
    from_environment,
    seconds,
    switch,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def make_request(parsed: argparse.Namespace) -> BuildRequest:
    """Return the request of a parsed command line and the environment variables. Raises `SettingsError`."""
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
        # With an infinite one, the option overrides the variable.
        lock_timeout=None if timeout == float("inf") else timeout,
        cache_dir=parsed.cache_dir,
        use_cache=not parsed.no_cache,
        env_max_age=DEFAULT_ENV_MAX_AGE if max_age is None else max_age,
        refresh=parsed.refresh,
        preimport=preimport is not False,
        sources={name: wheel or None for name, _, wheel in (each.partition("=") for each in parsed.sources or ())},
        reuse=bool(from_environment(REUSE_VARIABLE, switch, "1 or 0") if parsed.reuse is None else parsed.reuse),
        coalesce=parsed.coalesce,
        max_sdist_size=parsed.max_sdist_size,
        clear=parsed.clear,
        verbosity=parsed.verbosity,
    )


def _config_settings(parsed: argparse.Namespace) -> Mapping[str, Any]:
    if parsed.config_json:
        from lockbuild.commands.config_settings import from_json

        return from_json(parsed.config_json)
    if parsed.config_settings:
        from lockbuild.commands.config_settings import from_words

        return from_words(parsed.config_settings)
    return {}

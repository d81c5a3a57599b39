"""Makes a `BuildRequest` from the command line and the environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockbuild.request import INSTALLERS, LINK_MODES, TREE_MODES, BuildRequest
from lockbuild.settings import (
    ENV_MAX_AGE_VARIABLE,
    INSTALLER_VARIABLE,
    LINK_MODE_VARIABLE,
    LOCK_TIMEOUT_VARIABLE,
    PREIMPORT_VARIABLE,
    REUSE_VARIABLE,
    TREE_VARIABLE,
    duration,
    from_environment,
    seconds,
    switch,
)
from lockbuild.tool_table import request_fields

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence


def make_request(parsed: argparse.Namespace, source: str | None = None) -> BuildRequest:
    """
    Return the request of a parsed command line, the environment variables and ``[tool.lockbuild]`` of the source tree.

    An option wins over a variable, and a variable over the tree. ``source`` is one of several that the command line
    names. Raises `SettingsError`.
    """
    source = parsed.srcdir if source is None else source
    chosen = request_fields(source)
    for field, read in _VARIABLES.items():
        # A variable that the option overrides may have any value.
        value = getattr(parsed, field)
        if (value := read() if value is None else value) is not None:
            chosen[field] = value
    if chosen.get("lock_timeout") == float("inf"):
        # So the option overrides the variable.
        chosen["lock_timeout"] = None
    preimport = from_environment(PREIMPORT_VARIABLE, switch, "0 or 1")
    return BuildRequest(
        source=source,
        distributions=tuple(parsed.distributions or ()),
        out_dir=parsed.outdir,
        config_settings=_config_settings(parsed),
        isolation=not parsed.no_isolation,
        skip_dependency_check=parsed.skip_dependency_check,
        constraints_file=parsed.dependency_constraints_txt,
        env_dir=parsed.env_dir,
        sdist_extract_dir=parsed.sdist_extract_dir,
        lock=parsed.lock,
        cache_dir=parsed.cache_dir,
        use_cache=not parsed.no_cache,
        refresh=parsed.refresh,
        preimport=preimport is not False,
        sources={name: wheel or None for name, _, wheel in (each.partition("=") for each in parsed.sources or ())},
        reuse=bool(from_environment(REUSE_VARIABLE, switch, "1 or 0") if parsed.reuse is None else parsed.reuse),
        coalesce=parsed.coalesce,
        max_sdist_size=parsed.max_sdist_size,
        clear=parsed.clear,
        verbosity=parsed.verbosity,
        **chosen,
    )


def _one_of(values: Sequence[str], variable: str) -> str | None:
    # `index` raises `ValueError`.
    return from_environment(variable, lambda text: values[values.index(text)], f"one of {', '.join(values)}")


def _config_settings(parsed: argparse.Namespace) -> Mapping[str, Any]:
    if parsed.config_json:
        from lockbuild.commands.config_settings import from_json

        return from_json(parsed.config_json)
    if parsed.config_settings:
        from lockbuild.commands.config_settings import from_words

        return from_words(parsed.config_settings)
    return {}


# The fields that an option, a variable or the tree may set, and what reads their variables.
_VARIABLES: Mapping[str, Callable[[], Any]] = {
    "lock_timeout": lambda: from_environment(LOCK_TIMEOUT_VARIABLE, seconds, "a number of seconds"),
    "env_max_age": lambda: from_environment(ENV_MAX_AGE_VARIABLE, duration, "a time like 3600 or 24h"),
    "installer": lambda: _one_of(INSTALLERS, INSTALLER_VARIABLE),
    "tree": lambda: _one_of(TREE_MODES, TREE_VARIABLE),
    "link_mode": lambda: _one_of(LINK_MODES, LINK_MODE_VARIABLE),
}

"""Settings for the backend (PEP 517's ``config_settings``) from ``--config-json`` or ``--config-setting``."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from lockbuild.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable


def from_json(text: str) -> dict[str, Any]:
    """Return the settings in the JSON object of ``--config-json``. Raises `SettingsError`."""
    try:
        settings = json.loads(text)
    except RecursionError as error:
        raise SettingsError("Invalid JSON in --config-json: it is nested too deeply") from error
    except ValueError as error:
        # Also a number of too many digits.
        raise SettingsError(f"Invalid JSON in --config-json: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError("--config-json must contain a JSON object (dict), not a list or primitive value")
    return settings


def from_words(words: Iterable[str]) -> dict[str, Any]:
    """Return the settings of all ``--config-setting KEY=VALUE``; a repeated key gets a list of its values."""
    collected: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            warnings.warn(
                f"Config setting {key!r} was passed without a value; this form is not supported by pip. "
                f"Write {key}= instead to be compatible with both tools",
                stacklevel=2,
            )
        if key not in collected:
            collected[key] = value
        elif isinstance(collected[key], list):
            collected[key].append(value)
        else:
            collected[key] = [collected[key], value]
    return collected

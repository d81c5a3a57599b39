"""The table ``[tool.lockbuild]`` of pyproject.toml: what a project fixes for the builds of its tree.

What changes an artifact, such as config settings, is not among the keys: ``python -m build`` would build another one.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from lockbuild.errors import SettingsError, shown
from lockbuild.request import INSTALLERS, LINK_MODES, LOCK_POLICIES, TREE_MODES
from lockbuild.settings import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _Key(NamedTuple):
    meaning: str
    schema: Mapping[str, Any]
    """JSON schema of the value."""
    parse: Callable[[Any], Any]
    """Returns what the value means. Raises `ValueError` or `TypeError`."""
    allowed: str
    """The values, in words for a message."""


def _choice(meaning: str, values: tuple[str, ...]) -> _Key:
    def parse(value: Any) -> str:
        for each in values:
            if value == each:
                return each
        raise ValueError(value)

    allowed = ", ".join(f'"{each}"' for each in values)
    return _Key(meaning, {"enum": list(values)}, parse, f"one of {allowed}")


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(value)
    return float(value)


def _time(value: Any) -> float:
    return duration(value) if isinstance(value, str) else _seconds(value)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(value)
    return tuple(value)


_NOT_NEGATIVE = {"type": "number", "minimum": 0}
_PATTERNS = {"type": "array", "items": {"type": "string"}}

_KEYS: Mapping[str, _Key] = {
    "lock": _choice("Whether to lock the tree for a build.", LOCK_POLICIES),
    "tree": _choice("Whether to build in the tree itself or in a private view of it.", TREE_MODES),
    "lock-timeout": _Key("Seconds to wait for a lock.", _NOT_NEGATIVE, _seconds, "a number of seconds"),
    "installer": _choice("The installer of the build requirements.", INSTALLERS),
    "link-mode": _choice("How to put wheels from the cache into a build environment.", LINK_MODES),
    "env-max-age": _Key(
        "After which time the requirements of a kept build environment are resolved again.",
        {"anyOf": [_NOT_NEGATIVE, {"type": "string", "pattern": r"^[0-9.]+[smhdSMHD]?$"}]},
        _time,
        'a number of seconds, or a time like "24h"',
    ),
    "packages": _Key("The folders of the packages of this workspace.", _PATTERNS, _patterns, "a list of patterns"),
    "exclude": _Key("Folders that are no packages of this workspace.", _PATTERNS, _patterns, "a list of patterns"),
}

# The keys that are read where the request is made. `project` reads the lock policy, also that of an sdist.
_OF_THE_REQUEST = ("tree", "lock-timeout", "installer", "link-mode", "env-max-age")


def read_table(pyproject: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the values of the table in the contents of the file ``path``, by key. Raises `SettingsError`."""
    tool = pyproject.get("tool", {})
    table = tool.get("lockbuild", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise SettingsError(f"tool.lockbuild in {shown(path)} must be a table")
    values = {}
    for name, value in table.items():
        key = _KEYS.get(name)
        if key is None:
            known = ", ".join(_KEYS)
            raise SettingsError(f"Unknown key tool.lockbuild.{shown(name)} in {shown(path)}; the keys are {known}")
        try:
            values[name] = key.parse(value)
        except (ValueError, TypeError):
            # A value may be nested too deeply for `repr`, and too long for a message.
            from reprlib import repr as short

            raise SettingsError(
                f"tool.lockbuild.{name} in {shown(path)} must be {key.allowed}, not {short(value)}"
            ) from None
    return values


def request_fields(source: str) -> dict[str, Any]:
    """Return the fields of a request that the source tree sets for its builds. Raises `SettingsError`."""
    path = os.path.join(source, "pyproject.toml")
    # The build itself says what is wrong with a file that cannot be read.
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        content = file.read()
        # Nearly no project has the table, and every build reads the file once more.
        if b"lockbuild" in content:
            import tomllib

            table = read_table(tomllib.loads(content.decode()), path)
            return {name.replace("-", "_"): table[name] for name in _OF_THE_REQUEST if name in table}
    return {}


def get_schema(tool_name: str = "lockbuild") -> dict[str, Any]:
    """Return the JSON schema of the table, for validate-pyproject."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://lockbuild.readthedocs.io/en/latest/settings.html",
        "title": f"[tool.{tool_name}]",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"description": key.meaning, **key.schema} for name, key in _KEYS.items()},
    }

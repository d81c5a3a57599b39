"""``[tool.lockbuild]``: what a project may set, which wins, and the schema of it."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import lockbuild
from lockbuild.api import _request as _api_request
from lockbuild.commands.options import parse
from lockbuild.commands.request import make_request
from lockbuild.errors import SettingsError
from lockbuild.request import BuildRequest
from lockbuild.tool_table import get_schema, read_table, request_fields
from witness import WitnessTree

ALL = """
[tool.lockbuild]
lock = "always"
lock-timeout = 60
installer = "uv"
link-mode = "copy"
env-max-age = "7d"
packages = ["packages/*"]
exclude = []
"""

FIELDS = {"lock_timeout": 60.0, "installer": "uv", "link_mode": "copy", "env_max_age": 7 * 86400.0}


def _request(tree: Path, *words: str) -> BuildRequest:
    return make_request(parse([*words, str(tree)]))


def test_the_tree_sets_fields_of_the_request(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(ALL)
    assert request_fields(str(tmp_path)) == FIELDS
    assert _request(tmp_path)._asdict().items() >= FIELDS.items()


def test_a_variable_wins_over_the_tree_and_an_option_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(ALL)
    for name, value in (("INSTALLER", "pip"), ("LINK_MODE", "hardlink"), ("LOCK_TIMEOUT", "5"), ("ENV_MAX_AGE", "1h")):
        monkeypatch.setenv(f"LOCKBUILD_{name}", value)
    request = _request(tmp_path)
    assert (request.installer, request.link_mode) == ("pip", "hardlink")
    assert (request.lock_timeout, request.env_max_age) == (5.0, 3600.0)
    words = ("--installer=uv", "--link-mode=auto", "--lock-timeout=inf", "--env-max-age=0")
    request = _request(tmp_path, *words)
    assert (request.installer, request.link_mode) == ("uv", "auto")
    assert (request.lock_timeout, request.env_max_age) == (None, 0.0)


def test_without_the_table_a_request_has_its_own_defaults(tmp_path: Path) -> None:
    assert _request(tmp_path)._replace(source="") == BuildRequest("")


def test_the_api_heeds_the_table_and_its_arguments_win(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.lockbuild]\ninstaler = 'uv'\n")
    with pytest.raises(SettingsError, match="instaler"):
        lockbuild.build(tmp_path)
    (tmp_path / "pyproject.toml").write_text(ALL)
    request = _api_request(tmp_path, (), None, {"lock_timeout": 1.0, "env_max_age": 0.0})
    assert (request.installer, request.link_mode) == ("uv", "copy")
    assert (request.lock_timeout, request.env_max_age) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("lock_timeout = 1", "Unknown key tool.lockbuild.lock_timeout"),
        ("config-settings = {}", "Unknown key tool.lockbuild.config-settings"),
        ("lock-timeout = '1'", "tool.lockbuild.lock-timeout in .* must be a number of seconds, not '1'"),
        ("lock-timeout = -1", "must be a number of seconds, not -1"),
        ("lock-timeout = nan", "must be a number of seconds, not nan"),
        ("lock-timeout = true", "must be a number of seconds, not True"),
        ("installer = 'conda'", 'tool.lockbuild.installer in .* must be one of "pip", "uv", not \'conda\''),
        ("installer = 1", "not 1"),
        ("link-mode = 'symlink'", 'must be one of "auto", "hardlink", "copy"'),
        ("env-max-age = 'soon'", "must be a number of seconds, or a time like \"24h\", not 'soon'"),
        ("env-max-age = []", r"not \[\]"),
        ("packages = 'packages/*'", "tool.lockbuild.packages in .* must be a list of patterns"),
        ("exclude = [1]", "tool.lockbuild.exclude in .* must be a list of patterns"),
    ],
)
def test_a_key_that_is_unknown_or_of_another_type_is_named(tmp_path: Path, setting: str, problem: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.lockbuild]\n{setting}\n")
    with pytest.raises(SettingsError, match=problem):
        _request(tmp_path)


def test_a_mistake_in_the_table_is_one_line_for_every_kind_of_build(witness_tree: WitnessTree) -> None:
    pyproject = witness_tree.path / "pyproject.toml"
    pyproject.write_text(f"{pyproject.read_text()}\n[tool.lockbuild]\ninstaler = 'uv'\n")
    for words in ((), ("-j1",), ("--metadata",)):
        [(status, out, err)] = witness_tree.finish(witness_tree.start(*words))
        assert (status, out) == (1, "")
        assert err.splitlines()[-1].startswith("ERROR Unknown key tool.lockbuild.instaler in ")


def test_the_schema_has_every_key_and_is_found_by_validate_pyproject() -> None:
    [found] = [each for each in entry_points(group="validate_pyproject.tool_schema") if each.name == "lockbuild"]
    schema = found.load()("lockbuild")
    assert schema == get_schema()
    assert schema["additionalProperties"] is False
    values: dict[str, Any] = {
        "lock": "never",
        "tree": "auto",
        "lock-timeout": 1.5,
        "installer": "pip",
        "link-mode": "auto",
        "env-max-age": 0,
        "packages": ["a"],
        "exclude": ["b"],
    }
    assert schema["properties"].keys() == values.keys()
    assert read_table({"tool": {"lockbuild": values}}, "pyproject.toml").keys() == values.keys()

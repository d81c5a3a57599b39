"""What two requests must have in common to share a build, and what they need not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lockbuild.request import BuildRequest
from lockbuild.sdist import Sdist
from lockbuild.sharing.key import (
    PREFIXES_WITHOUT_EFFECT,
    WITHOUT_EFFECT,
    not_shared_because,
    sharing_key,
    umask_of_new_folders,
)

SDIST = Sdist("/somewhere/foo-1.0.tar.gz", "/copy/foo-1.0.tar.gz", "foo-1.0", "0" * 64)


def key_of(source: Sdist | str = SDIST, request: BuildRequest | None = None) -> str:
    key = sharing_key(source, "wheel", request or BuildRequest("unused"))
    assert key is not None
    return key.digest


def test_an_sdist_is_known_by_its_content_not_by_its_place() -> None:
    assert key_of(SDIST._replace(archive="/elsewhere/foo-1.0.tar.gz")) == key_of()
    assert key_of(SDIST._replace(sha256="1" * 64)) != key_of()


@pytest.mark.parametrize(
    "variable", ["SOURCE_DATE_EPOCH", "CFLAGS", "PATH", "HOME", "BUILD_NUMBER", "SETUPTOOLS_SCM_PRETEND_VERSION", "FOO"]
)
def test_a_variable_that_a_build_may_read_is_in_the_key(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setenv(variable, "other")
    assert key_of() != before


@pytest.mark.parametrize("variable", [*sorted(WITHOUT_EFFECT), *(f"{prefix}X" for prefix in PREFIXES_WITHOUT_EFFECT)])
def test_a_variable_of_the_list_is_not(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setenv(variable, "other")
    assert key_of() == before


def test_the_list_in_the_documentation_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    documented = set(re.findall(r"`([A-Z0-9_*]+)`", "\n".join(rows)))
    assert documented == WITHOUT_EFFECT | {f"{prefix}*" for prefix in PREFIXES_WITHOUT_EFFECT}


def test_a_tree_without_ignored_files_is_another_one(tmp_path: Path) -> None:
    keys = {
        mode: key_of(str(tmp_path), BuildRequest(str(tmp_path), tree=mode))
        for mode in ("shared", "private", "auto", "clean")
    }
    assert keys["shared"] == keys["private"] == keys["auto"] != keys["clean"]


def test_settings_constraints_and_the_files_that_they_name_are_in_the_key(tmp_path: Path) -> None:
    file, constraints = tmp_path / "native.ini", tmp_path / "constraints.txt"
    file.write_text("[binaries]")
    constraints.write_text("setuptools < 80")
    keys = {
        key_of(request=BuildRequest("unused", config_settings=settings, constraints_file=path))
        for settings in ({}, {"a": "b"}, {"a": ["b"]}, {"a": "b", "c": "d"}, {"setup-args": f"--native-file={file}"})
        for path in (None, str(constraints))
    }
    assert len(keys) == 10
    before = key_of(request=BuildRequest("unused", config_settings={"x": {"y": [str(file)]}}))
    file.write_text("[other]")
    assert key_of(request=BuildRequest("unused", config_settings={"x": {"y": [str(file)]}})) != before


def test_the_umask_is_in_the_key_and_stays_what_it_is() -> None:
    before = os.umask(0o022)
    try:
        key = key_of()
        assert os.umask(0o027) == 0o022
        assert key_of() != key
    finally:
        os.umask(before)


def test_the_umask_is_read_without_setting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.umask", lambda _: pytest.fail("it was set"))
            key_of()
            # Where there is no /proc.
            assert umask_of_new_folders() == 0o027
    finally:
        os.umask(before)


def test_the_configuration_of_distutils_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIST_EXTRA_CONFIG", str(tmp_path / "extra.cfg"))
    keys = {key_of()}
    for name in (".pydistutils.cfg", "extra.cfg"):
        (tmp_path / name).write_text("[build]\n")
        keys.add(key_of())
    assert len(keys) == 3


def test_a_tree_is_known_by_its_path_and_its_pyproject_file_alone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tmp_path / "link").symlink_to(tree)
    before = key_of(str(tree))
    (tree / "module.py").touch()
    assert key_of(str(tree)) == key_of(str(tmp_path / "link")) == before
    (tree / "pyproject.toml").touch()
    assert key_of(str(tree)) != before


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (BuildRequest("unused"), None),
        (BuildRequest("unused", use_cache=False), "--no-cache"),
        (BuildRequest("unused", isolation=False), "--no-isolation"),
        (BuildRequest("unused", env_dir="x"), "--env-dir"),
        (BuildRequest("unused", sdist_extract_dir="x"), "--sdist-extract-dir"),
    ],
)
def test_what_forbids_to_share_is_told(request_: BuildRequest, reason: str | None) -> None:
    told = not_shared_because(request_)
    assert (told is None) if reason is None else (told is not None and reason in told)


def test_a_constraint_that_names_a_file_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("foo @ file:///tmp/foo.whl")
    request = BuildRequest("unused", constraints_file=str(tmp_path / "constraints.txt"))
    assert sharing_key(SDIST, "wheel", request) is None

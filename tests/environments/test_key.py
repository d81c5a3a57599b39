"""What decides which environment a build gets: everything that an installer would read, and nothing else.

Variables, home and working directory are set as an installer would find them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest

from lockbuild.environments.key import environment_key
from lockbuild.request import Installer

_COMPUTE = """
import json, sys
from lockbuild.environments.key import environment_key
requirements, constraints, installer = json.loads(sys.argv[1])
key = environment_key(requirements, constraints, installer, {})
print(json.dumps(None if key is None else [key.digest, *key.requirements]))
"""


class Keys:
    """Computes keys as a build on this machine would, with a home and a working directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.cwd = folder / "cwd"
        self.home.mkdir()
        self.cwd.mkdir()

    def compute(
        self,
        requirements: Sequence[str] = ("setuptools",),
        constraints: str = "",
        installer: Installer = "pip",
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        python: str | None = None,
    ) -> list[str] | None:
        """Return the digest and the normalized requirements; ``None`` when nothing can be kept under a key."""
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PIP_", "UV_", "XDG_"))}
        environ = {**clean, "HOME": str(self.home), **(env or {})}
        if python is None:
            with mock.patch.dict(os.environ, environ, clear=True), contextlib.chdir(cwd or self.cwd):
                found = environment_key(requirements, constraints, installer, {})
            return None if found is None else [found.digest, *found.requirements]
        answer = subprocess.run(
            [python, "-c", _COMPUTE, json.dumps([list(requirements), constraints, installer])],
            env=environ,
            cwd=cwd or self.cwd,
            capture_output=True,
            text=True,
            check=True,
        )
        key: list[str] | None = json.loads(answer.stdout)
        return key

    def digest(
        self,
        requirements: Sequence[str] = ("setuptools",),
        constraints: str = "",
        installer: Installer = "pip",
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        python: str | None = None,
    ) -> str:
        key = self.compute(requirements, constraints, installer, env=env, cwd=cwd, python=python)
        assert key is not None
        return key[0]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_order_and_spelling_of_requirements_do_not_matter(keys: Keys) -> None:
    one = ["Foo_Bar >= 1.0, <2", "baz[B,a.c]", "qux; python_version>'3'"]
    same = ['qux ; python_version > "3"', "baz[a-c,b]", "foo.bar<2,>=1.0", "foo-bar>=1.0,<2"]
    assert keys.compute(one) == keys.compute(same)


@pytest.mark.parametrize(
    "other",
    ["foo", "foo>=2", "foo[extra]>=1", "foo>=1; python_version > '3'", "foo @ https://example.org/foo-1.zip"],
)
def test_versions_extras_markers_and_urls_matter(keys: Keys, other: str) -> None:
    assert keys.digest(["foo>=1"]) != keys.digest([other])


@pytest.mark.parametrize(
    "requirement",
    [
        "foo @ file:///srv/foo",
        "foo @ file:///srv/foo-1.0-py3-none-any.whl",
        "foo @ FILE:///srv/foo",
        "foo @ /srv/foo",
        "foo @ git+file:///srv/foo",
        "./foo",
        "not a requirement !",
    ],
)
def test_what_names_a_local_file_or_is_not_understood_has_no_key(keys: Keys, requirement: str) -> None:
    assert keys.compute([requirement]) is None
    assert keys.compute(["setuptools", requirement]) is None


def test_the_working_directory_does_not_matter(keys: Keys, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert keys.digest() == keys.digest(cwd=elsewhere)
    assert keys.digest(installer="uv") == keys.digest(installer="uv", cwd=elsewhere)


def test_the_contents_of_constraints_matter(keys: Keys) -> None:
    digests = {keys.digest(constraints=text) for text in ("", "foo==1", "foo==2", "foo==1\nbar==2")}
    assert len(digests) == 4


def test_a_comment_in_constraints_ends_with_its_line(keys: Keys) -> None:
    # The first one constrains bar, the second one does not.
    assert keys.digest(constraints="foo==1 # x\nbar==2\n") != keys.digest(constraints="foo==1 # x bar==2\n")


def test_the_installer_matters(keys: Keys) -> None:
    assert keys.digest(installer="pip") != keys.digest(installer="uv")


@pytest.mark.parametrize(
    ("installer", "variable"),
    [
        ("pip", "PIP_INDEX_URL"),
        ("pip", "PIP_EXTRA_INDEX_URL"),
        ("pip", "PIP_FIND_LINKS"),
        ("pip", "PIP_PRE"),
        ("pip", "PIP_NO_BINARY"),
        ("pip", "PIP_UPLOADED_PRIOR_TO"),
        ("pip", "PIP_SOMETHING_NEW"),
        ("pip", "CFLAGS"),
        ("uv", "UV_INDEX_URL"),
        ("uv", "UV_DEFAULT_INDEX"),
        ("uv", "UV_EXCLUDE_NEWER"),
        ("uv", "CC"),
    ],
)
def test_variables_of_the_installer_and_of_compilers_matter(keys: Keys, installer: Installer, variable: str) -> None:
    digests = {keys.digest(installer=installer, env=env) for env in ({}, {variable: "a"}, {variable: "b"})}
    assert len(digests) == 3


@pytest.mark.parametrize("variable", ["PIP_CACHE_DIR", "PIP_TIMEOUT", "PIP_PROGRESS_BAR", "UV_INDEX_URL", "EDITOR"])
def test_variables_without_effect_do_not_matter(keys: Keys, variable: str) -> None:
    assert keys.digest(env={variable: "1"}) == keys.digest()


@pytest.mark.parametrize("where", ["PIP_CONFIG_FILE", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", ".config", ".pip"])
def test_the_contents_of_pips_configuration_files_matter(keys: Keys, tmp_path: Path, where: str) -> None:
    file, env = {
        "PIP_CONFIG_FILE": (tmp_path / "my.conf", {"PIP_CONFIG_FILE": str(tmp_path / "my.conf")}),
        "XDG_CONFIG_HOME": (tmp_path / "xdg" / "pip" / "pip.conf", {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}),
        "XDG_CONFIG_DIRS": (tmp_path / "b" / "pip" / "pip.conf", {"XDG_CONFIG_DIRS": f"{tmp_path}/a:{tmp_path}/b"}),
        ".config": (keys.home / ".config" / "pip" / "pip.conf", {}),
        ".pip": (keys.home / ".pip" / "pip.conf", {}),
    }[where]
    before = keys.digest(env=env)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[global]\nindex-url = https://one.example/simple\n")
    one = keys.digest(env=env)
    file.write_text("[global]\nindex-url = https://two.example/simple\n")
    assert len({before, one, keys.digest(env=env)}) == 3


@pytest.mark.parametrize("where", ["UV_CONFIG_FILE", "user", "uv.toml", "pyproject.toml"])
def test_the_contents_of_uvs_configuration_files_matter(keys: Keys, tmp_path: Path, where: str) -> None:
    inner = keys.cwd / "inner"
    inner.mkdir()
    table, env = "", {}
    file = {
        "UV_CONFIG_FILE": tmp_path / "my.toml",
        "user": keys.home / ".config" / "uv" / "uv.toml",
        "uv.toml": keys.cwd / "uv.toml",
        "pyproject.toml": keys.cwd / "pyproject.toml",
    }[where]
    if where == "UV_CONFIG_FILE":
        env = {"UV_CONFIG_FILE": str(file)}
    if where == "pyproject.toml":
        table = "[tool.uv]\n"
    before = keys.digest(installer="uv", env=env, cwd=inner)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{table}index-url = "https://one.example/simple"\n')
    one = keys.digest(installer="uv", env=env, cwd=inner)
    file.write_text(f'{table}index-url = "https://two.example/simple"\n')
    assert len({before, one, keys.digest(installer="uv", env=env, cwd=inner)}) == 3


def test_the_rest_of_a_pyproject_does_not_matter(keys: Keys) -> None:
    before = keys.digest(installer="uv")
    (keys.cwd / "pyproject.toml").write_text('[project]\nname = "a"\n')
    assert keys.digest(installer="uv") == before


@pytest.mark.parametrize(
    ("installer", "variable"),
    [("pip", "PIP_CONSTRAINT"), ("pip", "PIP_BUILD_CONSTRAINT"), ("uv", "UV_CONSTRAINT"), ("uv", "UV_OVERRIDE")],
)
def test_the_contents_of_a_file_that_a_variable_names_matter(
    keys: Keys, tmp_path: Path, installer: Installer, variable: str
) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("foo==1\n")
    env = {variable: str(file)}
    before = keys.digest(installer=installer, env=env)
    file.write_text("foo==2\n")
    assert keys.digest(installer=installer, env=env) != before


@pytest.mark.parametrize("variable", ["PIP_FIND_LINKS", "PIP_CONSTRAINT"])
def test_a_relative_path_in_a_variable_means_another_file_elsewhere(keys: Keys, tmp_path: Path, variable: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    for folder in (keys.cwd, elsewhere):
        (folder / "named").mkdir(parents=True)
    env = {variable: "named"}
    assert keys.digest(env=env) != keys.digest(env=env, cwd=elsewhere)


def test_constraints_that_name_a_local_file_have_no_key(keys: Keys) -> None:
    assert keys.compute(constraints="foo @ file:///srv/foo-1.0-py3-none-any.whl\n") is None
    assert keys.compute(constraints="-c /srv/more.txt\n") is None


def test_another_interpreter_and_an_upgrade_matter_and_the_times_of_its_file_do_not(keys: Keys, tmp_path: Path) -> None:
    # A whole second installation: the interpreter's own file, beside a link to the same standard library.
    base = Path(sys.base_prefix)
    copy = tmp_path / "python"
    (copy / "bin").mkdir(parents=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = copy / "bin" / version
    shutil.copy2(os.path.realpath(sys.executable), executable)
    (copy / "lib").symlink_to(base / "lib")
    # A build that shares its library has the interpreter in there.
    (copy / "own").mkdir()
    for library in (base / "lib").glob(f"lib{version}*.so.*"):
        shutil.copy2(library, copy / "own")
    libraries = os.pathsep.join(sys.path[1:])
    env = {"PYTHONPATH": libraries, "LD_LIBRARY_PATH": str(copy / "own")}
    first = keys.digest(env=env, python=str(executable))
    assert first != keys.digest(env=env, python=sys.executable)
    assert first == keys.digest(env=env, python=str(executable))
    # The same build in another image.
    os.utime(executable, (1, 1))
    assert first == keys.digest(env=env, python=str(executable))
    # An upgrade in place: the same path and version, built a second later.
    moment = platform.python_build()[1].split()[-1].encode()
    later = moment[:-1] + (b"0" if moment.endswith(b"9") else b"9")
    for file in (executable, *(copy / "own").iterdir()):
        file.write_bytes(file.read_bytes().replace(moment, later))
    assert first != keys.digest(env=env, python=str(executable))


def test_two_virtual_environments_of_one_interpreter_share_keys(keys: Keys, tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    env = {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
    assert keys.digest(env=env, python=python) == keys.digest(env=env, python=sys.executable)

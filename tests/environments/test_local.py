"""Wheels in local folders: one that was rebuilt under its old name is used by the next build."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lockbuild.environments.local import describe_files, digest_of_sources
from wheelhouse import ProbeTree, created, site_packages
from witness import wait_until


def _settings(tree: ProbeTree, installer: str, where: str) -> dict[str, str | None]:
    """Name the wheelhouse in one of the ways in which an installer can be told; return the variables."""
    folder, control = tree.wheelhouse.folder, tree.control
    index = control / "simple"
    for wheel in folder.iterdir():
        project = index / wheel.name.partition("-")[0].replace("_", "-")
        project.mkdir(parents=True, exist_ok=True)
        (project / "index.html").write_text(f'<a href="../../../wheelhouse/{wheel.name}">{wheel.name}</a>')
    if where == "variable":
        return {}
    none: dict[str, str | None] = {
        "UV_OFFLINE": "1",
        "PIP_FIND_LINKS": None,
        "UV_FIND_LINKS": None,
        "PIP_NO_INDEX": None,
    }
    if where == "index":
        variable = "PIP_INDEX_URL" if installer == "pip" else "UV_DEFAULT_INDEX"
        return {**none, "UV_NO_INDEX": None, variable: index.as_uri()}
    file = control / "settings"
    if installer == "pip":
        file.write_text(f"[global]\nno-index = true\nfind-links = {folder}\n")
        return {**none, "PIP_CONFIG_FILE": str(file)}
    file.write_text('find-links = ["../wheelhouse"]\nno-index = true\n')
    return {**none, "UV_NO_CONFIG": None, "UV_CONFIG_FILE": str(file)}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["variable", "file", "index"])
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_wheel_that_was_rebuilt_under_its_old_name_is_used(tree: ProbeTree, installer: str, where: str) -> None:
    tree.wheelhouse.add_wheel("local-wheel", files={"local_wheel.py": "VALUE = 1\n"})
    tree.require("local-wheel")
    # Asked for such a wheel, uv must not look for it elsewhere.
    env = {**_settings(tree, installer, where), "UV_OFFLINE": "1"}
    options = ("--installer", installer)
    tree.build(*options, env=env)
    assert created(tree.build(*options, env=env)) == 0
    tree.wheelhouse.add_wheel("local-wheel", files={"local_wheel.py": "VALUE = 2\n"})
    error = tree.build(*options, env=env)
    assert created(error) == 1
    assert "--reinstall" not in error
    used = site_packages(Path(tree.prefixes()[-1])) / "local_wheel.py"
    assert used.read_text() == "VALUE = 2\n"
    assert created(tree.build(*options, env=env)) == 0


@pytest.mark.parametrize("form", ["{0}", "file://{0}", "file://localhost{0}", "-f {0}", '["{0}"]', "name={0}"])
def test_each_way_to_name_a_folder_is_understood(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    text = form.format(folder)
    assert describe_files([text]) == [(str(folder), [])]
    wheel = folder / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"1")
    before = describe_files([text])
    assert describe_files([text]) == before != [(str(folder), [])]
    times = wheel.stat()

    def rewrite() -> bool:
        # In place, with the same size and, as far as a program can set it, the same time.
        wheel.write_bytes(b"2")
        os.utime(wheel, ns=(times.st_atime_ns, times.st_mtime_ns))
        return wheel.stat().st_ctime_ns != times.st_ctime_ns

    wait_until(rewrite, "the next tick of the file system's clock")
    assert describe_files([text]) != before


def test_other_files_in_a_folder_do_not_matter(tmp_path: Path) -> None:
    before = describe_files([str(tmp_path)])
    (tmp_path / "notes.txt").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x-1-py3-none-any.whl").write_text("1")
    (tmp_path / "broken.whl").symlink_to("nothing")
    assert describe_files([str(tmp_path)]) == before


def test_a_path_with_spaces_is_understood(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for text in (folder.as_uri(), f"find-links = ['{folder}']"):
        assert describe_files([text]) == [(str(folder), [])]


def test_a_list_of_requirements_may_name_a_folder(tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("other==1\n--find-links house\n-c more.txt\n")
    (tmp_path / "more.txt").write_text("x==1")
    before = describe_files([str(constraints)])
    assert [path for path, _ in before] == sorted(map(str, (constraints, house, tmp_path / "more.txt")))
    (house / "other-1-py3-none-any.whl").write_text("1")
    assert describe_files([str(constraints)]) != before


def test_only_distributions_of_the_projects_in_an_environment_count(tmp_path: Path) -> None:
    flat, index = tmp_path / "flat", tmp_path / "simple"
    (index / "one").mkdir(parents=True)
    flat.mkdir()
    sources, projects = [str(flat), str(index)], {"one", "two-three"}
    seen = [digest_of_sources(sources, projects)]

    def is_seen() -> bool:
        seen.append(digest_of_sources(sources, projects))
        return seen[-1] not in seen[:-1]

    (flat / "other-1-py3-none-any.whl").write_text("")
    (index / "other").mkdir()
    (index / "other" / "index.html").write_text('<a href="other-1.tar.gz">')
    assert not is_seen()
    (flat / "Two_Three-1-py3-none-any.whl").write_text("")
    assert is_seen()
    (flat / "links.html").write_text("")
    assert is_seen()
    (index / "one" / "index.html").write_text('<a href="one-1.tar.gz#sha256=0">')
    assert is_seen()
    (index / "one" / "one-1.tar.gz").write_text("")
    assert is_seen()
    assert not is_seen()


def test_sources_that_change_while_an_environment_is_made_match_no_later_ones(tmp_path: Path) -> None:
    (tmp_path / "one-1-py3-none-any.whl").write_text("")
    changed = (tmp_path / "one-1-py3-none-any.whl").stat().st_ctime
    assert digest_of_sources([str(tmp_path)], {"one"}, changed - 1) == ""
    assert digest_of_sources([str(tmp_path)], {"one"}, changed + 1) == digest_of_sources([str(tmp_path)], {"one"}) != ""

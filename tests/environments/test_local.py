"""Wheels in local folders: one that was rebuilt under its old name is used by the next build."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lockbuild.environments.local import describe, describe_files, digest_of_sources
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
    assert before == [(str(tmp_path), [])]
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


@pytest.mark.parametrize("part", ["st_size", "st_ino", "st_mtime_ns", "st_ctime_ns"])
def test_each_part_of_the_identity_of_an_archive_matters(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_text("1")
    status = wheel.stat()
    values = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}

    def described() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda _: SimpleNamespace(**values))
            return digest_of_sources([str(wheel)], {"x"})

    before = described()
    assert before == digest_of_sources([str(wheel)], {"x"}) != ""
    values[part] += 1
    assert described() != before


@pytest.mark.parametrize("name", ["x-1.WHL", "x-1.tar.gz", "x-1.tar.zst", "links.html", "links.htm"])
def test_what_an_installer_finds_in_a_folder_is_described(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("1")
    before = digest_of_sources([str(tmp_path)], {"x"})
    path.write_text("22")
    assert digest_of_sources([str(tmp_path)], {"x"}) != before


@contextlib.contextmanager
def _reversed(path: str, scandir: Callable[[str], Iterator[os.DirEntry[str]]] = os.scandir) -> Iterator[object]:
    yield sorted(scandir(path), key=lambda entry: entry.name, reverse=True)


def test_the_order_in_which_a_folder_is_read_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x-1.whl", "x-2.whl", "x-3.whl"):
        (tmp_path / name).write_text("1")
    before = digest_of_sources([str(tmp_path)], {"x"})
    monkeypatch.setattr(os, "scandir", _reversed)
    assert digest_of_sources([str(tmp_path)], {"x"}) == before


@pytest.mark.parametrize("is_url", [False, True], ids=["relative", "URL"])
def test_files_behind_the_links_of_an_index_matter_where_their_project_is_installed(
    tmp_path: Path, is_url: bool
) -> None:
    index, wheel = tmp_path / "simple", tmp_path / "x-1-py3-none-any.whl"
    (index / "x").mkdir(parents=True)
    wheel.write_text("1")
    link = wheel.as_uri() if is_url else f"../../{wheel.name}"
    # The bytes of a page may be no text, and its links may lead nowhere.
    page = f'<a href="{link}#sha256=0">x</a><a href=../../gone.whl>gone</a>'.encode() + b"\xff"
    (index / "x" / "index.html").write_bytes(page)
    sources = [str(index)]
    seen = [digest_of_sources(sources, {"x"}), digest_of_sources(sources, {"y"})]
    wheel.write_text("22")
    assert digest_of_sources(sources, {"x"}) not in seen
    assert digest_of_sources(sources, {"y"}) == seen[1]


def test_a_folder_that_has_no_page_hides_no_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "z-folder"):
        (tmp_path / name).mkdir()
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_text("1")
    for patched in (os.scandir, _reversed):
        monkeypatch.setattr(os, "scandir", patched)
        [(_, found)] = describe_files([str(tmp_path)])
        assert [path for path, *_ in found] == [str(wheel)]


def test_a_folder_that_cannot_be_read_has_nothing_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert describe_files([str(tmp_path)]) == [(str(tmp_path), [])]


def test_lists_of_requirements_that_name_each_other_are_read_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    # The bytes of a list may be no text.
    first.write_bytes(b"# \xff\n-r second.txt\n")
    second.write_text("-r first.txt\n")
    assert [path for path, _ in describe_files([str(first)])] == [str(first), str(second)]


def test_a_large_file_is_no_list_of_requirements(tmp_path: Path) -> None:
    large = tmp_path / "large"
    (tmp_path / "other.txt").touch()
    large.write_text("-r other.txt\n" + "#" * (1 << 20))
    assert [path for path, _ in describe_files([str(large)])] == [str(large)]


def test_what_has_vanished_has_no_description(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert describe([gone]) == ([(gone, None)], [])


@pytest.mark.parametrize("form", ["{0}\0", "file://{0}%00", "~/a", "file:{0}", "FILE://LOCALHOST{0}"])
def test_odd_ways_to_name_a_folder_are_understood(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a"
    folder.mkdir()
    assert describe_files([form.format(folder)]) == [(str(folder), [])]

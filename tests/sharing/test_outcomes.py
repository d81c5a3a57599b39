"""The outcomes of builds as files: complete or not there, whatever lies in their place."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lockbuild.environments.store import Generation
from lockbuild.sharing.outcomes import (
    Outcome,
    all_builds,
    artifacts_folder,
    begin_build,
    complete_build,
    complete_builds,
    copy_files,
    is_complete,
    last_used,
    note_use,
    remove_build,
    remove_unused,
)

WRONG: tuple[Any, ...] = (None, True, -1, 10**400, float("nan"), "", "x/y", "..", "\0", [], [1], {}, {"x": []})

TEXTS = ("", "null", "[]", '["environments"]', "1", '"x"', "{", "[" * 100_000, "1" * 10_000, "\ud800", "\0")


@pytest.fixture
def environment(tmp_path: Path) -> Generation:
    """A build environment in a store."""
    generation = Generation(str(tmp_path / "environments"), "1")
    os.makedirs(generation.path)
    return generation


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of a key."""
    return str(tmp_path / "builds" / "key")


def built(folder: str, environment: Generation, is_of_tree: bool = False) -> str:
    """Leave what a build leaves."""
    build = begin_build(folder)
    os.mkdir(artifacts_folder(build))
    Path(artifacts_folder(build), "x.whl").write_text("artifact")
    complete_build(build, Outcome(1, time.time(), "x.whl", "digest", (environment,), is_of_tree))
    return build


def outcome_file(build: str) -> Path:
    return Path(build, "outcome.json")


def test_what_is_written_is_read(folder: str, environment: Generation) -> None:
    assert not all_builds(folder)
    assert not [*complete_builds(folder)]
    begun = begin_build(folder)
    assert not is_complete(begun)
    build = built(folder, environment)
    [(path, outcome)] = complete_builds(folder)
    assert path == build
    assert outcome[:1] + outcome[2:] == (1, "x.whl", "digest", (environment,), False)
    # The one that had begun is of a process that was killed.
    assert all_builds(folder) == [build]


def test_a_path_that_is_no_text_is_read_as_it_was(folder: str, tmp_path: Path) -> None:
    environment = Generation(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), "1")
    built(folder, environment)
    [(_, outcome)] = complete_builds(folder)
    assert outcome.environments == (environment,)


@pytest.mark.parametrize("field", Outcome._fields)
def test_a_field_of_the_wrong_type_makes_an_outcome_one_that_is_not_there(
    folder: str, environment: Generation, field: str
) -> None:
    build = built(folder, environment)
    known = json.loads(outcome_file(build).read_text())
    for wrong in WRONG:
        outcome_file(build).write_text(json.dumps({**known, field: wrong}))
        assert is_complete(build)
        for _, outcome in complete_builds(folder):
            # What decides something has its type all the same.
            assert outcome.artifact == "x.whl"
            assert isinstance(outcome.sha256, str)
            assert isinstance(outcome.made, float)
            assert outcome.environments == (environment,)
    outcome_file(build).write_text(json.dumps({name: value for name, value in known.items() if name != field}))
    assert [*complete_builds(folder)] == []
    outcome_file(build).write_text(json.dumps({**known, "of another version": 1}))
    assert [*complete_builds(folder)] == []


@pytest.mark.parametrize("environments", [[[1, 2]], [["a", "\0"]], [["a"]], [["a", "b", "c"]], ["a"], [[]], []])
def test_environments_that_are_none_make_an_outcome_one_that_is_not_there(
    folder: str, environment: Generation, environments: object
) -> None:
    build = built(folder, environment)
    known = json.loads(outcome_file(build).read_text())
    outcome_file(build).write_text(json.dumps({**known, "environments": environments}))
    assert [*complete_builds(folder)] == []


@pytest.mark.parametrize("kind", ["text", "folder", "FIFO", "link", "link to a folder"])
def test_whatever_lies_in_the_place_of_an_outcome_is_removed_with_its_build(
    folder: str, environment: Generation, kind: str
) -> None:
    for text in TEXTS if kind == "text" else ("",):
        build = built(folder, environment)
        path = outcome_file(build)
        path.unlink()
        if kind == "text":
            path.write_text(text, "utf-8", "surrogatepass")
        elif kind == "folder":
            (path / "something").mkdir(parents=True)
        elif kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to("nothing" if kind == "link" else ".")
        assert is_complete(build)
        assert [*complete_builds(folder)] == []
        assert remove_unused(folder, 0) == 0
        assert not os.path.exists(folder)


def test_a_folder_of_a_key_that_is_a_file_has_no_builds(folder: str) -> None:
    Path(folder).parent.mkdir()
    Path(folder).touch()
    assert not all_builds(folder)
    assert not [*complete_builds(folder)]
    assert remove_unused(folder, 0) == 0


def test_unused_outcomes_are_removed_and_the_others_stay(folder: str, environment: Generation) -> None:
    build = built(folder, environment)
    moment = time.time() - 100
    os.utime(outcome_file(build), (moment, moment))
    assert abs(last_used(build) - moment) < 1
    assert remove_unused(folder, moment - 50) == 0
    begin_build(folder)
    assert remove_unused(folder, moment - 50) == 0
    assert all_builds(folder) == [build]
    note_use(build)
    assert remove_unused(folder, moment + 50) == 0
    assert remove_unused(folder, time.time() + 50) == 1
    assert not os.path.exists(folder)


@pytest.mark.parametrize("reason", ["tree", "successor", "no environment"])
def test_what_no_later_build_may_take_is_removed(folder: str, environment: Generation, reason: str) -> None:
    built(folder, environment, is_of_tree=reason == "tree")
    if reason == "successor":
        os.mkdir(Generation(environment.folder, "2").path)
    elif reason == "no environment":
        os.rmdir(environment.path)
    assert remove_unused(folder, 0) == 1


def test_a_build_that_is_removed_is_first_of_all_not_complete(
    folder: str, environment: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = built(folder, environment)

    def rmtree(path: str, **_: object) -> None:
        assert not is_complete(path)
        os.rename(path, f"{path}.seen")

    monkeypatch.setattr("shutil.rmtree", rmtree)
    remove_build(build)
    assert os.path.exists(f"{build}.seen")


def test_a_copy_has_no_parents_made_for_it(folder: str, environment: Generation, tmp_path: Path) -> None:
    source = artifacts_folder(built(folder, environment))
    os.mkdir(os.path.join(source, "more"))
    Path(source, "more", "file").write_text("x")
    copy_files(source, str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "more" / "file").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        copy_files(source, str(tmp_path / "missing" / "copy"))
    os.mkfifo(os.path.join(source, "fifo"))
    with pytest.raises(OSError, match="named pipe"):
        copy_files(source, str(tmp_path / "another"))

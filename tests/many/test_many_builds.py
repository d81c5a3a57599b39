"""Runs of many builds: their order, whose wheel a build uses, and what is left when one fails."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from event_schema import assert_documented

from monorepo import Monorepo
from wheelhouse import Wheelhouse
from witness import PATIENCE, wait_until

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


def test_several_sources_are_built_into_one_out_dir(repo: Monorepo) -> None:
    repo.add("one")
    repo.add("two")
    out, err = repo.build("one", "two")
    assert repo.artifacts() == ["one-1.0-py3-none-any.whl", "two-1.0-py3-none-any.whl"]
    assert out.startswith("Successfully built ")
    assert "one-1.0-py3-none-any.whl" in err


def test_without_an_out_dir_each_tree_gets_its_own_dist(repo: Monorepo) -> None:
    for name in ("one", "two"):
        repo.add(name)
    process = repo.start("-w", "one", "two")
    assert process.wait(PATIENCE) == 0
    assert [os.listdir(repo.folder / name / "dist") for name in ("one", "two")] == [
        ["one-1.0-py3-none-any.whl"],
        ["two-1.0-py3-none-any.whl"],
    ]


def test_a_declared_build_requirement_is_built_first_and_used(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"], act="import tool; assert tool.new")
    repo.add("tool", content="new = True\n")
    repo.build("app", "tool")
    assert repo.built() == ["tool", "app"]


def test_a_requirement_that_a_hook_asks_for_is_built_first_with_one_job(repo: Monorepo) -> None:
    repo.add("app", extra_requires=["tool"], act="import tool; assert tool.new")
    repo.add("tool", content="new = True\n")
    repo.build("-j1", "app", "tool")
    assert repo.built() == ["tool", "app"]


def test_what_a_wheel_of_the_run_requires_is_built_first(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"], act="import tool")
    repo.add("tool", runtime_requires=["base"], content="import base\n")
    repo.add("base")
    repo.build("-j1", "app", "tool", "base")
    assert repo.built().index("base") < repo.built().index("app")


def test_a_project_that_only_a_release_requires_wins_over_its_own_release(repo: Monorepo, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "house")
    house.folder.mkdir()
    house.add_wheel("middle", requires=["base"])
    house.add_wheel("base", version="9.0")
    repo.add("app", requires=["middle"], act="import base; assert base.fresh")
    repo.add("base", content="fresh = True\n")
    process = repo.start("-w", "-j1", "app", "base", env=_environ(repo, PIP_FIND_LINKS=str(house.folder)))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_tree_that_was_changed_is_used_as_it_is_now_under_its_old_version(repo: Monorepo, installer: str) -> None:
    repo.add("app", requires=["tool"], act="import tool; open('seen', 'w').write(tool.text)")
    for text in ("first", "second"):
        repo.add("tool", content=f"text = {text!r}\n")
        repo.build("--installer", installer, "app", "tool")
        assert (repo.folder / "app" / "seen").read_text() == text


def test_a_requirement_that_the_tree_does_not_satisfy_is_an_error(repo: Monorepo) -> None:
    repo.add("app", requires=["tool>=2"])
    repo.add("tool", version="1.0")
    _, err = repo.build("app", "tool", status=1)
    assert "tool>=2" in err
    assert repo.built() == ["tool"]


def test_without_sources_the_run_uses_no_wheel_of_its_own(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"])
    repo.add("tool")
    _, err = repo.build("--no-sources", "app", "tool", status=1)
    assert "No matching distribution found for tool" in err


def test_what_needs_a_failed_build_is_not_built_and_the_rest_is(repo: Monorepo) -> None:
    repo.add("bad", act="raise SystemExit('out of luck')")
    repo.add("app", requires=["bad"])
    repo.add("good")
    _, err = repo.build("app", "bad", "good", status=1)
    assert repo.artifacts() == ["good-1.0-py3-none-any.whl"]
    assert "out of luck" in err
    assert "it needs bad, which failed" in _summary_line(err, "app")


def test_with_fail_fast_no_build_is_started_after_a_failed_one(repo: Monorepo) -> None:
    repo.add("bad", act="raise SystemExit(1)")
    for name in ("one", "two"):
        repo.add(name)
    repo.build("-j1", "--fail-fast", "bad", "one", "two", status=1)
    assert repo.events() == ["enter bad"]


def test_a_circle_is_named_and_the_rest_is_built(repo: Monorepo) -> None:
    repo.add("one", requires=["two"])
    repo.add("two", extra_requires=["one"])
    repo.add("above", requires=["one"])
    repo.add("other")
    _, err = repo.build("one", "two", "above", "other", status=1)
    assert repo.artifacts() == ["other-1.0-py3-none-any.whl"]
    assert "one needs two needs one" in err or "two needs one needs two" in err
    assert "Not built" in _summary_line(err, "above")


def test_a_tree_whose_name_only_its_metadata_has_is_built_first(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"], act="import tool")
    repo.add("tool", named=False)
    repo.build("-j1", "app", "tool")
    # The first time for its metadata.
    assert repo.built() == ["tool", "tool", "app"]


def test_a_tree_that_is_named_twice_is_built_once(repo: Monorepo) -> None:
    repo.add("one")
    repo.build("one", "./one/", str(repo.folder / "one"))
    assert repo.built() == ["one"]


def test_two_trees_of_one_project_are_refused_before_anything_is_built(repo: Monorepo) -> None:
    repo.add("one", path="first")
    repo.add("one", path="second")
    _, err = repo.build("first", "second", status=1)
    assert "first and second would both write one 1.0" in err.splitlines()[-1]
    assert repo.events() == []


def test_a_lock_timeout_alone_gives_its_own_exit_status(repo: Monorepo) -> None:
    gate = repo.folder / "gate"
    os.mkfifo(gate)
    repo.add("one", act=f"open({str(gate)!r}).read()")
    repo.add("two")
    first = repo.start("-w", "--lock=always", "one")
    wait_until(lambda: repo.events(), "the first build is in its hook")
    _, err = repo.build("--lock=always", "--lock-timeout=0", "one", "two", status=75)
    assert repo.artifacts() == ["two-1.0-py3-none-any.whl"]
    gate.write_text("")
    assert first.wait(PATIENCE) == 0
    assert "Gave up after 0 s" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_builds_of_the_run(repo: Monorepo, number: signal.Signals) -> None:
    gate = repo.folder / "gate"
    os.mkfifo(gate)
    for name in ("one", "two"):
        repo.add(name, act=f"open({str(gate)!r}).read()")
    repo.add("three")
    process = repo.start("-w", "-j2", "--lock=always", "-o", str(repo.out_dir), "one", "two", "three")
    wait_until(lambda: len(repo.events()) == 2, "both builds are in their hooks")
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number
    assert repo.artifacts() == []
    for name in ("one", "two"):
        repo.add(name)
    repo.build("--lock=always", "--lock-timeout=0", "one", "two")


def test_a_killed_run_ends_its_builds(repo: Monorepo) -> None:
    gate = repo.folder / "gate"
    os.mkfifo(gate)
    repo.add("one", act=f"open({str(gate)!r}).read()")
    process = repo.start("-w", "-j1", "--lock=always", "one")
    wait_until(lambda: repo.events(), "the build is in its hook")
    process.kill()
    process.wait(PATIENCE)
    repo.add("one")
    # Waits until the lock is free, which is when the hook has ended.
    repo.build("--lock=always", f"--lock-timeout={PATIENCE}", "one")


def test_with_one_job_no_two_builds_run_at_the_same_time(repo: Monorepo) -> None:
    for name in ("one", "two", "three"):
        repo.add(name)
    repo.build("-j1", "one", "two", "three")
    events = repo.events()
    assert [line.split()[0] for line in events] == ["enter", "leave"] * 3


def test_two_jobs_run_two_builds_at_the_same_time(repo: Monorepo) -> None:
    # Each one waits for the other one.
    first, second = repo.folder / "first", repo.folder / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    repo.add("one", act=f"open({str(first)!r}, 'w').close(); open({str(second)!r}).close()")
    repo.add("two", act=f"open({str(first)!r}).close(); open({str(second)!r}, 'w').close()")
    repo.build("-j2", "one", "two")


def test_all_packages_of_a_workspace_go_into_its_dist(repo: Monorepo) -> None:
    repo.add("one", path="packages/one")
    repo.add("two", path="packages/two")
    repo.add("old", path="packages/old")
    (repo.folder / "packages" / "notes").mkdir()
    (repo.folder / "pyproject.toml").write_text(
        '[tool.lockbuild]\npackages = ["packages/*"]\nexclude = ["packages/old"]\n'
    )
    process = repo.start("-w", "--all-packages", cwd=repo.folder / "packages" / "one")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert sorted(os.listdir(repo.folder / "dist")) == ["one-1.0-py3-none-any.whl", "two-1.0-py3-none-any.whl"]


def test_uvs_workspace_has_its_root_as_a_member(repo: Monorepo) -> None:
    repo.add("root", path=".")
    repo.add("one", path="packages/one")
    with (repo.folder / "pyproject.toml").open("a") as file:
        file.write('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    repo.build("--all-packages")
    assert repo.artifacts() == ["one-1.0-py3-none-any.whl", "root-1.0-py3-none-any.whl"]


def test_a_package_is_built_with_those_that_it_needs_for_its_build(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"], path="packages/app")
    repo.add("tool", extra_requires=["base"], path="packages/tool")
    repo.add("base", path="packages/base")
    repo.add("other", path="packages/other")
    (repo.folder / "pyproject.toml").write_text('[tool.lockbuild]\npackages = ["packages/*"]\n')
    repo.build("--package", "App")
    assert repo.artifacts() == [f"{name}-1.0-py3-none-any.whl" for name in ("app", "base", "tool")]


def test_an_unknown_package_and_a_folder_in_no_workspace_are_errors(repo: Monorepo) -> None:
    repo.add("app", path="packages/app")
    _, err = repo.build("--all-packages", status=1)
    assert "is in no workspace" in err
    (repo.folder / "pyproject.toml").write_text('[tool.lockbuild]\npackages = ["packages/*"]\n')
    _, err = repo.build("--package=lib", status=1)
    assert "ERROR The workspace has no package lib; it has app" in err


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\nuv = 'x'", "[tool.uv]\nworkspace = ['a']", "[[tool.uv]]"])
def test_tables_of_another_type_list_no_workspace(repo: Monorepo, text: str) -> None:
    (repo.folder / "pyproject.toml").write_text(f"{text}\n")
    _, err = repo.build("--all-packages", status=1)
    assert "is in no workspace" in err.splitlines()[-1]


def test_sdists_are_built_in_a_run_and_give_way_to_a_tree_of_their_project(repo: Monorepo) -> None:
    repo.add("tool", content="text = 'sdist'\n")
    process = repo.start("-s", "-o", str(repo.folder), "tool")
    assert process.wait(PATIENCE) == 0
    repo.add("app")
    repo.build("tool-1.0.tar.gz", "app")
    assert repo.artifacts() == ["app-1.0-py3-none-any.whl", "tool-1.0-py3-none-any.whl"]


def test_a_project_whose_sdist_alone_is_wanted_gives_a_wheel_to_those_that_need_it(repo: Monorepo) -> None:
    repo.add("app", requires=["tool"])
    repo.add("tool")
    process = repo.start("--sdist", "-o", str(repo.out_dir), "app", "tool")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "app-1.0.tar.gz" in repo.artifacts()
    assert "tool-1.0.tar.gz" in repo.artifacts()


def test_the_report_has_the_artifacts_of_all_builds(repo: Monorepo) -> None:
    repo.add("one")
    repo.add("two")
    repo.build("--report", "report.json", "one", "two")
    artifacts = json.loads((repo.folder / "report.json").read_text())["artifacts"]
    assert sorted(each["name"] for each in artifacts) == repo.artifacts()


def test_each_build_has_a_log_in_the_folder_for_logs(repo: Monorepo) -> None:
    repo.add("one", act="print('hello from one')")
    repo.add("two", act="print('hello from two')")
    _, err = repo.build("--logs", "logs", "-j1", "one", "two")
    logs = {path.name: path.read_text() for path in (repo.folder / "logs").iterdir()}
    assert sorted(logs) == ["001-one.log", "002-two.log"]
    assert "hello from one" in logs["001-one.log"]
    assert "hello from two" not in logs["001-one.log"]
    # Without a terminal it is also shown, in one piece.
    assert logs["001-one.log"] in err


def test_options_that_make_no_sense_for_many_builds_are_refused(repo: Monorepo) -> None:
    for option in ("--metadata", "--env-dir=here", "--sdist-extract-dir=here"):
        process = repo.start(option, "one", "two")
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "not allowed with many builds" in err.splitlines()[-1]


def test_a_program_reads_json_lines(repo: Monorepo) -> None:
    repo.add("one")
    repo.add("bad", act="raise SystemExit(1)")
    out, _ = repo.build("--json", "--fail-fast", "-j1", "one", "bad", "never", status=1)
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        assert_documented(line)
    assert [(each["event"], each["source"]) for each in lines if each["event"] in ("started", "built")] == [
        *(("started", "one"), ("built", "one"), ("started", "bad"), ("built", "bad")),
    ]
    assert {"event": "activity", "source": "one", "python": None, "activity": "build_wheel"} in lines
    one, bad = (each for each in lines if each["event"] == "built")
    assert [each["name"] for each in one["artifacts"]] == ["one-1.0-py3-none-any.whl"]
    assert one["error"] is None
    assert bad["error"]["type"] == "BuildBackendException"
    assert "build_wheel" in bad["error"]["message"]
    assert (lines[-1]["event"], lines[-1]["failed"], lines[-1]["not_started"]) == ("result", 1, 1)


def test_on_github_each_log_is_a_group_and_each_error_is_shown_at_its_tree(repo: Monorepo) -> None:
    repo.add("bad", act="raise SystemExit('out of luck')")
    process = repo.start(
        "-w", "-j1", "bad", env=_environ(repo, GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(repo.folder))
    )
    lines = process.communicate(timeout=PATIENCE)[1].splitlines()
    group = lines[lines.index("::group::bad") : lines.index("::endgroup::")]
    assert any("out of luck" in line for line in group)
    assert [line for line in lines if line.startswith("::error file=bad/pyproject.toml,line=1::bad: ")]


def _summary_line(err: str, label: str) -> str:
    return next(line for line in reversed(err.splitlines()) if line.startswith(f"ERROR {label}: "))


def _environ(repo: Monorepo, **variables: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    return environ | {"MONOREPO_LOG": str(repo.log), "PIP_NO_INDEX": "1", **variables}

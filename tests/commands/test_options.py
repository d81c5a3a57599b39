"""The parser against that of ``build``: every option, abbreviation and exclusion there is one here.

What is compared is read from the installed `build`, so that an option which a later one adds fails these tests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build.__main__
import pytest

import lockbuild
from lockbuild.commands.options import make_parser, parse
from lockbuild.request import BuildRequest
from witness import LOCKBUILD, WitnessTree

BUILD_ACTIONS = [action for action in build.__main__.main_parser()._actions if action.option_strings]
BUILD_OPTIONS = sorted(option for action in BUILD_ACTIONS for option in action.option_strings)
LONG_OPTIONS = [option for option in BUILD_OPTIONS if option.startswith("--")]

# Words that are valid values for the options that take one.
VALUES = {"--installer": "uv", "--config-json": "{}"}

COMMAND_LINES = [
    [],
    ["tree"],
    ["tree", "-n"],
    ["-n", "--", "tree"],
    ["-s"],
    ["-w"],
    ["-sw"],
    ["-ws"],
    ["--wheel", "--sdist"],
    ["-ww"],
    ["-q"],
    ["-qq"],
    ["-qqq"],
    ["-v"],
    ["-vv"],
    ["-nx"],
    ["-nxwo", "out"],
    ["-oout"],
    ["-o=out"],
    ["--outdir=out"],
    ["--outdir", "out"],
    ["--out=out"],
    ["-o", "first", "-o", "second"],
    ["-Ca=b"],
    ["-C", "a=b", "-C", "a=c"],
    ["-C--global-option=x"],
    ["--config-setting=--build-option=--verbose"],
    ["-C", "key"],
    ["--config-json", '{"a": [1]}'],
    ["--installer=uv"],
    ["--installer", "pip"],
    ["--metadata", "a.whl"],
    ["--report", "r.json", "--sdist-extract-dir", "x", "--env-dir", "e", "--dependency-constraints-txt", "c"],
    # These are errors in both.
    ["-q", "-v"],
    ["--quiet", "--verbose"],
    ["-n", "--installer", "uv"],
    ["-C", "a=b", "--config-json", "{}"],
    ["-C", "--a=b"],
    ["--installer", "conda"],
    ["--no-such-option"],
    ["--s"],
    ["--co"],
    ["--outdir"],
    ["-o"],
    ["--wheel=yes"],
]


def _action(parser: argparse.ArgumentParser, option: str) -> argparse.Action:
    return parser._option_string_actions[option]


def _kind(action: argparse.Action) -> str:
    """Return what an action does: its class, or, for a class of the parser's own, what it makes of three uses."""
    if type(action).__module__ == "argparse":
        return type(action).__name__
    namespace = argparse.Namespace(**{action.dest: action.default})
    for _ in range(3):
        action(argparse.ArgumentParser(), namespace, [], action.option_strings[0])
    return f"three uses give {getattr(namespace, action.dest)}"


def _exclusions(parser: argparse.ArgumentParser, of: set[str]) -> set[tuple[frozenset[str], bool]]:
    groups = set()
    for group in parser._mutually_exclusive_groups:
        options = frozenset(option for action in group._group_actions for option in action.option_strings)
        if options & of:
            groups.add((options, group.required))
    return groups


def _parse_as_build(words: list[str], prog: str) -> argparse.Namespace:
    parser = build.__main__.main_parser()
    parser.prog = prog
    return parser.parse_args(words)


def _parse(read: Callable[[list[str], str], argparse.Namespace], words: list[str]) -> dict[str, Any] | str:
    """Return what words mean, or how they are complained about."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return vars(read(words, "prog"))
    except SystemExit as end:
        complaint = output.getvalue().splitlines()
        return f"exit {end.code}: {complaint[-1] if end.code else ''}"


def _assert_same_meaning(words: list[str]) -> None:
    theirs, ours = _parse(_parse_as_build, words), _parse(parse, words)
    if isinstance(theirs, str) or isinstance(ours, str):
        assert ours == theirs
        return
    # Whether the option was given matters: a variable or the tree may name another one.
    ours["installer"] = ours["installer"] or "pip"
    assert {name: ours[name] for name in theirs} == theirs


def test_build_has_the_options_that_these_tests_think_it_has() -> None:
    # If `build` kept its options elsewhere, the tests below would compare nothing.
    assert {"-o", "--outdir", "-w", "--wheel", "-C", "--config-json", "--sdist-extract-dir"} < set(BUILD_OPTIONS)


@pytest.mark.parametrize("option", BUILD_OPTIONS)
def test_an_option_of_build_exists_and_means_the_same(option: str) -> None:
    theirs, ours = _action(build.__main__.main_parser(), option), _action(make_parser(), option)
    assert set(theirs.option_strings) <= set(ours.option_strings)
    assert _kind(ours) == _kind(theirs)
    for attribute in ("dest", "nargs", "const", "default", "type", "required", "metavar"):
        if (option, attribute) == ("--installer", "default"):
            # A variable or the tree may name another one.
            assert (ours.default, theirs.default) == (None, BuildRequest("").installer)
            continue
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert list(ours.choices or ()) == list(theirs.choices or ())


def test_the_positional_arguments_are_those_of_build() -> None:
    theirs, ours = (
        [action for action in parser._actions if not action.option_strings]
        for parser in (build.__main__.main_parser(), make_parser())
    )
    # A type of str is what no type is.
    assert [(a.dest, a.nargs, a.default, a.type or str) for a in ours] == [
        (a.dest, a.nargs, a.default, a.type or str) for a in theirs
    ]


def test_the_same_options_exclude_each_other() -> None:
    of = set(BUILD_OPTIONS)
    theirs = _exclusions(build.__main__.main_parser(), of)
    assert theirs
    assert _exclusions(make_parser(), of) == theirs


def test_no_option_of_ours_takes_a_letter_that_build_may_come_to_use() -> None:
    more = set(make_parser()._option_string_actions) - set(BUILD_OPTIONS)
    assert "--lock" in more
    # The letter of make, ninja and cargo.
    assert [option for option in more if not option.startswith("--")] == ["-j"]


def test_the_version_is_followed_by_the_folder_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--version"])
    assert capsys.readouterr().out.split() == [
        "lockbuild",
        lockbuild.__version__,
        f"({os.path.dirname(lockbuild.__file__)})",
    ]


def test_options_of_ours_are_not_abbreviated() -> None:
    # Each of our options would make an abbreviation that `build` accepts ambiguous, today or in a later version.
    more = sorted(set(make_parser()._option_string_actions) - set(BUILD_OPTIONS))
    assert not [option for option in more if any(each.startswith(option) for each in BUILD_OPTIONS)]
    for option in more:
        for length in range(4, len(option)):
            if option[:length] in more:
                continue
            words = [option[:length]]
            theirs, ours = _parse(_parse_as_build, words), _parse(parse, words)
            assert isinstance(ours, str) == isinstance(theirs, str), words


@pytest.mark.parametrize("words", COMMAND_LINES, ids="_".join)
def test_a_command_line_is_understood_as_build_understands_it(words: list[str]) -> None:
    _assert_same_meaning(words)


@pytest.mark.parametrize("option", LONG_OPTIONS)
def test_every_abbreviation_that_build_accepts_means_the_same(option: str) -> None:
    takes_value = _action(build.__main__.main_parser(), option).nargs != 0
    words = [VALUES.get(option, "value")] if takes_value else []
    accepted = 0
    for length in range(3, len(option) + 1):
        abbreviation = option[:length]
        theirs = _parse(_parse_as_build, [abbreviation, *words])
        if isinstance(theirs, dict) or theirs.startswith("exit 0"):
            accepted += 1
            _assert_same_meaning([abbreviation, *words])
            if takes_value:
                _assert_same_meaning([f"{abbreviation}={words[0]}"])
    assert accepted


def test_the_default_source_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_parser().parse_args([]).srcdir == os.getcwd() == str(tmp_path)


@pytest.mark.parametrize(
    "spelling", [["--out-dir", "there"], ["--out-dir=there"], ["--out", "there"], ["--out=there"]], ids="_".join
)
def test_the_out_dir_may_be_spelled_as_uv_does(witness_tree: WitnessTree, spelling: list[str]) -> None:
    built = _lockbuild(witness_tree, "--wheel", *spelling, str(witness_tree.path))
    assert (built.returncode, built.stdout) == (0, "Successfully built witness-1.0-py3-none-any.whl\n"), built.stderr
    assert os.listdir(witness_tree.control / "there") == ["witness-1.0-py3-none-any.whl"]


def test_what_follows_two_hyphens_is_a_source_also_when_it_is_spelled_like_an_option(witness_tree: WitnessTree) -> None:
    built = _lockbuild(witness_tree, "--wheel", "--", "--out-dir")
    assert built.returncode == 1
    assert built.stderr.splitlines()[-1] == "ERROR Source --out-dir is not a directory"


@pytest.mark.parametrize("command", ["build", "run", "cache"])
def test_the_help_fits_80_columns_and_two_screens(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"lockbuild.commands.{command}" if command != "build" else "lockbuild", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 * 35
    # Each option of the first command has one line.
    assert command != "build" or not any(line.startswith(" " * 20) for line in lines)
    assert command != "build" or any(re.fullmatch("  -w, --wheel +build a wheel, .*", line) for line in lines)


@pytest.mark.parametrize(
    ("module", "words", "hint", "problem"),
    [
        ("lockbuild", ["--whel"], "did you mean --wheel? {} --help", "unrecognized arguments: --whel"),
        (
            "lockbuild",
            ["--lok=x"],
            "did you mean --lock? {} --help",
            "unrecognized arguments: --lok=x",
        ),
        (
            "lockbuild",
            ["--metadata", "-s"],
            "python -m lockbuild --help",
            "--metadata: not allowed with --sdist or --wheel",
        ),
        (
            "lockbuild.commands.cache",
            ["prune", "--older-than"],
            "lockbuild-cache prune --help",
            "argument --older-than",
        ),
        ("lockbuild.commands.run", ["--no-such-thing"], "{} --help", "unrecognized"),
    ],
)
def test_wrong_usage_is_a_hint_and_one_line(module: str, words: list[str], hint: str, problem: str) -> None:
    refused = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    tip, error = refused.stderr.splitlines()
    hint = hint.format(f"python -m {module}")
    assert tip == f"TIP {hint} lists all options"
    assert error.startswith(f"{hint.rpartition('? ')[2].removesuffix(' --help')}: error: {problem}")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("command", "parser", "word", "completed"),
    [
        ("lockbuild", "options.make_parser", "--whe", "--wheel"),
        ("lockbuild-run", "run.make_parser", "--lock", "--lock-timeout"),
        ("lockbuild-cache", "cache.make_parser", "pru", "prune"),
    ],
)
def test_shtab_makes_completions_of_the_parsers(
    tmp_path: Path, command: str, parser: str, word: str, completed: str
) -> None:
    made = [sys.executable, "-m", "shtab", "--shell=bash", f"lockbuild.commands.{parser}"]
    (tmp_path / "script").write_text(subprocess.run(made, capture_output=True, text=True, check=True).stdout)
    ask = f". {tmp_path}/script; COMP_WORDS=({command} {word}); COMP_CWORD=1; set -- $(complete -p {command}); "
    ask += f"while [ $1 != -F ]; do shift; done; $2 {command} {word}; echo ${{COMPREPLY[@]}}"
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [completed]


def test_out_dir_without_a_value_is_wrong_usage(witness_tree: WitnessTree) -> None:
    built = _lockbuild(witness_tree, "--wheel", "--out-dir")
    assert built.returncode == 2
    assert built.stderr.splitlines()[-1].endswith("expected one argument")


def _lockbuild(tree: WitnessTree, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCKBUILD, "-n", *words], env=tree.environ(), cwd=tree.control, capture_output=True, text=True, check=False
    )


def test_an_unknown_installer_in_the_environment_is_one_line(witness_tree: WitnessTree) -> None:
    [(status, _, error)] = witness_tree.finish(witness_tree.start(env={"LOCKBUILD_INSTALLER": "conda"}))
    assert (status, error) == (1, "ERROR LOCKBUILD_INSTALLER must be one of pip, uv, not 'conda'\n")

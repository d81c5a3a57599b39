"""README.md, its neighbors, and docs/: links lead somewhere, code blocks are valid, and the names in them exist.

What needs no other program is checked for every page. The tutorial's commands are run, and Sphinx builds the pages.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml  # type: ignore[import-untyped]
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

import lockbuild.commands.cache
import lockbuild.commands.options
import lockbuild.commands.run
from lockbuild import errors

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FRONT_PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES = [*FRONT_PAGES, *sorted(DOCS.glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

COMMANDS = {
    "lockbuild": lockbuild.commands.options.make_parser(),
    "lockbuild-cache": lockbuild.commands.cache.make_parser(),
    "lockbuild-run": lockbuild.commands.run.make_parser(),
}

# Options that the pages mention without the name of their program, and whose they are.
OPTIONS_OF_OTHERS = {
    "--all": "hatch build",
    "--all-packages": "uv build",
    "--build-constraint": "pip wheel",
    "--build-constraints": "uv build",
    "--clean": "hatch build",
    "--installpkg": "tox",
    "--no-build-isolation": "uv build, pip wheel",
    "--no-index": "pip",
    "--platform": "pip download",
    "--python": "uv build, pip",
    "--python-version": "pip download",
    "--reinstall": "uv pip install",
    "--wheel-dir": "pip wheel",
}

# Languages whose syntax is not checked here: Sphinx has to know them, or they are no code.
UNCHECKED = {"", "text", "make", "groovy", "dockerfile"}


def parse(page: Path) -> list[Token]:
    markdown = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=4)
    return markdown.parse(page.read_text(encoding="utf-8"))


def inline(page: Path) -> Iterator[Token]:
    for token in parse(page):
        yield from token.children or ()


def code_spans(page: Path) -> Iterator[str]:
    return (token.content for token in inline(page) if token.type == "code_inline")


def links(page: Path) -> Iterator[str]:
    for token in inline(page):
        for name in ("href", "src"):
            if target := token.attrGet(name):
                yield str(target)


def anchors(page: Path) -> set[str]:
    return {str(token.attrs["id"]) for token in parse(page) if token.type == "heading_open" and "id" in token.attrs}


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(token.info.strip(), token.content) for token in parse(page) if token.type == "fence"]


def shell_text(block: Block) -> str:
    """Return the commands of a block: in ``console``, what follows a prompt."""
    if block.language == "sh":
        return block.text
    assert block.language == "console"
    return "\n".join(line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ "))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the calls of our commands in all blocks in which there may be some."""
    for block in blocks(page):
        if block.language in ("sh", "console"):
            yield from our_commands(shell_text(block))
        elif block.language in ("make", "groovy", "yaml", "dockerfile"):
            yield from our_commands(block.text)


def our_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the calls of our commands in a shell script, each with its arguments."""
    text = re.sub(r"(?<=\s)\d(?=>)", "", text.replace("\\\n", " ").replace("\n", "\n;\n"))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if " " in word:
            # What another shell is given as a script.
            yield from our_commands(word)
        if not set(word) <= set("();<>|&"):
            words.append(word)
            continue
        for position, name in enumerate(words):
            if os.path.basename(name) in COMMANDS:
                yield os.path.basename(name), words[position + 1 :]
                break
        words = []


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(*map(all_options, action.choices.values()))
    return options


OPTIONS = {"--out-dir", *(option for parser in COMMANDS.values() for option in all_options(parser))}


def variables_in(text: str) -> set[str]:
    return set(re.findall(r"\bLOCKBUILD_[A-Z_]*[A-Z]\b", text))


VARIABLES = variables_in("".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")))


def test_the_pages_have_what_these_tests_look_for() -> None:
    # If the pages were parsed in a wrong way, the tests below would check nothing.
    assert {"docs/locking.md", "docs/speed.svg"} <= set(links(ROOT / "README.md"))
    options = DOCS / "options.md"
    assert "while-a-build-waits" in anchors(options)
    assert "--lock-timeout SECONDS" in set(code_spans(options))
    assert {"toml", "console"} <= {block.language for block in blocks(options)}
    assert ("lockbuild", ["foo-1.0.tar.gz"]) in list(commands(options))
    assert list(our_commands("flock . sh -c 'x=1 bin/lockbuild -w 2>&1 | cat && lockbuild-cache list' &")) == [
        ("lockbuild", ["-w"]),
        ("lockbuild-cache", ["list"]),
    ]
    assert {"--lock", "--older-than"} < OPTIONS
    assert {"LOCKBUILD_CACHE_DIR", "LOCKBUILD_PREIMPORT"} < VARIABLES


def test_the_readme_is_short_and_shows_the_test_command_that_ci_runs() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 80
    [command] = [block.text.strip() for block in blocks(readme) if "pytest" in block.text]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@each_page
def test_links_lead_to_files_and_headings_that_exist_or_are_well_formed(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
            assert re.fullmatch(r"[\w./~%-]*", parts.path), link
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


@each_page
def test_code_blocks_are_valid_in_their_language(page: Path) -> None:
    for language, text in blocks(page):
        match language:
            case "toml":
                tomllib.loads(text)
            case "ini":
                configparser.ConfigParser(interpolation=None).read_string(text)
            case "yaml":
                yaml.safe_load(text)
            case "python":
                compile(text, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            case "sh" | "console" if sys.platform == "win32":
                # What is called bash there may belong to another system.
                continue
            case "sh" | "console":
                script = shell_text(Block(language, text))
                checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
                assert (checked.returncode, checked.stderr) == (0, ""), script
            case _:
                assert language in UNCHECKED or language.startswith("{"), f"nobody knows what {language!r} is"


@each_page
def test_every_command_in_a_block_is_one_that_the_parser_accepts(page: Path) -> None:
    for name, words in commands(page):
        spelled = ["--outdir" if word == "--out-dir" else word for word in words]
        assert complaint_about(COMMANDS[name], spelled) == "", f"{name} {words}"


def complaint_about(parser: argparse.ArgumentParser, words: list[str]) -> str:
    complaint = io.StringIO()
    with (
        contextlib.suppress(SystemExit),
        contextlib.redirect_stderr(complaint),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        parser.parse_args(words)
    return complaint.getvalue()


@each_page
def test_every_option_that_is_mentioned_exists(page: Path) -> None:
    for span in code_spans(page):
        first = span.split()[0]
        if not first.startswith("-") and os.path.basename(first) not in COMMANDS:
            # Another program, with its own options.
            continue
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span):
            assert option in OPTIONS or option in OPTIONS_OF_OTHERS, span


@each_page
def test_every_variable_that_is_mentioned_exists(page: Path) -> None:
    assert variables_in(page.read_text(encoding="utf-8")) <= VARIABLES


def test_every_variable_is_in_the_reference() -> None:
    assert variables_in((DOCS / "settings.md").read_text(encoding="utf-8")) == VARIABLES


def test_every_exit_status_is_in_the_reference() -> None:
    documented = set(re.findall(r"^\| (\d+) \|", (DOCS / "exit-status.md").read_text(encoding="utf-8"), re.MULTILINE))
    kinds: list[type[errors.LockbuildError]] = [errors.LockbuildError, *errors.LockbuildError.__subclasses__()]
    assert len(kinds) > 5
    assert {str(kind.exit_status) for kind in kinds} | {"0", "2"} <= documented


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = "".join(text for language, text in blocks(DOCS / "index.md") if language == "{toctree}")
    # A page by its name, or a title and the name in angle brackets.
    listed = re.findall(r"^(?:[^:\n].* <)?([\w-]+)>?$", contents, re.MULTILINE)
    assert sorted(f"{name}.md" for name in listed) == sorted({path.name for path in DOCS.glob("*.md")} - {"index.md"})


@pytest.mark.slow
def test_sphinx_builds_the_pages_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "state", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stderr) == (0, "")
    # Where an option or a name is described, there is an anchor for it.
    page = (tmp_path / "html" / "command-line.html").read_text(encoding="utf-8")
    for name, parser in COMMANDS.items():
        for option in parser._option_string_actions:
            assert f'id="{name}-{option}"' in page
    page = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    for name in lockbuild.__all__:
        assert f'id="lockbuild.{name}"' in page


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the tutorial is for Linux and macOS")
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    checkout = tmp_path / "lockbuild"
    for name in ("src", "examples", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / name, checkout / name)
    tutorial = [block for block in blocks(DOCS / "tutorial.md") if block.language in ("sh", "text")]
    script = "set -e\n" + "echo; echo @@@\n".join(block.text for block in tutorial if block.language == "sh")
    # The tests' own virtual environment is not a part of it.
    python = os.path.dirname(os.path.realpath(sys.executable))
    environ = os.environ | {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    outputs = iter(ran.stdout.split("\n@@@\n"))
    output = ""
    for block in tutorial:
        if block.language == "sh":
            output = next(outputs)
        else:
            assert_shows(output, block.text)
    assert_documented((DOCS / "cache.md").read_text(encoding="utf-8"), Path(os.environ["LOCKBUILD_CACHE_DIR"]))


def assert_shows(output: str, expected: str) -> None:
    """Assert that these lines are in the output in this order; numbers may differ, and what a ``…`` stands for."""
    lines = iter(output.splitlines())
    for line in expected.splitlines():
        pattern = re.compile(pattern_of(line))
        assert any(pattern.fullmatch(each) for each in lines), f"{line!r} is not in, or not in its place:\n{output}"


# What differs from run to run in what a page shows, and what to expect instead.
_VARIABLE_PARTS = {
    "…": r".+",
    r"\d+ s ago": r"\d+ \w+ ago",
    # The key of a build environment.
    r"\b[0-9a-f]{24}\b": r"[0-9a-f]{24}",
    r"linux_x86_64": r"\w+",
    r"\d+(?:\.\d+)*": r"[\d.]+",
    # Between the columns of a table.
    r" {2,}": r" +",
}


def pattern_of(line: str) -> str:
    pattern = ""
    for text, part in re.findall(f"(.*?)({'|'.join(_VARIABLE_PARTS)}|$)", line):
        pattern += re.escape(text)
        pattern += next((instead for what, instead in _VARIABLE_PARTS.items() if re.fullmatch(what, part)), "")
    return pattern


def assert_documented(page: str, cache: Path) -> None:
    """Assert that whatever is in a cache folder is in the page's table, or in a folder that is there, or holds one."""
    documented = [path.split("/") for path in re.findall(r"^\| `([^`]+?)/?` \|", page, re.MULTILINE)]
    assert ["environments", "pruned"] in documented
    found = [path.relative_to(cache) for path in cache.rglob("*")]
    assert found
    for path in found:
        assert any(
            all(
                re.fullmatch(re.sub("[A-Z]+", ".+", re.escape(d)), p) for d, p in zip(pattern, path.parts, strict=False)
            )
            for pattern in documented
        ), path

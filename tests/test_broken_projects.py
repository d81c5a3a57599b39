"""
Broken and hostile pyproject.toml files: each is accepted or refused as `build` does it, and with the same values.

The files are mutations of valid ones by a seeded generator. What lockbuild refuses, it refuses in one line.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from build import BuildException, ProjectBuilder

from lockbuild.errors import SettingsError
from lockbuild.project import read_project
from machine import error_line, warnings_in
from witness import WitnessTree

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow

VALID = (
    '[build-system]\nrequires = ["setuptools >=77", "wheel"]\nbuild-backend = "setuptools.build_meta"\n',
    '# A comment\n[build-system]\nrequires = []\nbuild-backend = "backend:name"\nbackend-path = ["inside", "."]\n',
    '[project]\nname = "x"\n\n[tool.lockbuild]\nlock = "always"\n',
    '[build-system]\nrequires = [\n  "a",\n  "b; python_version > \'3\'",\n]\n\n[tool.other]\nkey = {a = 1979-05-27}\n',
    '[tool.lockbuild]\n[build-system]\nbuild-backend = """a"""\nrequires = ["\\u00e9"]\n',
)

# Values of TOML that may stand where another one was.
VALUES: tuple[str, ...] = (
    "1",
    "-0.0",
    "nan",
    "true",
    "''",
    '"\\u0000"',
    '"a\\nb"',
    "[]",
    "[[]]",
    "{}",
    "['a', 1]",
    "{a = 'b'}",
    "[{}]",
)
VALUES += ("1979-05-27", "'''\n'''", "9" * 5000, "'" + "x" * 100_000 + "'", "[" * 2000 + "]" * 2000, "{a = " * 2000)
VALUES += ("['..']", "['inside/..']", "['inside/../..']", "['/']", "['inside', 'missing']", "['link']", "['..inside']")

# Lines that may be added anywhere.
LINES: tuple[str, ...] = (
    "[build-system]",
    "[build_system]",
    "[[build-system]]",
    "[buildsystem]",
    "requires = ['c']",
    "require = []",
)
LINES += (
    "build-backend = 'd'",
    "backend-path = ['inside']",
    "backend-path = ['..']",
    "backend_path = []",
    "unknown = 1",
)
LINES += (
    "'a\\nb' = 1",
    '"a\\nb" = 1',
    "[tool.lockbuild]",
    "[tool.lockbuild.lock]",
    "lock = 'never'",
    "[tool]",
    "tool = 1",
)
LINES += (
    f"{'a.' * 2000}a = 1",
    f"[{'a.' * 2000}a]",
    "\0",
    "\ufeff",
    "\u2028",
    "[build-system.requires]",
    "requires.a = 1",
)


def truncated(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def flipped(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def inserted(chance: random.Random, content: bytes) -> bytes:
    """Put bytes into it that may be no UTF-8, a byte order mark at the beginning among them."""
    place = chance.choice((0, len(content), chance.randrange(len(content))))
    other = chance.choice(
        (b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\0" * 1000, b"\r", b"\x80", b"\xed\xa0\x80", b"\x1b[2J")
    )
    return content[:place] + other + content[place:]


def encoded(chance: random.Random, content: bytes) -> bytes:
    """Write it in another encoding, or with other ends of lines."""
    text = content.decode()
    return chance.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-8-sig"),
            text.encode("utf-32-be"),
            text.encode("cp500"),
            text.replace("\n", "\r\n").encode(),
            text.replace("\n", "\r").encode(),
        )
    )


def retyped(chance: random.Random, content: bytes) -> bytes:
    """Give a key a value of another type."""
    lines = content.decode().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if " = " in line]
    place = chance.choice(places)
    lines[place] = f"{lines[place].partition(' = ')[0]} = {chance.choice(VALUES)}\n"
    return "".join(lines).encode()


def rearranged(chance: random.Random, content: bytes) -> bytes:
    """Add lines, repeat some, leave some out, exchange some."""
    lines = content.decode().splitlines()
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(lines) + 1)
        what = chance.randrange(4)
        if what == 0 and lines:
            del lines[chance.randrange(len(lines))]
        elif what == 1 and lines:
            lines.insert(place, chance.choice(lines))
        elif what == 2:
            chance.shuffle(lines)
        else:
            lines.insert(place, chance.choice(LINES))
    return "\n".join(lines).encode()


BREAKERS: Mapping[str, Callable[[random.Random, bytes], bytes]] = {
    each.__name__: each for each in (truncated, flipped, inserted, encoded, retyped, rearranged)
}


def chosen(way: str) -> Iterator[bytes]:
    """Yield broken files. ``BROKEN_PROJECTS`` is how many for each way, ``BROKEN_SEED`` another choice of them."""
    chance = random.Random(f"{way} {os.environ.get('BROKEN_SEED', '0')}")
    for _ in range(int(os.environ.get("BROKEN_PROJECTS", "300"))):
        yield BREAKERS[way](chance, chance.choice(VALID).encode())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "inside").mkdir(parents=True)
    (tree / "..inside").mkdir()
    (tree / "link").symlink_to("..")
    return tree


Values = tuple[str, tuple[str, ...], frozenset[str]]


def read_by_build(tree: Path) -> Values:
    builder = ProjectBuilder(tree)
    folders = builder._build_system.get("backend-path", ())
    return builder._backend, tuple(folders), frozenset(builder.build_system_requires)


def read_by_us(tree: Path) -> Values:
    project = read_project(str(tree))
    return project.backend, project.backend_path, frozenset(project.requires)


def outcome(read: Callable[[Path], Values], tree: Path) -> tuple[Values | Exception, list[str]]:
    """Return what is read, or why it is refused; and the warnings, which are about keys that seem misspelled."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            found: Values | Exception = read(tree)
        except Exception as error:  # noqa: BLE001
            found = error
    return found, [str(warning.message) for warning in caught]


def compare(tree: Path) -> Exception | None:
    """Compare what `build` and lockbuild read; return why it is refused, if it is."""
    (theirs, their_warnings), (ours, our_warnings) = outcome(read_by_build, tree), outcome(read_by_us, tree)
    assert our_warnings == their_warnings
    if isinstance(ours, SettingsError):
        # Where `build` ends in a traceback, fails later, or does not look.
        is_ours_to_say = "tool.lockbuild" in str(ours) or (not isinstance(theirs, Exception) and "\0" in theirs[0])
        assert is_ours_to_say or (isinstance(theirs, (ValueError, RecursionError)) and str(tree) in str(ours))
        assert str(ours).isprintable()
        assert len(str(ours)) < 1000
    elif isinstance(ours, Exception):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        assert isinstance(ours, BuildException)
    else:
        assert ours == theirs
    return ours if isinstance(ours, Exception) else None


@pytest.mark.parametrize("has_setup_py", [False, True], ids=["pyproject", "setup"])
@pytest.mark.parametrize("way", BREAKERS)
def test_a_broken_pyproject_is_read_as_build_reads_it(tree: Path, way: str, has_setup_py: bool) -> None:
    if has_setup_py:
        (tree / "setup.py").touch()
    refused = 0
    for content in chosen(way):
        (tree / "pyproject.toml").write_bytes(content)
        refused += compare(tree) is not None
    assert refused


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
@pytest.mark.parametrize("key", ["requires", "build-backend", "backend-path"])
def test_each_key_of_build_system_may_have_any_value(tree: Path, key: str, value: str) -> None:
    keys = {"requires": "[]", "build-backend": "'x'", key: value}
    text = "".join(f"{key} = {value}\n" for key, value in keys.items())
    (tree / "pyproject.toml").write_text(f"[build-system]\n{text}")
    compare(tree)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_our_own_setting_may_have_any_value(tree: Path, value: str) -> None:
    (tree / "setup.py").touch()
    (tree / "pyproject.toml").write_text(f"[tool.lockbuild]\nlock = {value}\n")
    assert compare(tree) is not None
    (tree / "pyproject.toml").write_text(f"[tool]\nlockbuild = {value}\n")
    compare(tree)


HOSTILE = (
    '[build-system]\nrequires = []\nbuild-backend = "a\\u0000b"\n',
    "[build-system]\nrequires = []\nbuild-backend = 'x'\nbackend-path = ['..']\n",
    f"[tool.lockbuild.lock]\n{'a.' * 3000}b = 1\n",
    f"x = {'[' * 100_000}",
    f"x = {'9' * 5000}",
    '[tool.lockbuild]\n"a\\nb" = 1\n',
)


def test_a_build_of_a_broken_project_is_one_error_line(witness_tree: WitnessTree, tree: Path) -> None:
    (tree / "setup.py").touch()
    samples = [text.encode() for text in HOSTILE]
    for way in BREAKERS:
        for content in chosen(way):
            (tree / "pyproject.toml").write_bytes(content)
            if (refusal := compare(tree)) and str(refusal).isprintable():
                samples.append(content)
                break
    for content in samples:
        (tree / "pyproject.toml").write_bytes(content)
        assert compare(tree)
        [result] = witness_tree.finish(witness_tree.start(source=tree))
        # The place of a syntax error stands before the reason.
        result = (*result[:2], re.sub(r"^  \d+ \| .*\n +\^\n", "", result[2]))
        # A key may be both misspelled, of which there is a warning, and in the wrong place.
        assert result[1:] == ("", "".join(f"{line}\n" for line in [*warnings_in(result[2]), error_line(result)]))
    assert not witness_tree.out_dir.exists()
    assert {*os.listdir(tree)} == {"pyproject.toml", "setup.py", "inside", "..inside", "link"}

"""Bytecode of one build environment is found in the next one that has the same wheel, and only what is right."""

from __future__ import annotations

import contextlib
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wheelhouse import ProbeTree, end_all, make_probe_tree, site_packages

TAG = sys.implementation.cache_tag
LATE = f"__pycache__/probe_backend_late.{TAG}.pyc"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ProbeTree]:
    tree = make_probe_tree(tmp_path / "probe")
    # Wheels that an environment needs so that it is another one.
    for name in ("one", "two", "three"):
        tree.wheelhouse.add_wheel(name)
    yield tree
    end_all(tree)


def build_with(tree: ProbeTree, *requirements: str, mode: str = "auto") -> Path:
    """Build with a new environment; return its ``site-packages``."""
    before = set(tree.environments())
    tree.require(*requirements)
    tree.build("--link-mode", mode)
    [made] = set(tree.environments()) - before
    return site_packages(made)


def evaluate(site: Path, expression: str) -> str:
    """Evaluate in an environment, which writes no bytecode."""
    command = [str(site.parents[2] / "bin" / "python"), "-B", "-c", f"import probe_backend_late; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def compile_late(site: Path) -> Path:
    subprocess.run([site.parents[2] / "bin" / "python", "-c", "import probe_backend_late"], check=True)
    return site / LATE


@pytest.mark.slow
def test_what_one_environment_has_compiled_the_next_finds_and_the_one_after_it_too(tree: ProbeTree) -> None:
    first = build_with(tree, "one")
    backend = f"__pycache__/probe_backend.{TAG}.pyc"
    with contextlib.suppress(FileNotFoundError):
        (first / LATE).unlink()
    second = build_with(tree, "two")
    # Bytecode of the backend was there before a hook ran: it is the file of the first environment.
    assert (second / backend).samefile(first / backend)
    # Nothing else was compiled beforehand.
    assert not (second / "__pycache__" / f"two.{TAG}.pyc").exists()
    compile_late(second)
    third = build_with(tree, "three")
    assert (third / backend).samefile(first / backend)
    assert (third / LATE).samefile(second / LATE)
    # Python uses it, and a function has the file name of its own environment.
    verbose = subprocess.run(
        [third.parents[2] / "bin" / "python", "-v", "-c", "import probe_backend_late"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"code object from '{third / LATE}'" in verbose
    assert evaluate(third, "probe_backend_late.__spec__.loader.get_code('probe_backend_late').co_filename") == str(
        third / "probe_backend_late.py"
    )


@pytest.mark.slow
def test_bytecode_of_an_edited_source_stays_where_it_is(tree: ProbeTree) -> None:
    """Edited in a copy, so that the store is as it was; to the same size and within the second of its time."""
    first = build_with(tree, "one", mode="copy")
    source = first / "probe_backend_late.py"
    before = source.stat()
    assert source.read_text() == "VALUE = 1\n"
    source.write_text("VALUE = 2\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    assert compile_late(first).exists()
    second = build_with(tree, "two")
    assert not (second / LATE).samefile(first / LATE)
    assert evaluate(second, "probe_backend_late.VALUE") == "1"


@pytest.mark.slow
def test_bytecode_that_does_not_say_that_it_is_of_this_source_is_not_taken(tree: ProbeTree) -> None:
    """Python would use it unseen: it says that nobody need look (PEP 552)."""
    first = build_with(tree, "one")
    other = tree.control / "other.py"
    other.write_text("VALUE = 2\n")
    (first / LATE).unlink()
    py_compile.compile(
        str(other), cfile=str(first / LATE), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    # A name that Python gives to what it has not written to the end yet.
    torn = Path(f"{first / LATE}.1234")
    torn.write_bytes((first / LATE).read_bytes())
    second = build_with(tree, "two")
    assert evaluate(second, "probe_backend_late.VALUE") == "1"
    assert not (second / "__pycache__" / torn.name).exists()

"""Standard streams that are full or have lost their reader, with each command; `test_files.py` has closed ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from witness import WitnessTree

TREE = "TREE"

COMMANDS = [
    ("lockbuild", "-n", "-w", TREE),
    ("lockbuild", "-n", "-w", "--report", "-", TREE),
    ("lockbuild", "-n", "-w", "--json", TREE),
    ("lockbuild", "-n", "--metadata", TREE),
    ("lockbuild", "--help"),
    ("lockbuild", "--no-such-option"),
    ("lockbuild.commands.cache", "list"),
    ("lockbuild.commands.cache", "prune"),
    ("lockbuild.commands.cache", "--help"),
    ("lockbuild.commands.run", "-C", TREE, "true"),
    ("lockbuild.commands.run", "--help"),
]


@contextmanager
def without_reader() -> Iterator[int]:
    """Yield a pipe whose other end is closed, as `| true` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def full() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def run(tree: WitnessTree, words: tuple[str, ...], **streams: object) -> subprocess.CompletedProcess[str]:
    module, *arguments = (str(tree.path) if word is TREE else word for word in words)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, text=True, env=tree.environ(), check=False, **streams)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_no_traceback(witness_tree: WitnessTree, words: tuple[str, ...]) -> None:
    status = 2 if "--no-such-option" in words else 1
    for broken in (without_reader, full):
        with broken() as stream:
            ended = run(witness_tree, words, stdout=stream, stderr=subprocess.PIPE)
            assert "Traceback" not in ended.stderr
            assert "Exception ignored" not in ended.stderr
            assert "bug in lockbuild" not in ended.stderr
            is_written_to = status == 1 and words[-1] != "true"
            assert ended.returncode == (status if is_written_to or status == 2 else 0)
            if broken is full and is_written_to:
                assert "No space left on device" in ended.stderr
            ended = run(witness_tree, words, stdout=subprocess.PIPE, stderr=stream)
            assert ended.returncode in (0, status)
            ended = run(witness_tree, words, stdout=stream, stderr=stream)
            assert ended.returncode in (0, status)

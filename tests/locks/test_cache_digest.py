"""The digest that names lock files: uv's values, and what makes two paths differ or not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lockbuild.locks import cache_digest


@pytest.mark.parametrize(
    ("path", "digest"),
    [
        ("/srv/demo/project", "0d7f8a6ebbae0a85"),
        ("/srv/demo/a ü/x.y", "30d2a3b8d8b72e32"),
    ],
)
def test_a_path_has_the_digest_that_uv_gives_it(path: str, digest: str) -> None:
    assert cache_digest(path) == digest


def test_a_path_object_has_the_digest_of_its_text() -> None:
    assert cache_digest(Path("/srv/demo/project")) == cache_digest("/srv/demo/project")


@pytest.mark.parametrize("path", ["/srv/demo/project/", "//srv/demo//project", "/srv///demo/project//"])
def test_slashes_that_separate_nothing_do_not_count(path: str) -> None:
    assert cache_digest(path) == cache_digest("/srv/demo/project")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a/bc", "/ab/c"),
        ("/a/b", "/b/a"),
        ("/a/b", "/ab"),
        ("/", "/a"),
        ("/a", "/a/a"),
        ("/a", "/A"),
        ("/a", "/a "),
        ("/a", "/a\n"),
        ("/a", "/a\0"),
        # Composed and decomposed: other bytes, other files.
        ("/ü", "/u\u0308"),
        ("/12345678", "/1234567/8"),
        ("/" + "a" * 8, "/" + "a" * 9),
        ("/" + "a/" * 2000, "/" + "a/" * 1999),
    ],
)
def test_other_paths_have_other_digests(one: str, other: str) -> None:
    assert cache_digest(one) != cache_digest(other)


def test_the_root_has_a_digest_too() -> None:
    assert re.fullmatch("[0-9a-f]{16}", cache_digest("/"))
    assert cache_digest("/") == cache_digest("//")


def test_bytes_that_are_no_text_count_as_they_are() -> None:
    one, other = (os.fsdecode(b"/srv/" + name) for name in (b"\xff", b"\xfe"))
    assert cache_digest(one) != cache_digest(other)
    # The same bytes as a text that is valid are the same path.
    assert cache_digest(os.fsdecode(b"/srv/\xc3\xbc")) == cache_digest("/srv/ü")


def test_a_thousand_paths_have_a_thousand_digests_of_one_form() -> None:
    digests = {cache_digest(f"/srv/demo/{number}") for number in range(1000)}
    assert len(digests) == 1000
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)

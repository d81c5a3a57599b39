"""
What no sdist can do: write outside of the folder that it is unpacked in, leave anything there, or break off otherwise.

Whatever an archive is like, a wheel can be built from it, or a `SdistError` says in one line why not.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lockbuild.errors import SdistError
from lockbuild.sdist import read_sdist, unpacked
from machine import error_line
from witness import WitnessTree

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow

NAME = "witness-1.0.tar.gz"
PKG_INFO = b"Metadata-Version: 2.1\nName: witness\nVersion: 1.0\n"

# In bytes. What is in the archives here is far less.
LIMIT = 8 << 20


def a_file(name: str, content: bytes = b"x", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def an_entry(name: str, kind: bytes, target: str = "", **pax_headers: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member without content: a link, a folder, a device, a FIFO."""
    return a_file(name, b"", type=kind, linkname=target, pax_headers=pax_headers)


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        an_entry("witness-1.0", tarfile.DIRTYPE),
        a_file("witness-1.0/PKG-INFO", PKG_INFO),
        a_file("witness-1.0/pyproject.toml", b"[build-system]\nrequires = []\nbuild-backend = 'witness_backend'\n"),
        a_file("witness-1.0/witness_backend.py", b"VALUE = 1\n" * 500),
    ]


def packed(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


GOOD = packed(good_members())

TEXTS: tuple[str, ...] = (
    "",
    ".",
    "..",
    "../outside",
    "/",
    "/etc/passwd",
    "a/../../outside",
    "\0",
    "a\0b",
    "\n",
    "a" * 300,
    "a/" * 1500,
)
TEXTS += (
    "é",
    "\u202e",
    "-1",
    "-99999",
    "0",
    "9" * 30,
    "1e400",
    "nan",
    "inf",
    "x",
    "witness-1.0/PKG-INFO",
    "1,2,3",
    "2\n1\n1\n",
)

KEYWORDS: tuple[str, ...] = (
    "path",
    "linkpath",
    "size",
    "mtime",
    "uid",
    "gid",
    "uname",
    "hdrcharset",
    "GNU.sparse.map",
    "comment",
)
KEYWORDS += ("GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.name", "GNU.sparse.major", "GNU.sparse.minor")

KINDS = (*b"01234567xgLKSMNVDA", 0, 255)


def flipped(chance: random.Random) -> bytes:
    """Flip bits of the compressed file."""
    content = bytearray(gzip.compress(GOOD, mtime=0))
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def truncated(chance: random.Random) -> bytes:
    content = gzip.compress(GOOD, mtime=0)
    return content[: chance.randrange(len(content))]


def inside(chance: random.Random) -> bytes:
    """Flip bits of the archive in an intact gzip file, mostly in headers, whose checksums are mostly right."""
    content = bytearray(GOOD)
    for _ in range(chance.choice((1, 1, 2, 8))):
        content[chance.randrange(2048)] ^= 1 << chance.randrange(8)
    if chance.randrange(4):
        correct_checksums(content)
    return gzip.compress(content[: chance.choice((len(content), chance.randrange(len(content))))], 1)


def correct_checksums(content: bytearray) -> None:
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b"        "
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])


def fields(chance: random.Random) -> bytes:
    """Put nonsense into the fields of headers."""
    content = bytearray(GOOD)
    places = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    for _ in range(chance.choice((1, 2))):
        start, size = chance.choice(places)
        nonsense = chance.choice((*(text.encode() for text in TEXTS), b"\xff" * size, b"\x80", chance.randbytes(size)))
        if start == 156:
            nonsense = bytes([chance.choice(KINDS)])
        start += chance.choice((0, 512, 1536))
        content[start : start + size] = nonsense[:size].ljust(size, b"\0")
    correct_checksums(content)
    return gzip.compress(content, 1)


def extended(chance: random.Random) -> bytes:
    """Put nonsense into extended headers, of one member or of all that follow."""
    members = good_members()
    for _ in range(chance.choice((1, 1, 3))):
        headers = {chance.choice(KEYWORDS): chance.choice(TEXTS) for _ in range(chance.choice((1, 1, 2, 4)))}
        record = b"".join(record_of(key, value, chance) for key, value in headers.items())
        kind = chance.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, b"L", b"K", b"S"))
        members.insert(chance.randrange(5), a_file("././@PaxHeader", record, type=kind))
    return gzip.compress(packed(members), 1)


def record_of(key: str, value: str, chance: random.Random) -> bytes:
    """Return a record of an extended header, whose length is mostly right."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length += len(str(length)) - len(str(len(rest)))
    return chance.choice((str(length), str(length), str(length), "0", "-1", "9" * 20, "x", "")).encode() + rest


def members(chance: random.Random) -> bytes:
    """Add members of any kind and name, some of them twice."""
    found = good_members()
    for _ in range(chance.choice((1, 2, 5))):
        name = chance.choice(("", "witness-1.0/", "witness-1.0/", "witness-1.0/link/")) + chance.choice(
            (*TEXTS, "link")
        )
        kind = chance.choice((b"0", b"1", b"2", b"2", b"3", b"4", b"5", b"6"))
        found.insert(chance.randrange(len(found) + 1), an_entry(name, kind, chance.choice(TEXTS)))
        found.insert(chance.randrange(len(found) + 1), chance.choice(found))
    try:
        return gzip.compress(packed(found), 1)
    except (ValueError, RecursionError):
        return b""


def wrapped(chance: random.Random) -> bytes:
    """Compress it otherwise, twice, in parts, or put something before, between or behind."""
    wrap = chance.choice((bz2.compress, lzma.compress, bytes, lambda data: gzip.compress(gzip.compress(data))))
    middle = chance.randrange(len(GOOD))
    parts = gzip.compress(GOOD[:middle], 1), gzip.compress(GOOD[middle:], 1)
    nothing = chance.choice((b"", b"\0", bytes(512), bytes(100_000), b"text", gzip.compress(b""), chance.randbytes(50)))
    return chance.choice((wrap(GOOD), nothing.join(parts), nothing + parts[0] + parts[1], b"".join(parts) + nothing))


BREAKERS: Mapping[str, Callable[[random.Random], bytes]] = {
    each.__name__: each for each in (flipped, truncated, inside, fields, extended, members, wrapped)
}


def chosen(way: str) -> Iterator[bytes]:
    """Yield broken archives. ``BROKEN_SDISTS`` is how many for each way, ``BROKEN_SEED`` another choice of them."""
    chance = random.Random(f"{way} {os.environ.get('BROKEN_SEED', '0')}")
    for _ in range(int(os.environ.get("BROKEN_SDISTS", "300"))):
        yield BREAKERS[way](chance)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of an archive; above it is a file that nothing may change."""
    (tmp_path / "outside").write_text("as it was")
    (tmp_path / "sdists").mkdir()
    return tmp_path / "sdists"


def refusal(place: Path, content: bytes) -> str | None:
    """Read and unpack an archive, with a check of all that it could have left; return why it was refused."""
    archive, copies = place / NAME, place / "copies"
    archive.write_bytes(content)
    copies.mkdir(exist_ok=True)
    (copies / NAME).unlink(missing_ok=True)
    message = None
    try:
        with unpacked(read_sdist(str(archive), str(copies), LIMIT), None) as tree:
            assert os.path.isdir(tree)
    except SdistError as error:
        message = str(error)
        assert str(archive) in message
        assert message.isprintable()
    assert os.listdir(place.parent / "tmp") == []
    assert {*os.listdir(place.parent)} <= {"sdists", "outside", "tmp", "cache", "witness"}
    assert (place.parent / "outside").read_text() == "as it was"
    assert {*os.listdir(place)} == {"copies", NAME}
    return message


@pytest.mark.parametrize("way", BREAKERS)
def test_a_broken_sdist_is_refused_in_one_line_or_unpacked_in_its_folder(place: Path, way: str) -> None:
    refusals = [refusal(place, content) for content in chosen(way)]
    assert any(refusals)


def chained(count: int) -> bytes:
    """Return an archive whose first member has very many extended headers."""
    header, _ = a_file("././@PaxHeader", type=tarfile.XHDTYPE)
    record = b"13 comment=x\n"
    header.size = len(record)
    return (header.tobuf() + record.ljust(512, b"\0")) * count + GOOD


def with_negative_size(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("witness-1.0/negative")
    info.type, info.size = kind, size
    return GOOD[:512] + info.tobuf(tarfile.GNU_FORMAT) + GOOD[512:]


def endless() -> bytes:
    """Return an archive with a member that, by its size, ends where its own extended header begins."""
    record = b"14 size=-1536\n"
    header, _ = a_file("././@PaxHeader", record, type=tarfile.XHDTYPE)
    return GOOD[:512] + header.tobuf() + record.ljust(512, b"\0") + GOOD[512:]


def with_headers(**headers: str) -> bytes:
    """Return an archive with these extended headers, which tarfile does not check when it writes them."""
    record = b"".join(
        b"%d %s=%s\n" % (len(key) + len(value) + 5, key.encode(), value.encode()) for key, value in headers.items()
    )
    header, _ = a_file("././@PaxHeader", record, type=tarfile.XHDTYPE)
    return GOOD[:512] + header.tobuf() + record.ljust(512, b"\0") + GOOD[512:]


def with_owner(owner: bytes) -> bytes:
    """Return an archive whose first member has this in the field for the number of its owner."""
    content = bytearray(GOOD)
    content[108:116] = owner
    correct_checksums(content)
    return bytes(content)


FIFO = an_entry("witness-1.0/fifo", tarfile.FIFOTYPE)
FOLDERS = [an_entry("witness-1.0/" + "d/" * depth, tarfile.DIRTYPE) for depth in range(200, 1600, 200)]

HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "a FIFO": (packed([*good_members(), FIFO]), "failed to unpack"),
    "a folder and a file of one name": (
        packed([*good_members(), an_entry("witness-1.0/PKG-INFO/x", tarfile.DIRTYPE)]),
        "failed to unpack",
    ),
    "a link to what is not there": (
        packed([*good_members(), an_entry("witness-1.0/link", tarfile.LNKTYPE, "nothing")]),
        "failed to unpack",
    ),
    "a time that is no number": (with_headers(mtime="nan"), "failed to unpack"),
    "a time that no clock shows": (with_headers(mtime="inf"), "failed to unpack"),
    "an owner that is no number": (with_owner(b"nobody!\0"), "failed to read"),
    "an endless archive": (endless(), "a member of negative size"),
    "a header of negative size": (with_negative_size(tarfile.XHDTYPE, -512), "a malformed header"),
    "a file of negative size": (with_negative_size(tarfile.REGTYPE, -99999), "a member of negative size"),
    "a chain of headers": (chained(3000), "a malformed header"),
    "folders without end": (packed([*good_members(), *FOLDERS]), "more than 256 folders in each other"),
    "the folder that it is unpacked in": (
        packed([a_file("./PKG-INFO", PKG_INFO)]),
        "must contain a single top-level directory, got: ['.']",
    ),
    "the folder above": (packed([a_file("../PKG-INFO", PKG_INFO)]), "must contain a single top-level directory"),
    "a line break in the folder's name": (packed([a_file("a\nb/x")]), r"does not contain a\nb/PKG-INFO"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sdist_is_refused(place: Path, name: str) -> None:
    content, message = HOSTILE[name]
    assert message in (refusal(place, gzip.compress(content, 1)) or "it was accepted")


def test_a_build_from_a_broken_sdist_is_one_error_line_and_leaves_nothing(
    witness_tree: WitnessTree, place: Path
) -> None:
    samples = [gzip.compress(content, 1) for content, _ in HOSTILE.values()]
    samples += [next(content for content in chosen(way) if refusal(place, content)) for way in BREAKERS]
    for number, content in enumerate(samples):
        folder = witness_tree.control / str(number)
        folder.mkdir()
        (folder / NAME).write_bytes(content)
        witness_tree.start(source=folder / NAME, out_dir=folder / "out")
    for number, result in enumerate(witness_tree.finish()):
        line = error_line(result)
        assert result[1:] == ("", f"{line}\n")
        assert str(witness_tree.control / str(number)) in line
        assert os.listdir(witness_tree.control / str(number)) == [NAME]
    assert os.listdir(place.parent / "tmp") == []
    assert witness_tree.log() == []

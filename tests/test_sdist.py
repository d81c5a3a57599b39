"""Source distributions as the source of a build: which are refused, and in what words."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lockbuild.errors import SdistError
from lockbuild.sdist import Sdist, read_sdist, unpacked
from machine import error_line, linux_only
from witness import WitnessTree

PKG_INFO = "Metadata-Version: 2.1\nName: witness\nVersion: 1.0\n"
NAME = "witness-1.0.tar.gz"


def write_sdist(path: Path, members: dict[str, str], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
        for info in more:
            archive.addfile(info)
    return path


def good_members() -> dict[str, str]:
    backend = Path(__file__).with_name("witness_backend.py").read_text()
    pyproject = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "witness_backend"\nbackend-path = ["."]\n'
    return {
        "witness-1.0/PKG-INFO": PKG_INFO,
        "witness-1.0/pyproject.toml": pyproject,
        "witness-1.0/witness_backend.py": backend,
    }


def read(archive: Path) -> Sdist:
    folder = archive.parent / "copies"
    folder.mkdir()
    return read_sdist(str(archive), str(folder))


def a_link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def written_as_gzip(path: Path, content: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as archive:
        archive.write(content)
    return path


def truncated(path: Path) -> Path:
    write_sdist(path, good_members())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def uncompressed(path: Path) -> Path:
    path.write_bytes(gzip.decompress(write_sdist(path, good_members()).read_bytes()))
    return path


def truncated_uncompressed(path: Path) -> Path:
    # The last member is longer than a block.
    content = uncompressed(path).read_bytes().rstrip(b"\0")
    path.write_bytes(content[:-600])
    return path


def damaged(path: Path) -> Path:
    # Its first compressed block begins after a header of ten bytes and the file's name.
    write_sdist(path, good_members())
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


BAD_ARCHIVES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("empty file", written(b""), "failed to read source distribution"),
    ("text", written(b"no archive at all"), "failed to read source distribution"),
    ("gzip of a text", written(gzip.compress(b"no archive at all" * 100)), "failed to read source distribution"),
    ("truncated", truncated, "failed to read source distribution"),
    ("truncated and not compressed", truncated_uncompressed, "failed to read source distribution"),
    ("damaged", damaged, "failed to read source distribution"),
    ("damaged bz2", written(bz2.compress(b"\0" * 10240)[:-8]), "failed to read source distribution"),
    ("damaged xz", written(lzma.compress(b"\0" * 10240)[:-8]), "failed to read source distribution"),
    ("no members", lambda path: write_sdist(path, {}), "must contain a single top-level directory, got: []"),
    (
        "two folders",
        lambda path: write_sdist(path, good_members() | {"other/PKG-INFO": PKG_INFO}),
        "must contain a single top-level directory, got: ['other', 'witness-1.0']",
    ),
    ("no folder", lambda path: write_sdist(path, {"PKG-INFO": PKG_INFO}), "does not contain PKG-INFO/PKG-INFO"),
    (
        "no PKG-INFO",
        lambda path: write_sdist(path, {"witness-1.0/pyproject.toml": ""}),
        "does not contain witness-1.0/PKG-INFO; this does not appear to be a valid source distribution",
    ),
    (
        "PKG-INFO in a folder below",
        lambda path: write_sdist(path, {"witness-1.0/x/PKG-INFO": PKG_INFO}),
        "does not contain witness-1.0/PKG-INFO",
    ),
    (
        "PKG-INFO is a link",
        lambda path: write_sdist(path, {"witness-1.0/x": ""}, a_link("witness-1.0/PKG-INFO", "x")),
        "does not contain witness-1.0/PKG-INFO",
    ),
]

# Only when the first ones are there, the last one leads outside.
STEPS = [("a", "."), ("b", "a/.."), ("c", "b/..")]

LEAVING: list[tuple[str, dict[str, str], list[tarfile.TarInfo]]] = [
    ("dots", {"witness-1.0/../../outside": "x"}, []),
    ("a symbolic link and what lies below it", {}, [a_link("witness-1.0/link", "../../..")]),
    ("links, each of which stays inside", {}, [a_link(f"witness-1.0/{name}", to) for name, to in STEPS]),
    ("an absolute symbolic link", {}, [a_link("witness-1.0/link", "/etc")]),
    ("a hard link to a file outside", {}, [a_link("witness-1.0/link", "../outside", tarfile.LNKTYPE)]),
    ("a device", {}, [a_link("witness-1.0/null", "", tarfile.CHRTYPE)]),
]


def test_a_good_one_is_unpacked_and_removed_afterwards(tmp_path: Path) -> None:
    sdist = read(write_sdist(tmp_path / NAME, good_members()))
    assert (sdist.folder, sdist.name) == ("witness-1.0", NAME)
    assert sdist.sha256 == hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()
    with unpacked(sdist, None) as tree:
        assert sorted(os.listdir(tree)) == ["PKG-INFO", "pyproject.toml", "witness_backend.py"]
    assert not os.path.exists(tree)
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.skipif(os.name == "nt", reason="unpacks symbolic links")
@pytest.mark.parametrize("has_filters", [False, True], ids=["before 3.11.4", "with filters"])
def test_links_inside_are_unpacked(tmp_path: Path, has_filters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    links = [
        a_link("witness-1.0/docs/readme", "../PKG-INFO"),
        a_link("witness-1.0/info", "witness-1.0/PKG-INFO", tarfile.LNKTYPE),
    ]
    sdist = read(write_sdist(tmp_path / NAME, good_members(), *links))
    with unpacked(sdist, None) as tree:
        assert Path(tree, "docs", "readme").read_text() == Path(tree, "info").read_text() == PKG_INFO


def test_it_is_removed_also_when_the_build_fails(tmp_path: Path) -> None:
    sdist = read(write_sdist(tmp_path / NAME, good_members()))
    with pytest.raises(KeyError), unpacked(sdist, None):
        raise KeyError
    assert os.listdir(tmp_path / "tmp") == []


def test_in_a_named_folder_it_replaces_what_an_earlier_build_unpacked_and_is_kept(tmp_path: Path) -> None:
    sdist = read(write_sdist(tmp_path / NAME, good_members()))
    extract_dir = tmp_path / "there"
    (extract_dir / "witness-1.0").mkdir(parents=True)
    (extract_dir / "witness-1.0" / "stale.py").touch()
    (extract_dir / "beside").touch()
    with unpacked(sdist, str(extract_dir)) as tree:
        assert tree == str(extract_dir / "witness-1.0")
    assert sorted(os.listdir(tree)) == ["PKG-INFO", "pyproject.toml", "witness_backend.py"]
    assert (extract_dir / "beside").exists()


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in BAD_ARCHIVES], ids=[c[0] for c in BAD_ARCHIVES])
def test_what_is_no_sdist_is_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(SdistError) as caught:
        read(make(tmp_path / NAME))
    [line] = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize("name", ["witness.tar.gz", "witness-one.tar.gz", ".tar.gz", "1.0.tar.gz"])
def test_a_name_that_no_sdist_has_is_refused(tmp_path: Path, name: str) -> None:
    archive = write_sdist(tmp_path / name, good_members())
    with pytest.raises(SdistError, match="does not look like a source distribution"):
        read(archive)


@pytest.mark.parametrize(("members", "more"), [case[1:] for case in LEAVING], ids=[case[0] for case in LEAVING])
@pytest.mark.parametrize("is_named", [False, True], ids=["temporary", "named"])
@pytest.mark.parametrize("has_filters", [False, True], ids=["before 3.11.4", "with filters"])
def test_a_member_that_would_leave_its_folder_is_refused(
    tmp_path: Path,
    members: dict[str, str],
    more: list[tarfile.TarInfo],
    is_named: bool,
    has_filters: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    sdist = read(write_sdist(tmp_path / NAME, good_members() | members, *more))
    (tmp_path / "outside").write_text("as it was")
    extract_dir = str(tmp_path / "there") if is_named else None
    with (
        pytest.raises(SdistError, match="failed to unpack source distribution"),
        unpacked(sdist, extract_dir),
    ):
        pytest.fail("the hooks would run now")
    assert (tmp_path / "outside").read_text() == "as it was"
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("compress", [bytes, bz2.compress, lzma.compress], ids=["not", "bz2", "xz"])
def test_one_that_is_compressed_otherwise_is_built_from_as_build_does(
    witness_tree: WitnessTree, compress: Callable[[bytes], bytes]
) -> None:
    archive = uncompressed(witness_tree.control / NAME)
    archive.write_bytes(compress(archive.read_bytes()))
    with tarfile.open(archive) as tar:
        assert "witness-1.0/PKG-INFO" in tar.getnames()
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", source=archive))
    assert os.listdir(witness_tree.out_dir) == ["witness-1.0-py3-none-any.whl"]


def test_a_build_from_a_good_one_writes_the_wheel_beside_it(witness_tree: WitnessTree) -> None:
    archive = write_sdist(witness_tree.control / NAME, good_members())
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", source=archive))
    assert os.listdir(witness_tree.out_dir) == ["witness-1.0-py3-none-any.whl"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "failed to read source distribution"),
        (lambda path: write_sdist(path, {"a/PKG-INFO": "", "b/x": ""}), "single top-level directory"),
        (lambda path: write_sdist(path, good_members(), a_link("witness-1.0/link", "/etc")), "failed to unpack"),
    ],
    ids=["truncated", "two folders", "leaving"],
)
def test_a_build_from_a_bad_one_is_one_error_line_and_runs_no_hook(
    witness_tree: WitnessTree, make: Callable[[Path], Path], message: str
) -> None:
    archive = make(witness_tree.control / NAME)
    [(status, out, error)] = witness_tree.finish(witness_tree.start("--wheel", source=archive))
    assert (status, out) == (1, "")
    [line] = error.splitlines()
    assert line.startswith("ERROR ")
    assert message in line
    assert witness_tree.log() == []
    assert not witness_tree.out_dir.exists()


def test_one_that_unpacks_to_more_than_the_limit_is_refused_by_what_its_header_says(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("witness-1.0/zeros")
    huge.size = 1 << 36
    # The content itself is not there: whoever looked for it would say so.
    archive = written_as_gzip(tmp_path / NAME, huge.tobuf())
    with pytest.raises(
        SdistError, match=r"unpacks to more than 10,485,760 bytes; raise the limit with --max-sdist-size"
    ):
        read_sdist(str(archive), str(tmp_path / "tmp"), 10 << 20)


def test_zeros_behind_the_end_are_not_read_for_ever(tmp_path: Path) -> None:
    archive = write_sdist(tmp_path / NAME, good_members())
    written_as_gzip(archive, gzip.decompress(archive.read_bytes()) + bytes(16 << 20))
    with pytest.raises(SdistError, match="unpacks to more than 8,388,608 bytes"):
        read_sdist(str(archive), str(tmp_path / "tmp"), 8 << 20)


def test_very_many_empty_members_count_and_a_header_is_never_read_into_memory_whole(tmp_path: Path) -> None:
    many = write_sdist(tmp_path / NAME, {f"witness-1.0/{number}": "" for number in range(1000)})
    with pytest.raises(SdistError, match="unpacks to more than"):
        read_sdist(str(many), str(tmp_path / "tmp"), 1 << 20)
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 32
    (tmp_path / "copies").mkdir()
    written_as_gzip(tmp_path / NAME, huge.tobuf())
    with pytest.raises(SdistError, match="a header of 4294967296 bytes"):
        read_sdist(str(tmp_path / NAME), str(tmp_path / "copies"))


def test_the_limit_can_be_lifted(witness_tree: WitnessTree) -> None:
    archive = str(write_sdist(witness_tree.control / NAME, good_members()))
    refused, built, unlimited = (
        witness_tree.start("--wheel", "--max-sdist-size", size, source=archive) for size in ("8K", "1M", "none")
    )
    [(status, _, error)] = witness_tree.finish(refused)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith(f"ERROR source distribution {archive} unpacks to more than")
    assert [status for status, _, _ in witness_tree.finish(built, unlimited)] == [0, 0]
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--max-sdist-size", "much", source=archive))
    assert status == 2
    assert "invalid size value: 'much'" in error


def test_one_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_sdist(tmp_path / NAME, good_members())
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1])
    fstat, seen = os.fstat, list[os.stat_result]()

    def write_on(descriptor: int) -> os.stat_result:
        # Another process that writes the rest as soon as this one has begun to read.
        status = fstat(descriptor)
        if not seen:
            seen.append(status)
            archive.write_bytes(whole)
        return status

    monkeypatch.setattr(os, "fstat", write_on)
    with pytest.raises(SdistError, match="changed while it was read; wait until it is complete"):
        read(archive)


@linux_only
def test_one_that_cannot_be_read_is_one_error_line(witness_tree: WitnessTree) -> None:
    archive = witness_tree.control / NAME
    # A regular file that the kernel lets nobody read at its beginning, not even root.
    archive.symlink_to("/proc/self/mem")
    line = error_line(witness_tree.finish(witness_tree.start("--wheel", source=archive))[0])
    assert line.startswith(f"ERROR failed to read source distribution {archive}: [Errno 5]")

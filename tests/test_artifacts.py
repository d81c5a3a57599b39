"""Artifacts in the out-dir: whole or not there, whoever looks and whatever fails; and what ``--clear`` removes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockbuild.artifacts import (
    check_artifact,
    clear_older,
    describe,
    encoded,
    list_artifacts,
    metadata_of_wheel,
    publish,
    report,
    write_report,
)
from lockbuild.errors import ArtifactError
from machine import Attack, as_root, linux_only
from witness import LOCKBUILD, PATIENCE, WitnessTree, wait_until

WHEEL = "witness-1.0-py3-none-any.whl"
SDIST = "witness-1.0.tar.gz"


def write_wheel(path: Path, content: bytes = b"content") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("witness.py", content)
    return path


def write_sdist(path: Path, cut: int = 0) -> Path:
    """Write an sdist of two members; with ``cut`` the archive in the intact gzip file lacks so many bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("first", "last"):
            info = tarfile.TarInfo(f"witness-1.0/{name}")
            info.size = 600
            archive.addfile(info, io.BytesIO(f"{name} file".encode().ljust(600)))
    # Without the two empty blocks and the padding at its end.
    end = 2 * (512 + 1024)
    path.write_bytes(gzip.compress(content.getvalue()[: end - cut] if cut else content.getvalue(), 0))
    return path


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on another file system than ``tmp_path``: no hard link leads from one to the other."""
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        with _tmpfs(tmp_path / "tmpfs", "64m") as mounted:
            yield mounted
        return
    with tempfile.TemporaryDirectory(dir=shared_memory, prefix="lockbuild-test-") as folder:
        yield Path(folder)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a file system of its own with room for 64 KiB."""
    with _tmpfs(tmp_path / "tiny", "64k") as mounted:
        yield mounted


class _tmpfs:  # noqa: N801 - a context manager that is used like a function
    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self.size = size

    def __enter__(self) -> Path:
        self.folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "lockbuild-test", self.folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"nothing may be mounted here: {mounted.stderr.strip()}")
        return self.folder

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


# Publishes wheels of its own, all with one name, until it is killed or has published as many as it was asked for.
PUBLISHER = """
import os, sys, zipfile
from lockbuild.artifacts import publish
staging, out_dir, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    for name in ("witness-1.0-py3-none-any.whl", f"witness-1.0-{os.getpid()}-py3-none-any.whl"):
        path = os.path.join(staging, name)
        if os.path.exists(path):
            os.unlink(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("witness.py", (b"%d " % os.getpid()) * 20000)
        publish(staging, name, out_dir)
        os.unlink(path)
"""


def test_who_opens_a_wheel_while_ten_processes_publish_never_finds_a_broken_one(tmp_path: Path, out_dir: Path) -> None:
    publishers = []
    for number in range(10):
        folder = tmp_path / f"staging{number}"
        folder.mkdir()
        publishers.append(subprocess.Popen([sys.executable, "-c", PUBLISHER, str(folder), str(out_dir), "15"]))
    reads: set[bytes] = set()
    versions: set[tuple[int, int]] = set()
    try:
        while any(publisher.poll() is None for publisher in publishers):
            for wheel in out_dir.glob("*.whl"):
                with wheel.open("rb") as file:
                    status = os.fstat(file.fileno())
                    versions.add((status.st_ino, status.st_mtime_ns))
                    with zipfile.ZipFile(file) as archive:
                        content = archive.read("witness.py")
                # As a process wrote it: one number, all the way.
                pid = content.split(b" ", 1)[0]
                assert content == (pid + b" ") * 20000
                reads.add(pid)
    finally:
        for publisher in publishers:
            publisher.kill()
            publisher.wait()
    assert [publisher.returncode for publisher in publishers] == [0] * 10
    # The reader has seen files come and go; otherwise this test would have seen nothing.
    assert len(reads) == 10
    assert len(versions) > 20
    assert len(os.listdir(out_dir)) == 11


def test_publishing_keeps_the_file_of_the_staging_folder_and_its_mode(staging: Path, out_dir: Path) -> None:
    wheel = write_wheel(staging / WHEEL)
    wheel.chmod(0o640)
    assert publish(str(staging), WHEEL, str(out_dir)) == str(out_dir / WHEEL)
    assert (out_dir / WHEEL).read_bytes() == wheel.read_bytes()
    assert stat.S_IMODE((out_dir / WHEEL).stat().st_mode) == 0o640


def test_publishing_to_another_file_system_copies_content_and_mode(staging: Path, other_file_system: Path) -> None:
    wheel = write_wheel(staging / WHEEL)
    wheel.chmod(0o640)
    publish(str(staging), WHEEL, str(other_file_system))
    assert os.listdir(other_file_system) == [WHEEL]
    published = other_file_system / WHEEL
    assert published.read_bytes() == wheel.read_bytes()
    assert stat.S_IMODE(published.stat().st_mode) == 0o640


@as_root
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["same file system", "another file system"])
def test_a_setgid_out_dir_gives_its_group_to_artifacts(
    staging: Path, tmp_path: Path, other_file_system: Path, is_elsewhere: bool
) -> None:
    out_dir = (other_file_system if is_elsewhere else tmp_path) / "shared"
    out_dir.mkdir()
    os.chown(out_dir, -1, 64_003)
    out_dir.chmod(0o2775)
    write_wheel(staging / WHEEL).chmod(0o640)
    (staging / "folder").mkdir()
    (staging / "folder" / "file").touch()
    publish(str(staging), WHEEL, str(out_dir))
    assert {path.stat().st_gid for path in out_dir.rglob("*")} == {64_003}
    assert stat.S_IMODE((out_dir / WHEEL).stat().st_mode) == 0o640


@as_root
def test_a_setgid_folder_for_temporary_files_gives_its_group_to_no_artifact(staging: Path, out_dir: Path) -> None:
    os.chown(staging, -1, 64_003)
    staging.chmod(0o2775)
    assert write_wheel(staging / WHEEL).stat().st_gid == 64_003
    publish(str(staging), WHEEL, str(out_dir))
    assert (out_dir / WHEEL).stat().st_gid == os.getegid()


@linux_only
@pytest.mark.parametrize("rules", ["u::rwx,g::r-x,o::-,g:64003:rwx", "u::rw,g::rw,o::-"], ids=["a group", "no umask"])
def test_a_default_acl_of_the_out_dir_holds_for_artifacts(staging: Path, out_dir: Path, rules: str) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("needs setfacl")
    if subprocess.run(["setfacl", "--default", "--modify", rules, out_dir], check=False).returncode:
        pytest.skip("the file system has no ACLs")
    (out_dir / "like").touch()
    write_wheel(staging / WHEEL)
    publish(str(staging), WHEEL, str(out_dir))
    lists = [
        subprocess.run(["getfacl", "-cn", name], cwd=out_dir, capture_output=True, text=True, check=True).stdout
        for name in ("like", WHEEL)
    ]
    assert lists[0] == lists[1]
    assert "group:64003:rwx" in lists[1] or "group::rw-" in lists[1]


def test_a_wheel_whose_metadata_cannot_be_read_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("witness-1.0.dist-info/METADATA", "Name: witness\n" * 20)
    content = wheel.read_bytes()
    directory = content.rindex(b"PK\1\2")
    for offset, value in ((6, 99), (8, 1), (10, 99)):
        # The version of the format, an encrypted member, the method of compression.
        wheel.write_bytes(content[: directory + offset] + bytes([value]) + content[directory + offset + 1 :])
        with pytest.raises(ArtifactError, match=f"{WHEEL}' is not a valid wheel: "):
            metadata_of_wheel(str(wheel))


def test_publishing_replaces_an_older_file_and_who_has_that_open_keeps_it(staging: Path, out_dir: Path) -> None:
    (out_dir / WHEEL).write_text("older")
    write_wheel(staging / WHEEL)
    with (out_dir / WHEEL).open() as file:
        publish(str(staging), WHEEL, str(out_dir))
        assert file.read() == "older"
    assert zipfile.is_zipfile(out_dir / WHEEL)


def test_what_the_backend_left_beside_the_artifact_is_published_first(staging: Path, out_dir: Path) -> None:
    write_wheel(staging / WHEEL)
    (staging / "zz.log").write_text("log")
    (staging / "folder").mkdir()
    (staging / "folder" / "file").write_text("file")
    # The artifact cannot take its place; so what is there by then was published before it.
    (out_dir / WHEEL).mkdir()
    with pytest.raises(IsADirectoryError):
        publish(str(staging), WHEEL, str(out_dir))
    assert sorted(os.listdir(out_dir)) == ["folder", WHEEL, "zz.log"]
    assert (out_dir / "folder" / "file").read_text() == "file"


def test_a_name_as_long_as_a_file_system_allows_can_be_published(staging: Path, out_dir: Path) -> None:
    name = f"{'w' * (255 - len('-1.0-py3-none-any.whl'))}-1.0-py3-none-any.whl"
    write_wheel(staging / name)
    publish(str(staging), name, str(out_dir))
    assert os.listdir(out_dir) == [name]


def big_builds(tree: WitnessTree) -> None:
    """Have the tree's hooks build artifacts that a tiny disk has no room for."""
    with (tree.path / "witness_backend.py").open("a") as file:
        file.write(
            "\n\nsmall_wheel, small_sdist = build_wheel, build_sdist\n\n"
            "def build_wheel(directory, config_settings=None, metadata_directory=None):\n"
            "    name = small_wheel(directory)\n"
            "    with zipfile.ZipFile(os.path.join(directory, name), 'a') as archive:\n"
            "        archive.writestr('big', os.urandom(200_000))\n"
            "    return name\n\n"
            "def build_sdist(directory, config_settings=None):\n"
            "    with open('big', 'wb') as file:\n"
            "        file.write(os.urandom(200_000))\n"
            "    name = small_sdist(directory)\n"
            "    with tarfile.open(os.path.join(directory, name), 'w:gz') as archive:\n"
            "        archive.add('big', 'witness-1.0/big')\n"
            "    return name\n"
        )


@pytest.mark.parametrize("option", ["--wheel", "--sdist"])
def test_on_a_full_disk_nothing_new_appears_and_the_old_file_stays(
    witness_tree: WitnessTree, tiny_disk: Path, option: str
) -> None:
    big_builds(witness_tree)
    for name in (WHEEL, SDIST):
        (tiny_disk / name).write_text(f"the older {name}")
    process = witness_tree.start(option, "--clear", "--report", str(tiny_disk / "report"), out_dir=tiny_disk)
    [(status, out, error)] = witness_tree.finish(process)
    assert status == 1
    assert "Successfully" not in out
    [line] = [line for line in error.splitlines() if not line.startswith("* ")]
    assert line == f"ERROR No space left on device: {str(tiny_disk / (WHEEL if option == '--wheel' else SDIST))!r}"
    assert {path.name: path.read_text() for path in tiny_disk.iterdir()} == {
        name: f"the older {name}" for name in (WHEEL, SDIST)
    }


def test_where_there_is_no_room_for_the_staging_folder_nothing_appears(
    witness_tree: WitnessTree, tiny_disk: Path
) -> None:
    big_builds(witness_tree)
    process = witness_tree.start("--wheel", env={"TMPDIR": str(tiny_disk)})
    [(status, _, error)] = witness_tree.finish(process)
    assert status == 1
    assert "No space left on device" in error
    assert [line for line in error.splitlines() if line.startswith("ERROR")] == error.splitlines()[-1:]
    assert os.listdir(witness_tree.out_dir) == []


def test_a_build_after_the_disk_was_full_succeeds_there(witness_tree: WitnessTree, tiny_disk: Path) -> None:
    (tiny_disk / "filler").write_bytes(bytes(64 << 10))
    [(status, _, _)] = witness_tree.finish(witness_tree.start(out_dir=tiny_disk))
    assert status == 1
    (tiny_disk / "filler").unlink()
    assert os.listdir(tiny_disk) == []
    witness_tree.assert_all_succeed(witness_tree.start(out_dir=tiny_disk))
    assert os.listdir(tiny_disk) == [WHEEL]


def test_a_report_that_finds_no_room_leaves_the_old_one(tiny_disk: Path, staging: Path) -> None:
    artifact = describe(str(write_wheel(staging / WHEEL)), "wheel")
    (tiny_disk / "report.json").write_text("the older report")
    with pytest.raises(OSError, match="No space left on device"):
        write_report(str(tiny_disk / "report.json"), encoded(report([artifact] * 1000)))
    assert {path.name: path.read_text() for path in tiny_disk.iterdir()} == {"report.json": "the older report"}


@as_root
def test_a_copy_into_the_folder_of_another_user_changes_no_file_that_his_links_lead_to(
    tmp_path: Path, other_file_system: Path
) -> None:
    """He waits for the hidden file, and puts a link in its place before it gets its permissions and times."""
    mallory = 64_002
    staging = tmp_path / "staging"
    staging.mkdir()
    write_wheel(staging / WHEEL, os.urandom(1 << 21)).chmod(0o666)
    precious = tmp_path / "precious"
    precious.touch(0o600)
    os.utime(precious, (1_000_000_000, 1_000_000_000))
    out = other_file_system / "out"
    out.mkdir()
    os.chown(out, mallory, mallory)
    os.chown(other_file_system, mallory, mallory)

    def put_link() -> int:
        hidden = [name for name in os.listdir(out) if name.startswith(".") and not os.path.islink(out / name)]
        for name in hidden:
            os.symlink(precious, out / f"{name}.link")
            os.replace(out / f"{name}.link", out / name)
        return len(hidden)

    with Attack(mallory, put_link) as attack:
        for _ in range(60):
            with contextlib.suppress(FileNotFoundError):
                publish(str(staging), WHEEL, str(out))
    assert attack.successes > 5
    status = precious.stat()
    assert (status.st_mode & 0o777, status.st_mtime, status.st_size) == (0o600, 1_000_000_000, 0)


def test_an_artifact_is_on_the_disk_before_it_gets_its_name(
    staging: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, named = [], []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def noting_replace(source: str, target: str, *, src_dir_fd: int | None, dst_dir_fd: int | None) -> None:
        status = os.stat(source, dir_fd=src_dir_fd)
        named.append((status.st_ino, status.st_size))
        assert named == synced
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    write_wheel(staging / WHEEL)
    publish(str(staging), WHEEL, str(out_dir))
    assert len(named) == 1


def test_what_is_copied_has_the_permissions_and_times_of_what_was_built(staging: Path, other_file_system: Path) -> None:
    wheel = write_wheel(staging / WHEEL)
    wheel.chmod(0o640)
    os.utime(wheel, (1_000_000_000, 1_500_000_000))
    status = Path(publish(str(staging), WHEEL, str(other_file_system))).stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o640, 1_500_000_000)


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_a_link_in_the_out_dir_is_replaced_and_not_followed(tmp_path: Path, staging: Path, out_dir: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    write_wheel(staging / WHEEL)
    (staging / "folder").mkdir()
    (staging / "folder" / "file").touch()
    (out_dir / WHEEL).symlink_to(precious)
    publish(str(staging), WHEEL, str(out_dir))
    assert not (out_dir / WHEEL).is_symlink()
    assert precious.read_text() == "precious"
    (out_dir / "folder" / "file").unlink()
    (out_dir / "folder").rmdir()
    (out_dir / "folder").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError, match="folder"):
        publish(str(staging), WHEEL, str(out_dir))
    assert not (tmp_path / "file").exists()


# Reports


REPORT = encoded(report([]))


@as_root
def test_a_report_is_written_into_what_is_no_file(tmp_path: Path) -> None:
    """A device node of the test's own: were the machine's replaced, everything on the machine would suffer."""
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        write_report(str(tmp_path / name), REPORT)
    assert stat.S_ISCHR((tmp_path / "null").lstat().st_mode)
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        write_report(str(tmp_path / "fifo"), REPORT)
        assert reader.communicate(timeout=PATIENCE)[0] == REPORT
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_report_replaces_a_file_and_a_link_to_one_as_build_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("older")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("missing/file")
    for name in ("link", "nowhere"):
        write_report(str(tmp_path / name), REPORT)
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "file").read_text() == "older"
    write_report(str(tmp_path / "file"), REPORT)
    assert {path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {REPORT}
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(str(tmp_path / "folder"), REPORT)


@linux_only
def test_a_report_to_standard_output_that_is_a_file_stands_among_the_other_output(witness_tree: WitnessTree) -> None:
    output = witness_tree.control / "output"
    # Not /dev/stdout itself, which a mistake would replace for everyone on the machine.
    stdout = witness_tree.control / "stdout"
    stdout.symlink_to("/proc/self/fd/1")
    command = ("sh", "-c", f'exec "$@" > {output}', "sh", *LOCKBUILD)
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "--report", str(stdout), command=command))
    assert status == 0, error
    *described, last = output.read_text().splitlines(keepends=True)
    assert last == f"Successfully built {WHEEL}\n"
    assert json.loads("".join(described))["artifacts"][0]["name"] == WHEEL
    assert stdout.is_symlink()


def test_a_report_on_standard_output_is_all_that_is_written_there(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook("print('from a hook', flush=True)\nsubprocess.run(['echo', 'from a child'])")
    for _ in range(2):
        [(status, out, error)] = witness_tree.finish(witness_tree.start("--wheel", "--report", "-"))
        assert status == 0, error
        assert [artifact["name"] for artifact in json.loads(out)["artifacts"]] == [WHEEL]
        for text in ("from a hook\n", "from a child\n", f"Successfully built {WHEEL}\n"):
            assert text in error
    assert not (witness_tree.path / "-").exists()
    assert not Path("-").exists()


def test_an_artifact_is_described_as_it_is(staging: Path, tmp_path: Path) -> None:
    wheel = write_wheel(staging / WHEEL)
    artifact = describe(str(wheel), "wheel")
    content = wheel.read_bytes()
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert (artifact.name, artifact.path, artifact.kind, artifact.size) == (WHEEL, str(wheel), "wheel", len(content))
    write_report(str(tmp_path / "report.json"), encoded(report([artifact])))
    [described] = json.loads((tmp_path / "report.json").read_text())["artifacts"]
    assert described["hashes"] == {"sha256": artifact.sha256}


def cut_short(path: Path, length: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-length])


def damage(path: Path) -> None:
    # Stored, not compressed, so that only the checksum at the end tells.
    content = path.read_bytes()
    path.write_bytes(content.replace(b"last file", b"lost file"))


def make_link_outside(path: Path) -> None:
    write_wheel(path.parent.parent / "elsewhere.whl")
    path.symlink_to("../elsewhere.whl")


BAD_ARTIFACTS: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("nothing there", WHEEL, lambda _: None, "there is no such file"),
    ("empty wheel", WHEEL, Path.touch, "cannot be read"),
    ("text as wheel", WHEEL, lambda path: path.write_text("text"), "cannot be read"),
    ("wheel cut short", WHEEL, lambda path: cut_short(write_wheel(path)), "cannot be read"),
    ("empty sdist", SDIST, Path.touch, "cannot be read"),
    ("sdist cut short behind its first member", SDIST, lambda path: cut_short(write_sdist(path)), "cannot be read"),
    ("sdist that lacks its checksum", SDIST, lambda path: cut_short(write_sdist(path), 6), "cannot be read"),
    ("sdist that was damaged", SDIST, lambda path: damage(write_sdist(path)), "cannot be read"),
    ("sdist whose last file is incomplete", SDIST, lambda path: write_sdist(path, 700), "cannot be read"),
    ("text as sdist", SDIST, lambda path: path.write_text("text"), "cannot be read"),
    ("a folder", WHEEL, Path.mkdir, "there is no such file"),
    ("a link to a file elsewhere", WHEEL, make_link_outside, "not in the folder that it was given"),
]


@pytest.mark.parametrize(("name", "make", "message"), [c[1:] for c in BAD_ARTIFACTS], ids=[c[0] for c in BAD_ARTIFACTS])
def test_an_artifact_that_is_not_whole_is_refused(
    staging: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(staging / name)
    with pytest.raises(ArtifactError) as caught:
        check_artifact(str(staging), name, "wheel" if name == WHEEL else "sdist")
    assert message in str(caught.value).splitlines()[0]


@pytest.mark.parametrize("returned", ["../other.whl", "/etc/passwd", "folder/x.whl", "", "."])
def test_an_artifact_elsewhere_is_refused(staging: Path, returned: str) -> None:
    (staging / "folder").mkdir()
    write_wheel(staging / "folder" / "x.whl")
    write_wheel(staging.parent / "other.whl")
    with pytest.raises(ArtifactError):
        check_artifact(str(staging), returned, "wheel")


def test_a_whole_artifact_is_accepted_by_its_name_and_by_its_path(staging: Path) -> None:
    wheel, sdist = write_wheel(staging / WHEEL), write_sdist(staging / SDIST)
    assert check_artifact(str(staging), WHEEL, "wheel") == WHEEL
    assert check_artifact(str(staging), str(wheel), "wheel") == WHEEL
    assert check_artifact(str(staging), SDIST, "sdist") == SDIST
    assert check_artifact(str(staging), str(sdist), "sdist") == SDIST


OURS_AND_OLDER = ["witness-0.9-py3-none-any.whl", "witness-0.9-2-cp311-cp311-linux_x86_64.whl", "witness-0.9.tar.gz"]
OTHERS = ["witness_too-0.9-py3-none-any.whl", "witness-too-0.9.tar.gz", "wit-0.9.tar.gz", "other-1.0-py3-none-any.whl"]
NO_ARTIFACTS = ["witness-0.9.zip", "witness-0.9-py3-none-any.whl.asc", "witness.txt", ".witness-0.9.tar.gz", "witness"]


def fill(out_dir: Path, names: list[str]) -> None:
    out_dir.mkdir(exist_ok=True)
    for name in names:
        (out_dir / name).write_text(f"older {name}")


def test_clear_removes_older_artifacts_of_the_project_and_nothing_else(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, [WHEEL, *OURS_AND_OLDER, *OTHERS, *NO_ARTIFACTS])
    (witness_tree.out_dir / "witness-0.8-py3-none-any.whl").mkdir()
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--clear"))
    left = [WHEEL, "witness-0.8-py3-none-any.whl", *OTHERS, *NO_ARTIFACTS]
    assert sorted(os.listdir(witness_tree.out_dir)) == sorted(left)
    assert zipfile.is_zipfile(witness_tree.out_dir / WHEEL)


def test_without_clear_nothing_is_removed(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, [*OURS_AND_OLDER, *OTHERS])
    witness_tree.assert_all_succeed(witness_tree.start("--wheel"))
    assert sorted(os.listdir(witness_tree.out_dir)) == sorted([WHEEL, *OURS_AND_OLDER, *OTHERS])


def test_clear_keeps_both_artifacts_of_a_build_of_both(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, OURS_AND_OLDER)
    witness_tree.assert_all_succeed(witness_tree.start("--clear"))
    assert sorted(os.listdir(witness_tree.out_dir)) == [WHEEL, SDIST]


def test_clear_removes_nothing_when_the_build_fails(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, [WHEEL, *OURS_AND_OLDER])
    with (witness_tree.path / "witness_backend.py").open("a") as file:
        file.write("\n\ndef build_wheel(*_):\n    raise ValueError('no')\n")
    [(status, _, _)] = witness_tree.finish(witness_tree.start("--wheel", "--clear"))
    assert status == 1
    assert {path.name: path.read_text() for path in witness_tree.out_dir.iterdir()} == {
        name: f"older {name}" for name in (WHEEL, *OURS_AND_OLDER)
    }


def test_clear_removes_nothing_before_all_that_is_new_is_complete(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, OURS_AND_OLDER)
    sdist_gate, wheel_gate = witness_tree.make_gate("sdist"), witness_tree.make_gate("wheel")
    with (witness_tree.path / "witness_backend.py").open("a") as file:
        file.write(
            "\n\ninner = build_wheel\n\n"
            "def build_wheel(*arguments):\n"
            f"    os.environ['WITNESS_GATE'] = {str(wheel_gate.path)!r}\n"
            "    return inner(*arguments)\n"
        )
    process = witness_tree.start("--clear", gate=sdist_gate.path)
    witness_tree.wait_for_entry("build_sdist")
    assert sorted(os.listdir(witness_tree.out_dir)) == sorted(OURS_AND_OLDER)
    sdist_gate.open()
    witness_tree.wait_for_entry("build_wheel")
    # The sdist is complete, the wheel is not.
    assert sorted(os.listdir(witness_tree.out_dir)) == sorted([SDIST, *OURS_AND_OLDER])
    wheel_gate.open()
    witness_tree.assert_all_succeed(process)
    assert sorted(os.listdir(witness_tree.out_dir)) == [WHEEL, SDIST]


def test_clear_keeps_what_another_build_has_put_there_meanwhile(witness_tree: WitnessTree, staging: Path) -> None:
    fill(witness_tree.out_dir, OURS_AND_OLDER)
    gate = witness_tree.make_gate()
    process = witness_tree.start("--wheel", "--clear", gate=gate.path)
    witness_tree.wait_for_entry()
    # A new one, and a new one under an old name.
    newer = "witness-1.1-py3-none-any.whl"
    for name in (newer, OURS_AND_OLDER[0]):
        write_wheel(staging / name)
        publish(str(staging), name, str(witness_tree.out_dir))
        (staging / name).unlink()
    gate.open()
    witness_tree.assert_all_succeed(process)
    assert sorted(os.listdir(witness_tree.out_dir)) == sorted([WHEEL, newer, OURS_AND_OLDER[0]])


def test_builds_that_clear_one_out_dir_at_once_leave_exactly_one_wheel(witness_tree: WitnessTree) -> None:
    # So many that removing them takes a while, in which the others are at it, too.
    fill(witness_tree.out_dir, [WHEEL, *(f"witness-0.{number}-py3-none-any.whl" for number in range(2000))])
    options = ("--wheel", "--clear", "--lock", "never")
    gates = [witness_tree.make_gate(f"gate{number}") for number in range(4)]
    builds = [witness_tree.start(*options, gate=gate.path) for gate in gates]
    witness_tree.wait_for_entry(count=4)
    # All of them have seen the older files, and now remove them together.
    for gate in gates:
        gate.open()
    for status, _, error in witness_tree.finish(*builds):
        assert status == 0, error
    assert os.listdir(witness_tree.out_dir) == [WHEEL]


def test_clear_in_an_out_dir_that_is_not_there_yet_makes_it(witness_tree: WitnessTree) -> None:
    witness_tree.assert_all_succeed(witness_tree.start("--wheel", "--clear", out_dir=witness_tree.control / "a" / "b"))
    assert os.listdir(witness_tree.control / "a" / "b") == [WHEEL]


def test_there_always_is_a_wheel_for_who_looks_while_builds_clear_the_out_dir(witness_tree: WitnessTree) -> None:
    fill(witness_tree.out_dir, [OURS_AND_OLDER[0]])
    listings = 0
    build = witness_tree.start("--wheel", "--clear")
    while build.poll() is None:
        listings += 1
        assert list(witness_tree.out_dir.glob("*.whl"))
    witness_tree.assert_all_succeed(build)
    assert listings > 10
    assert os.listdir(witness_tree.out_dir) == [WHEEL]


@pytest.mark.parametrize(
    ("built", "older", "is_cleared"),
    [
        ("My_Project-1.0-py3-none-any.whl", "my_project-0.9-py3-none-any.whl", True),
        ("my_project-1.0-py3-none-any.whl", "My.Project-0.9.tar.gz", True),
        ("my_project-1.0-py3-none-any.whl", "my-project-0.9.tar.gz", True),
        ("my_project-1.0.tar.gz", "my__project-0.9.tar.gz", True),
        ("my_project-1.0-py3-none-any.whl", "my_project-0.9-7-cp311-abi3-linux_x86_64.whl", True),
        ("my_project-1.0-py3-none-any.whl", "my_project-1.0+local.1-py3-none-any.whl", True),
        ("my_project-1.0-py3-none-any.whl", "my_project-1.0.dev3.tar.gz", True),
        ("my-1.0-py3-none-any.whl", "my-project-0.9.tar.gz", False),
        ("my-1.0-py3-none-any.whl", "my_project-0.9-py3-none-any.whl", False),
        ("my_project-1.0-py3-none-any.whl", "my-0.9.tar.gz", False),
        ("my_project-1.0-py3-none-any.whl", "myproject-0.9.tar.gz", False),
        # Somebody's own archive, whose name no artifact has.
        ("my-1.0-py3-none-any.whl", "my-backup.tar.gz", False),
        ("my-1.0-py3-none-any.whl", "my.tar.gz", False),
    ],
)
def test_names_are_compared_as_package_indexes_compare_them(
    out_dir: Path, built: str, older: str, is_cleared: bool
) -> None:
    fill(out_dir, [older])
    before = list_artifacts(str(out_dir))
    fill(out_dir, [built])
    clear_older(str(out_dir), before, [built])
    assert (out_dir / older).exists() != is_cleared
    assert (out_dir / built).exists()


def test_a_reader_of_the_out_dir_of_real_builds_never_finds_a_broken_wheel(witness_tree: WitnessTree) -> None:
    builds = [witness_tree.start("--wheel", "--lock", "never") for _ in range(6)]
    wait_until(lambda: (witness_tree.out_dir / WHEEL).exists(), "the first wheel")
    while any(build.poll() is None for build in builds):
        for wheel in witness_tree.out_dir.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                assert archive.testzip() is None
                assert len(archive.namelist()) == 4
    for build in builds:
        _, error = build.communicate(timeout=PATIENCE)
        assert build.returncode == 0, error
    assert os.listdir(witness_tree.out_dir) == [WHEEL]

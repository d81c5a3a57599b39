"""Private views: hooks write to the tree that they see, the tree stays as it is, and the artifact is the same."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machine import (
    PublicPlace,
    User,
    after_setup,
    as_root,
    bind,
    error_line,
    public_place,
    read_message,
    wait_until_it_waits,
)
from witness import LOCKBUILD, WitnessTree

pytestmark = as_root

ALICE = 64_001
NOBODY = 65_534
PRIVATE = ("--wheel", "--tree", "private")

# What the hook of a tree does before it builds: it writes at the top and in a folder, removes, renames and changes.
WRITES = """
os.makedirs("build/lib", exist_ok=True)
open("build/lib/made", "w").close()
open("src/made", "w").close()
os.rename("src/module.py", "src/renamed.py")
os.remove("data.txt")
with open("pyproject.toml", "a") as file:
    file.write("# changed")
tell("seen", repr(sorted(os.listdir("."))))
"""


@pytest.fixture
def place() -> Iterator[PublicPlace]:
    with public_place() as made:
        yield made


def writing(tree: WitnessTree, body: str = WRITES) -> WitnessTree:
    """Have the hook of a tree write to it."""
    (tree.path / "src").mkdir()
    (tree.path / "src" / "module.py").write_text("x = 1\n")
    (tree.path / "data.txt").write_text("data\n")
    tree.use_hook(body)
    return tree


@pytest.fixture
def tree(witness_tree: WitnessTree) -> WitnessTree:
    """A tree whose hook writes to it."""
    return writing(witness_tree)


def contents(folder: Path) -> dict[str, tuple[bytes | None, int, int]]:
    """Return all that is in a folder: contents, modes and times of change."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (content, status.st_mode, status.st_mtime_ns)
    return found


def build(tree: WitnessTree, *options: str, command: tuple[str, ...] = LOCKBUILD, **more: object) -> str:
    """Build a wheel of a tree in a private view; return what was said on standard error."""
    [(status, _, error)] = tree.finish(tree.start(*(options or PRIVATE), command=command, **more))  # type: ignore[arg-type]
    assert status == 0, error
    return error


def test_a_tree_is_what_it_was_and_hooks_have_seen_it_so(tree: WitnessTree) -> None:
    before, names = contents(tree.path), {path.name for path in tree.path.iterdir()}
    build(tree)
    assert contents(tree.path) == before
    assert set(eval(tree.told("seen"))) - {"__pycache__"} == (names | {"build"}) - {"data.txt"}
    assert [path.name for path in tree.out_dir.iterdir()] == ["witness-1.0-py3-none-any.whl"]


def test_what_one_hook_writes_the_next_one_sees(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook('open("early", "w").close()', "get_requires_for_build_wheel")
    backend = witness_tree.path / "variant.py"
    backend.write_text(
        backend.read_text() + "\ndef build_wheel(*arguments):\n    os.stat('early')\n"
        "    return witness_backend.build_wheel(*arguments)\n"
    )
    build(witness_tree)
    assert not (witness_tree.path / "early").exists()


@pytest.mark.slow
def test_an_artifact_is_that_of_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "project"
    shutil.copytree(Path(__file__).parents[2] / "examples" / "setuptools", tree)
    environ = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    for mode in ("private", "shared"):
        words = (*LOCKBUILD, "--sdist", "--wheel", "--tree", mode, "--out-dir", str(tmp_path / mode), str(tree))
        subprocess.run(words, env=environ, check=True, capture_output=True)
    private, shared = (sorted((tmp_path / mode).iterdir()) for mode in ("private", "shared"))
    assert [path.name for path in private] == [path.name for path in shared]
    assert private[0].read_bytes() == shared[0].read_bytes()
    # setuptools gives the members of an sdist the time of the build.
    assert members(private[1]) == members(shared[1])


def members(sdist: Path) -> list[tuple[str, int, int, int, bytes | None]]:
    with tarfile.open(sdist) as opened:
        return [
            (each.name, each.mode, each.uid, each.gid, file.read() if (file := opened.extractfile(each)) else None)
            for each in opened
        ]


def test_the_out_dir_in_the_tree_gets_the_artifact_and_is_empty_in_the_view(witness_tree: WitnessTree) -> None:
    witness_tree.use_hook('tell("seen", repr(os.listdir("dist")))')
    dist = witness_tree.path / "dist"
    dist.mkdir()
    (dist / "older-1.0.tar.gz").touch()
    build(witness_tree, out_dir=dist)
    assert witness_tree.told("seen") == "[]"
    assert {path.name for path in dist.iterdir()} == {"older-1.0.tar.gz", "witness-1.0-py3-none-any.whl"}
    assert not (witness_tree.path / "build").exists()


@pytest.mark.parametrize("name", [".", "src"])
def test_an_out_dir_with_sources_in_it_is_refused(tree: WitnessTree, name: str) -> None:
    line = error_line(tree.finish(tree.start(*PRIVATE, out_dir=tree.path / name))[0])
    assert "holds other files than artifacts" in line


@pytest.mark.parametrize("name", ["plain", "with, comma:colon", "back\\slash", "new\nline", 'quo"te', "ünï ☃"])
def test_a_tree_may_have_any_name(tree: WitnessTree, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tree.path.rename(path)
    before = contents(path)
    build(WitnessTree(path, tree.control, tree.started), out_dir=path / "dist")
    shutil.rmtree(path / "dist")
    assert {**contents(path), ".": None} == {**before, ".": None}


def test_the_cache_and_the_folder_for_temporary_files_may_be_in_the_tree(tree: WitnessTree) -> None:
    (tree.path / ".tmp").mkdir()
    build(tree, env={"TMPDIR": str(tree.path / ".tmp"), "LOCKBUILD_CACHE_DIR": str(tree.path / ".cache")})
    assert (tree.path / ".cache" / "locks").is_dir()
    assert not [path for path in (tree.path / ".tmp").iterdir() if not path.name.startswith("uv-setuptools-")]


def test_a_view_leaves_nothing_behind(tree: WitnessTree, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    build(tree, env={"TMPDIR": str(folder)})
    assert not [path for path in folder.iterdir() if not path.name.startswith("uv-setuptools-")]
    assert str(tree.path) not in Path("/proc/self/mountinfo").read_text()


def start_at_a_gate(tree: WitnessTree, *options: str, number: int = 0) -> subprocess.Popen[str]:
    gate = tree.make_gate(f"gate{number}")
    return tree.start(*options, gate=gate.path, out_dir=tree.control / f"out{number}")


def test_builds_with_views_run_together_and_never_beside_one_in_the_tree(witness_tree: WitnessTree) -> None:
    first = [start_at_a_gate(witness_tree, *PRIVATE, number=number) for number in range(2)]
    witness_tree.wait_for_entry(count=2)
    exclusive = start_at_a_gate(witness_tree, number=2)
    assert {str(build.pid) for build in first} <= set(re.findall(r"\d+", wait_until_it_waits(exclusive)))
    late = start_at_a_gate(witness_tree, *PRIVATE, number=3)
    read_message(late, f"* Waiting for {exclusive.pid}, which is waiting for the lock on ")
    for number in range(4):
        with (witness_tree.control / f"gate{number}").open("w"):
            pass
    witness_tree.assert_all_succeed()
    assert len([line for line in witness_tree.log() if line[0] == "overlap"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(3))
def test_a_storm_of_both_kinds(witness_tree: WitnessTree, round_: int) -> None:
    modes = ["private", "shared", "auto"] * 4
    random.Random(round_).shuffle(modes)
    for number, mode in enumerate(modes):
        witness_tree.start("--wheel", "--tree", mode, out_dir=witness_tree.control / f"out{number}")
    witness_tree.assert_all_succeed()
    assert {path.name for path in witness_tree.path.iterdir()} >= {"witness_backend.py"}


@pytest.mark.slow
def test_a_killed_frontend_ends_its_hook_and_frees_its_share(witness_tree: WitnessTree) -> None:
    killed = start_at_a_gate(witness_tree, *PRIVATE)
    hook = witness_tree.wait_for_entry()
    killed.send_signal(signal.SIGKILL)
    build(witness_tree, "--wheel", out_dir=witness_tree.control / "other")
    assert not Path(f"/proc/{hook}").exists()
    witness_tree.assert_no_overlap()


def test_a_hook_that_builds_its_own_tree_goes_on_in_its_view(witness_tree: WitnessTree) -> None:
    out_dir = witness_tree.control / "nested"
    words = [*LOCKBUILD, "-n", "--wheel", "--lock-timeout", "5", "--out-dir", str(out_dir), str(witness_tree.path)]
    # The nested build is outside of the witness: it is no overlap.
    witness_tree.use_backend(
        "nesting",
        "import os, subprocess, witness_backend\nfrom witness_backend import *\n\n"
        "def build_wheel(*arguments):\n"
        "    if 'NESTED' not in os.environ:\n"
        "        open('written', 'w').close()\n"
        f"        subprocess.run({words!r}, check=True, env=os.environ | {{'NESTED': '1'}})\n"
        "    else:\n        os.stat('written')\n"
        "    return witness_backend.build_wheel(*arguments)\n",
    )
    build(witness_tree)
    assert list(out_dir.iterdir())
    assert not (witness_tree.path / "written").exists()


def test_an_editable_wheel_is_made_in_the_tree(witness_tree: WitnessTree) -> None:
    words = f"{str(witness_tree.path)!r}, ['editable'], {str(witness_tree.out_dir)!r}"
    source = f"import lockbuild; lockbuild.build({words}, isolation=False, tree='private')"
    backend = witness_tree.path / "witness_backend.py"
    backend.write_text(
        backend.read_text() + "\ndef build_editable(*arguments):\n    open('in-the-tree', 'w').close()\n"
        "    return build_wheel(*arguments)\n"
    )
    [(status, _, error)] = witness_tree.finish(witness_tree.start_process(sys.executable, "-c", source))
    assert status == 0, error
    assert (witness_tree.path / "in-the-tree").exists()


def as_ignored(tree: WitnessTree) -> None:
    """Make a tree a work tree of git with a file that is ignored, and one that is new."""
    for name in ("ignored/deep", "kept"):
        (tree.path / name).mkdir(parents=True)
        (tree.path / name / "file").touch()
    (tree.path / ".gitignore").write_text("ignored\nkept/*.tmp\n")
    (tree.path / "kept" / "old.tmp").touch()
    (tree.path / "kept" / "only-ignored").mkdir()
    (tree.path / "kept" / "only-ignored" / "ignored").touch()
    subprocess.run(["git", "init", "--quiet", tree.path], check=True)
    tree.use_hook('tell("seen", repr([os.path.exists("ignored"), os.listdir("kept")]))')


def test_in_a_clean_view_there_is_nothing_that_git_ignores(witness_tree: WitnessTree) -> None:
    as_ignored(witness_tree)
    build(witness_tree, "--wheel", "--tree", "clean")
    assert witness_tree.told("seen") == "[False, ['file']]"
    assert (witness_tree.path / "ignored" / "deep" / "file").exists()
    assert (witness_tree.path / "kept" / "old.tmp").exists()


def test_git_finds_the_repository_around_a_tree(witness_tree: WitnessTree) -> None:
    subprocess.run(["git", "init", "--quiet", witness_tree.path.parent], check=True)
    words = ["git", "-c", "safe.directory=*", "rev-parse", "--show-toplevel"]
    witness_tree.use_hook(f'import subprocess; tell("seen", subprocess.check_output({words!r}, text=True).strip())')
    build(witness_tree)
    assert witness_tree.told("seen") == str(witness_tree.path.parent)


def test_a_clean_view_of_what_is_no_work_tree_is_an_error(witness_tree: WitnessTree) -> None:
    line = error_line(witness_tree.finish(witness_tree.start("--wheel", "--tree", "clean"))[0])
    assert "git cannot list the files that it ignores" in line
    assert "use --tree shared" in line


def test_a_tree_that_is_read_only_is_built(tree: WitnessTree) -> None:
    build(tree, command=after_setup(bind(tree.path, tree.path, "ro")))


def on_tmpfs(tree: WitnessTree, folder: Path) -> str:
    return f"mount -t tmpfs tmpfs {folder}\ncp -a {tree.path}/. {folder}\nmount --bind {folder} {tree.path}"


def on_overlay(tree: WitnessTree, folder: Path) -> str:
    """Return a script after which the tree and the folder for temporary files are on an overlay, as in a container."""
    made = " ".join(f"{folder}/{name}" for name in ("l/tree", "l/tmp", "u", "w", "m"))
    options = f"lowerdir={folder}/l,upperdir={folder}/u,workdir={folder}/w"
    return (
        f"mount -t tmpfs tmpfs {folder}\nmkdir -p {made}\ncp -a {tree.path}/. {folder}/l/tree\n"
        f"mount -t overlay overlay -o {options} {folder}/m\nmount --bind {folder}/m/tree {tree.path}\n"
        f"export TMPDIR={folder}/m/tmp"
    )


def on_image(kind: str) -> Callable[[WitnessTree, Path], str]:
    def script(tree: WitnessTree, folder: Path) -> str:
        image = shlex.quote(str(tree.control / "image"))
        return (
            f"truncate -s 400M {image}\nmkfs.{kind} -q {image} 2>&1 >/dev/null\nmount -o loop {image} {folder}\n"
            f"mkdir {folder}/tree {folder}/tmp\ncp -a {tree.path}/. {folder}/tree\n"
            f"mount --bind {folder}/tree {tree.path}\nexport TMPDIR={folder}/tmp"
        )

    return script


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    [on_tmpfs, on_overlay, on_image("ext4"), on_image("xfs"), on_image("btrfs")],
    ids=lambda made: made.__qualname__,
)
def test_a_tree_may_be_on_any_file_system(
    tree: WitnessTree, tmp_path: Path, setup: Callable[[WitnessTree, Path], str]
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    error = build(tree, command=after_setup(setup(tree, folder)))
    assert "no private view" not in error


def test_a_mount_inside_the_tree_is_refused_by_name(tree: WitnessTree) -> None:
    inner = tree.path / "src"
    command = after_setup(f"mount -t tmpfs tmpfs {inner}")
    line = error_line(tree.finish(tree.start(*PRIVATE, command=command))[0])
    assert f"{inner} is a mount of its own" in line


# Root in a user namespace in which there may be no more mount namespaces.
WITHOUT_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "sh", "-ec"),
    'echo 0 > /proc/sys/user/max_mnt_namespaces; exec "$@"',
    *("sh", *LOCKBUILD),
)


def test_where_there_are_no_namespaces_private_is_an_error_and_auto_builds_in_the_tree(tree: WitnessTree) -> None:
    line = error_line(tree.finish(tree.start(*PRIVATE, command=WITHOUT_NAMESPACES))[0])
    assert "this user may not have a mount namespace" in line
    assert line.endswith("use --tree shared")
    assert not tree.out_dir.exists()
    error = build(tree, "--wheel", "-v", "--tree", "auto", command=WITHOUT_NAMESPACES)
    assert "Building in the tree itself: this user may not have a mount namespace" in error
    assert (tree.path / "src" / "made").exists()


def start_as(user: User, tree: WitnessTree, *options: str) -> tuple[int, str, str]:
    [result] = tree.finish(tree.start(*options, command=user.lockbuild, env=user.environ, out_dir=user.folder / "out"))
    return result


def hand_over(tree: Path, owner: int) -> None:
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, owner, owner)
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize(
    ("number", "owner"),
    [(ALICE, ALICE), (ALICE, 0), (NOBODY, 0)],
    ids=["own tree", "another user's tree", "nobody in another user's tree"],
)
def test_an_ordinary_user_has_a_view_and_leaves_nothing_behind(place: PublicPlace, number: int, owner: int) -> None:
    # Files of other users cannot be changed in a view, only removed and replaced.
    body = WRITES if owner else 'open("src/made", "w").close(); os.remove("data.txt"); open("made", "w").close()'
    tree = writing(place.tree, body)
    hand_over(tree.path, owner)
    before = contents(tree.path)
    user = place.user(number)
    status, _, error = start_as(user, tree, *PRIVATE)
    assert status == 0, error
    assert contents(tree.path) == before
    left = [path for path in (user.folder / "tmp").iterdir() if not path.name.startswith("uv-setuptools-")]
    assert not left


def test_a_hook_of_an_ordinary_user_has_no_powers_in_its_view(place: PublicPlace) -> None:
    place.tree.use_hook('tell("powers", open("/proc/self/status").read())')
    user = place.user(ALICE)
    status, _, error = start_as(user, place.tree, *PRIVATE)
    assert status == 0, error
    for name in ("CapInh", "CapPrm", "CapEff"):
        assert f"{name}:\t0000000000000000" in place.tree.told("powers")


def test_a_command_runs_in_a_view(tree: WitnessTree) -> None:
    before = contents(tree.path)
    words = (sys.executable, "-m", "lockbuild.commands.run", "--tree", "private", "-C", str(tree.path), "--")
    process = tree.start_process(*words, "sh", "-c", "rm -r src; touch made; ls; exit 7")
    [(status, out, _)] = tree.finish(process)
    assert status == 7
    assert "made" in out.split()
    assert "src" not in out.split()
    assert contents(tree.path) == before


def test_the_tree_and_a_variable_choose_the_mode(tree: WitnessTree) -> None:
    before = contents(tree.path)
    build(tree, "--wheel", env={"LOCKBUILD_TREE": "private"})
    assert contents(tree.path) == before
    with (tree.path / "pyproject.toml").open("a") as file:
        file.write('[tool.lockbuild]\ntree = "private"\n')
    before = contents(tree.path)
    build(tree, "--wheel")
    assert contents(tree.path) == before


def test_a_view_is_of_the_tree_that_is_locked(tree: WitnessTree) -> None:
    """While the build waits, another tree comes to the path. The view was mounted before."""
    holder = tree.start_process("flock", str(tree.path), "sh", "-c", "echo held; read line", stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiter = tree.start(*PRIVATE)
    wait_until_it_waits(waiter)
    moved = tree.path.with_name("moved")
    tree.path.rename(moved)
    shutil.copytree(moved, tree.path)
    holder.communicate("\n")
    line = error_line(tree.finish(waiter)[0])
    assert "was moved, replaced or removed" in line

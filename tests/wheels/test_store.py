"""The store of unpacked wheels: complete or absent, unpacked once, and never handed out with an edit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lockbuild.events import Reporter
from lockbuild.garbage_collection import list_unpacked_wheels, prune_unpacked_wheels
from lockbuild.paths import wheel_folder
from lockbuild.wheels import install_wheels
from lockbuild.wheels.store import WheelStore
from lockbuild.wheels.unpack import UnpackedWheel
from wheelhouse import Wheelhouse, installing_up_to, site_packages
from witness import PATIENCE, wait_until

_ADD = """
import sys
from lockbuild.events import Reporter
from lockbuild.paths import wheel_folder
from lockbuild.wheels.store import WheelStore
print(WheelStore(wheel_folder(None), None, None, Reporter()).add([sys.argv[1]])[0].path)
"""


def store() -> Path:
    return Path(os.environ["LOCKBUILD_CACHE_DIR"]) / "wheels"


def add(wheel: Path) -> UnpackedWheel:
    [unpacked_wheel] = WheelStore(wheel_folder(None), None, None, Reporter()).add([str(wheel)])
    return unpacked_wheel


def unpacked() -> list[Path]:
    """Return the folders of unpacked files, complete or not."""
    return [path for path in store().glob("*/*") if path.is_dir()]


def adding(wheel: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _ADD, str(wheel)], stdout=subprocess.PIPE, text=True)


def test_processes_that_need_one_wheel_at_once_unpack_it_once(house: Wheelhouse) -> None:
    wheel = house.add_wheel("large", files={f"large/part{n}.py": f"VALUE = {n}\n" for n in range(500)})
    processes = [adding(wheel) for _ in range(4)]
    paths = {process.communicate(timeout=PATIENCE)[0].strip() for process in processes}
    assert paths == {str(path) for path in unpacked()}
    assert len(paths) == 1


def test_a_wheel_whose_unpacking_was_killed_is_not_there_and_is_unpacked_again(
    house: Wheelhouse, environment: Path
) -> None:
    files = {f"large/part{n:04}.py": f"VALUE = {n}\n" for n in range(2000)}
    wheel = house.add_wheel("large", files=files)
    killed = adding(wheel)
    wait_until(lambda: list(store().glob("*/*/purelib/large/part0010.py")), "the unpacking")
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    [half] = unpacked()
    assert not (half.parent / "manifest.json").exists()
    install_wheels([wheel], environment)
    assert len(list((site_packages(environment) / "large").iterdir())) == 2000
    [whole] = unpacked()
    assert whole != half


def _edit(file: Path) -> None:
    file.write_text("VALUE = 2\n")


def _append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("MORE = 1\n")


def _change_mode(file: Path) -> None:
    file.chmod(0o700)


def _remove_from_store(file: Path) -> None:
    [path] = store().rglob(file.name)
    path.unlink()


def _change_time(file: Path) -> None:
    os.utime(file, (1, 1))


@pytest.mark.parametrize("change", [_edit, _append, _change_mode, _change_time, _remove_from_store])
def test_a_file_that_was_changed_through_its_link_is_not_handed_out_again(
    house: Wheelhouse, make_environment: Callable[[str], Path], change: Callable[[Path], None]
) -> None:
    wheel = house.add_wheel("alpha", files={"alpha.py": "VALUE = 1\n", "beside.py": ""})
    first, second, third = (site_packages(make_environment(name)) / "alpha.py" for name in ("one", "two", "three"))
    install_wheels([wheel], first.parents[3], link_mode="hardlink")
    mode = first.stat().st_mode
    [before] = unpacked()
    change(first)
    for file in (second, third):
        install_wheels([wheel], file.parents[3], link_mode="hardlink")
        assert file.read_text() == "VALUE = 1\n"
        assert file.stat().st_mode == mode
    [after] = unpacked()
    # Contents that are still right are not unpacked again.
    assert (after == before) == (change in (_change_mode, _change_time))
    assert second.samefile(third)
    assert not second.samefile(first)


def test_wheels_that_are_removed_while_they_are_linked_are_unpacked_again(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha", files={"alpha/one/file.py": "", "alpha/two/file.py": ""})
    installing = installing_up_to("one", environment, [wheel])
    [before] = unpacked()
    assert prune_unpacked_wheels(-1) == 1
    assert not before.exists()
    # Once more for the second time that this file is linked.
    out, _ = installing.communicate("\n\n", timeout=PATIENCE)
    assert installing.returncode == 0, out
    site = site_packages(environment)
    assert all((site / "alpha" / name / "file.py").exists() for name in ("one", "two"))
    assert (site / "alpha-1.0.dist-info" / "RECORD").exists()


def _deep() -> str:
    return "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "3", "[]", '"format"', "{}", '{"format": 1}', '{"format": [1]}', "9" * 5000, _deep(), "\udcff"],
    ids=lambda text: text[:12] or "empty",
)
def test_a_manifest_that_is_no_manifest_is_not_there(house: Wheelhouse, environment: Path, text: str) -> None:
    wheel = house.add_wheel("alpha")
    install_wheels([wheel], environment)
    [manifest] = store().glob("*/manifest.json")
    manifest.write_bytes(text.encode(errors="surrogateescape"))
    assert list_unpacked_wheels() == []
    install_wheels([wheel], environment)
    assert [each.name for each in list_unpacked_wheels()] == ["alpha 1.0"]


_WRONG: dict[str, list[object]] = {
    "path": ["..", "../../../outside", "/outside", ".", "", 1, None, [], {}, "a\nb", "\ud800"],
    "name": ["../name", "", 1, None, []],
    "version": [1, None, {}],
    "root": ["nowhere", "scripts", 1, None, []],
    "info": ["../alpha-1.0.dist-info", "a/b", 1, None, {}],
    "mtime_ns": ["1", None, 1.5, [], 10**4000],
    "folders": [
        1,
        {"abc": 1},
        [1],
        [["purelib", "", 1]],
        [["purelib", "", ["abcd"]]],
        [["purelib", "", [["../../alpha.py", 1, 1, ""]]]],
        [["purelib", "", [["alpha.py", "1", 1, ""]]]],
        [["purelib", "", [["alpha.py", 1, 1, ""], []]]],
        [["purelib", "../..", []]],
        [["purelib", "a//b", []]],
        [["purelib", None, []]],
        [["nowhere", "", []]],
        [[[], "", []]],
    ],
    "entry_points": [
        1,
        "abcd",
        [["../../../outside", "m", "f", "console"]],
        [["tool", "m", "f", "other"]],
        [["tool", 1, "f", "console"]],
        [["tool", "m", "f", []]],
        [["tool"]],
    ],
    "more": [1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in _WRONG.items() for value in values],
    ids=lambda v: str(v)[:40],
)
def test_what_a_manifest_says_is_checked_before_it_is_used(
    house: Wheelhouse, tmp_path: Path, field: str, value: object
) -> None:
    wheel = house.add_wheel("alpha")
    before = add(wheel)
    [manifest] = store().glob("*/manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, field: value}))
    assert list_unpacked_wheels() == [] or field == "mtime_ns"
    files = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(store()))
    after = add(wheel)
    assert (after.folders, after.entry_points, after.name) == (before.folders, before.entry_points, "alpha")
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(store())) == files


def _folder_for_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json" / "folder").mkdir(parents=True)


def _file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def _link_for_folder(folder: Path) -> None:
    folder.rename(folder.parents[1] / "elsewhere")
    folder.symlink_to(folder.parents[1] / "elsewhere")


def _dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parents[1] / "elsewhere")


@pytest.mark.parametrize("damage", [_folder_for_manifest, _file_for_folder, _link_for_folder, _dangling_link])
def test_what_has_the_name_of_a_wheel_and_is_no_wheel_is_replaced(
    house: Wheelhouse, environment: Path, damage: Callable[[Path], None]
) -> None:
    wheel = house.add_wheel("alpha")
    install_wheels([wheel], environment)
    [folder] = store().iterdir()
    damage(folder)
    elsewhere = sorted((store().parent / "elsewhere").rglob("*"))
    assert list_unpacked_wheels() == []
    install_wheels([wheel], environment)
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert [each.name for each in list_unpacked_wheels()] == ["alpha 1.0"]
    assert sorted((store().parent / "elsewhere").rglob("*")) == elsewhere


def test_a_wheel_with_a_folder_for_its_manifest_can_be_pruned(house: Wheelhouse, environment: Path) -> None:
    install_wheels([house.add_wheel("alpha")], environment)
    [folder] = store().iterdir()
    _folder_for_manifest(folder)
    assert prune_unpacked_wheels(-1) == 1
    assert list(store().iterdir()) == []


def test_a_wheel_that_was_just_used_is_not_removed(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha")
    install_wheels([wheel], environment)
    [manifest] = store().glob("*/manifest.json")
    assert prune_unpacked_wheels(3600) == 0
    os.utime(manifest, (0, 0))
    install_wheels([wheel], environment)
    assert prune_unpacked_wheels(3600) == 0
    os.utime(manifest, (0, 0))
    assert prune_unpacked_wheels(3600) == 1
    assert list(store().iterdir()) == []
    assert (site_packages(environment) / "alpha.py").read_text() == "VERSION = '1.0'\n"

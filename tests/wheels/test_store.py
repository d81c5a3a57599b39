"""The store of unpacked wheels: complete or absent, unpacked once, and never handed out with somebody's edit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lockbuild.events import Reporter
from lockbuild.wheels import install_wheels
from lockbuild.wheels.cached import prune_wheels
from lockbuild.wheels.destination import locked
from wheelhouse import Wheelhouse, site_packages
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


@pytest.mark.parametrize("change", [_edit, _append, _change_mode, _remove_from_store])
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
    assert after != before
    assert second.samefile(third)


def test_wheels_that_are_removed_while_they_are_linked_are_unpacked_again(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha", files={"alpha/one/file.py": "", "alpha/two/file.py": ""})
    one, two = (site_packages(environment) / "alpha" / name / "file.py" for name in ("one", "two"))
    one.parent.mkdir(parents=True)
    installing = threading.Thread(target=install_wheels, args=([wheel], environment))
    with locked(str(one.parent), None, Reporter()):
        installing.start()
        wait_until(two.exists, "the files that go where nothing is locked")
        [before] = unpacked()
        assert prune_wheels(-1) == 1
        assert not before.exists()
    installing.join(PATIENCE)
    assert one.exists()
    assert (site_packages(environment) / "alpha-1.0.dist-info" / "RECORD").exists()


def test_a_wheel_that_was_just_used_is_not_removed(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha")
    install_wheels([wheel], environment)
    [manifest] = store().glob("*/manifest.json")
    assert prune_wheels(3600) == 0
    os.utime(manifest, (0, 0))
    install_wheels([wheel], environment)
    assert prune_wheels(3600) == 0
    os.utime(manifest, (0, 0))
    assert prune_wheels(3600) == 1
    assert list(store().iterdir()) == []
    assert (site_packages(environment) / "alpha.py").read_text() == "VERSION = '1.0'\n"

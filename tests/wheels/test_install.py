"""Wheels installed in parallel: every package whole, the same winner in every run, whatever else is installed.

The full counts of the long test, ``WHEEL_COUNT=200 WHEEL_ROUNDS=50``, take some minutes; by default it does less.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from lockbuild.events import LockWait, Reporter
from lockbuild.locks import DirectoryLock, LockRequest
from lockbuild.request import LinkMode
from lockbuild.wheels import install_wheels
from wheelhouse import Wheelhouse, installing_up_to, site_packages
from witness import PATIENCE, wait_until

COUNT = int(os.environ.get("WHEEL_COUNT", "40"))
ROUNDS = int(os.environ.get("WHEEL_ROUNDS", "2"))

_INSTALL = textwrap.dedent(
    """
    import sys
    from lockbuild.events import Reporter
    from lockbuild.wheels import install_wheels

    class Loud(Reporter):
        def waiting(self, wait):
            print("waiting", flush=True)

    print("ready", flush=True)
    sys.stdin.readline()
    install_wheels(sys.argv[2:], sys.argv[1], threads=8, reporter=Loud())
    """
)


class Told(Reporter):
    """Keeps the warnings, the waits, and the progress with the thread that told of it."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.waits: list[LockWait] = []
        self.steps: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        self.threads.add(threading.get_ident())

    def warn(self, message: str) -> None:
        self.messages.append(message)

    def waiting(self, wait: LockWait) -> None:
        self.waits.append(wait)


def rows(environment: Path, distribution: str) -> dict[str, str]:
    """Return what a RECORD says: digests by path."""
    [info] = site_packages(environment).glob(f"{distribution}-*.dist-info")
    with (info / "RECORD").open(newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file)}


def problems(environment: Path) -> list[str]:
    """Return in what the files of an environment and its RECORDs disagree. One RECORD of a path has to be right."""
    site, found = site_packages(environment), []
    expected: dict[Path, set[tuple[str, str]]] = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(newline="") as file:
            for name, digest, size in csv.reader(file):
                expected.setdefault(Path(os.path.normpath(site / name)), set()).add((digest, size))
    for path, rows_of_path in expected.items():
        if not path.exists():
            found.append(f"{path} is missing")
            continue
        content = path.read_bytes()
        actual = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if path.name != "RECORD" and (f"sha256={actual}", str(len(content))) not in rows_of_path:
            found.append(f"{path} is not what any RECORD says")
    paths = [path for path in [*site.rglob("*"), *(environment / "share").rglob("*")] if path.is_file()]
    # Python writes bytecode of what a test has imported.
    ours = [path for path in paths if path.parent.name != "__pycache__"]
    return found + [f"{path} is in no RECORD" for path in ours if path not in expected]


def test_the_progress_counts_wheels_and_is_told_by_the_thread_that_installs(tmp_path: Path, environment: Path) -> None:
    house = Wheelhouse(tmp_path)
    reporter = Told()
    install_wheels([add_crowded_wheel(house, number) for number in range(9)], environment, reporter=reporter)
    assert reporter.steps[0] == (0, 9)
    assert reporter.steps[-1] == (9, 9)
    assert reporter.steps == sorted(reporter.steps)
    assert reporter.threads == {threading.get_ident()}


def add_crowded_wheel(house: Wheelhouse, number: int) -> Path:
    """Add one of many wheels that share folders of namespaces, top-level files and ``.data`` schemes."""
    name = f"crowd{number:03}"
    data = f"{name}-1.0.data"
    return house.add_wheel(
        name,
        files={
            f"{name}/__init__.py": f"NUMBER = {number}\n",
            f"crowd/part{number:03}.py": f"NUMBER = {number}\n",
            f"crowd/deep/{number % 7}/part{number:03}.txt": "deep\n" * number,
            # The same contents in all of them.
            "crowd/shared.txt": "shared\n",
            # Contents that differ, of different sizes.
            "crowd_top.py": f"WINNER = {number}\n" * (200 - number),
            **{f"crowd/clash/{path}.txt": f"{number}\n" for path in range(60 if number >= COUNT - 12 else 1)},
            f"{data}/data/share/crowd/{name}.txt": f"{number}\n",
            f"{data}/data/share/winner.txt": f"{number}\n" * (number + 1),
            f"{data}/purelib/crowd/purelib{number:03}.py": "",
            f"{data}/scripts/crowd-tool": f"#!python\nprint({number})\n",
        },
    )


def winners(environment: Path) -> list[str]:
    site = site_packages(environment)
    files = [
        site / "crowd_top.py",
        *sorted((site / "crowd" / "clash").iterdir()),
        environment / "share" / "winner.txt",
        environment / "bin" / "crowd-tool",
    ]
    return [file.read_text() for file in files]


def installing(environment: Path, wheels: Sequence[Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _INSTALL, str(environment), *map(str, wheels)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def let_begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def install_at_once(environment: Path, shares: Sequence[Sequence[Path]]) -> None:
    """Have a process for each share of wheels install it; all of them begin together."""
    processes = [installing(environment, share) for share in shares]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        let_begin(process)
    for process in processes:
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out


@pytest.mark.slow
def test_many_wheels_that_share_folders_and_files_are_whole_and_have_one_winner(
    house: Wheelhouse, environment: Path, tmp_path: Path
) -> None:
    """By 8 threads; by 4 processes that all install all of them; by 4 that install a quarter each."""
    wheels = [add_crowded_wheel(house, number) for number in range(COUNT)]
    empty = shutil.copytree(environment, tmp_path / "empty", symlinks=True)
    for number in range(ROUNDS):
        mixed = random.Random(number).sample(wheels, len(wheels))
        quarters = [mixed[n::4] for n in range(4)]
        for way, shares in (("threads", []), ("all by each", [mixed] * 4), ("a quarter by each", quarters)):
            if shares:
                install_at_once(environment, shares)
            else:
                install_wheels(mixed, environment, threads=8)
            assert problems(environment) == [], (way, number)
            assert len(list(site_packages(environment).glob("crowd???/__init__.py"))) == COUNT
            top, *clash, share, tool = winners(environment)
            winner = int(top.split("\n")[0].rpartition(" ")[2])
            # The process that was last has brought all of its files, and of its wheels the last one by name.
            assert any(winner == max(map(wheels.index, share)) for share in shares or [wheels]), (way, number)
            assert top == f"WINNER = {winner}\n" * (200 - winner), (way, number)
            assert share == f"{winner}\n" * (winner + 1), (way, number)
            assert tool.endswith(f"print({winner})\n"), (way, number)
            if way != "a quarter by each":
                assert set(clash) == {f"{COUNT - 1}\n"}, (way, number, clash)
            shutil.rmtree(environment)
            shutil.copytree(empty, environment, symlinks=True)


def test_calls_for_one_environment_wait_for_each_other(house: Wheelhouse, environment: Path) -> None:
    one = house.add_wheel("alpha", files={"alpha/one/file.py": ""})
    two = house.add_wheel("beta")
    told = Told()
    first = installing_up_to("one", environment, [one])
    second = threading.Thread(target=install_wheels, args=([two], environment), kwargs={"reporter": told})
    second.start()
    wait_until(lambda: told.waits, "the wait of the second call")
    assert told.waits[0].subject == f"the environment {environment}"
    assert told.waits[0].holder is not None
    assert told.waits[0].holder.pid == first.pid
    assert not (site_packages(environment) / "beta.py").exists()
    out, _ = first.communicate("\n", timeout=PATIENCE)
    assert first.returncode == 0, out
    second.join()
    assert problems(environment) == []


def test_an_installer_that_waits_for_the_environment_can_be_interrupted(house: Wheelhouse, environment: Path) -> None:
    with DirectoryLock(LockRequest(str(environment), "the environment")):
        process = installing(environment, [house.add_wheel("alpha")])
        let_begin(process)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "waiting\n"]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in out


def test_two_threads_install_into_one_environment_at_once(house: Wheelhouse, environment: Path) -> None:
    wheels = [add_crowded_wheel(house, number) for number in range(20)]
    threads = [threading.Thread(target=install_wheels, args=(wheels[n::2], environment)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems(environment) == []
    assert winners(environment)[0].startswith(("WINNER = 18\n", "WINNER = 19\n"))


@pytest.mark.parametrize("order", [("alpha", "beta"), ("beta", "alpha")])
def test_of_two_files_of_one_path_in_one_call_the_later_name_wins(
    house: Wheelhouse, environment: Path, order: tuple[str, ...]
) -> None:
    wheels = [house.add_wheel(name, files={"common.py": f"OF = {name!r}\n", f"{name}.py": ""}) for name in order]
    told = Told()
    install_wheels(wheels, environment, reporter=told)
    common = site_packages(environment) / "common.py"
    assert common.read_text() == "OF = 'beta'\n"
    assert told.messages == [f"alpha and beta both have {common}, with different contents; that of beta is used"]
    assert problems(environment) == []
    assert "common.py" in rows(environment, "beta")
    assert "common.py" not in rows(environment, "alpha")


def test_of_two_files_of_one_path_the_later_call_wins_as_with_pip(house: Wheelhouse, environment: Path) -> None:
    for name in ("beta", "alpha"):
        install_wheels([house.add_wheel(name, files={"common.py": f"OF = {name!r}\n"})], environment)
    assert (site_packages(environment) / "common.py").read_text() == "OF = 'alpha'\n"
    assert "common.py" in rows(environment, "beta")
    assert "common.py" in rows(environment, "alpha")
    assert problems(environment) == []


@pytest.mark.parametrize("mode", ["auto", "hardlink", "copy"])
def test_what_is_installed_twice_is_as_if_installed_once(house: Wheelhouse, environment: Path, mode: LinkMode) -> None:
    wheel = add_crowded_wheel(house, 3)
    found = []
    for _ in range(2):
        install_wheels([wheel], environment, link_mode=mode)
        found.append({path: path.read_bytes() for path in environment.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert problems(environment) == []


def test_a_file_that_is_there_already_is_replaced_whole(house: Wheelhouse, environment: Path) -> None:
    """A process that has it open goes on reading the old one."""
    wheel = house.add_wheel("alpha", files={"alpha.py": "NEW = 1\n"})
    target = site_packages(environment) / "alpha.py"
    target.write_text("OLD = 1\n")
    with target.open() as old:
        install_wheels([wheel], environment)
        assert old.read() == "OLD = 1\n"
    assert target.read_text() == "NEW = 1\n"
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_link_that_is_there_already_is_replaced_and_not_followed(
    house: Wheelhouse, environment: Path, tmp_path: Path
) -> None:
    wheel = house.add_wheel("alpha", files={"alpha.py": "NEW = 1\n", "beta.py": "NEW = 1\n"})
    (tmp_path / "elsewhere.py").write_text("OLD = 1\n")
    (site_packages(environment) / "alpha.py").symlink_to(tmp_path / "elsewhere.py")
    (site_packages(environment) / "beta.py").symlink_to(tmp_path / "nowhere.py")
    install_wheels([wheel], environment)
    assert (tmp_path / "elsewhere.py").read_text() == "OLD = 1\n"
    assert not (tmp_path / "nowhere.py").exists()
    assert problems(environment) == []


def test_a_newer_version_replaces_what_the_older_one_had(house: Wheelhouse, environment: Path) -> None:
    for version in ("2.0", "1.0"):
        install_wheels([house.add_wheel("alpha", version)], environment)
    assert (site_packages(environment) / "alpha.py").read_text() == "VERSION = '1.0'\n"


def run(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_installed_scripts_run_and_pip_finds_nothing_to_complain_of(house: Wheelhouse, environment: Path) -> None:
    info = "tool-1.0.dist-info"
    wheel = house.add_wheel(
        "tool",
        files={
            "tool/__init__.py": "def main():\n    print('entry point')\n",
            f"{info}/entry_points.txt": "[console_scripts]\ntool-entry = tool:main\n",
        },
        requires=["helper>=1"],
        scripts={"tool-script": "#!python\nimport sys, tool\nprint(sys.prefix)\n", "tool-text": "no shebang\n"},
    )
    install_wheels([wheel, house.add_wheel("helper")], environment, requested=["Tool"], installer="test")
    assert run(environment / "bin" / "tool-entry") == "entry point\n"
    # pip does not make a wheel's own script executable either, when it is not in the archive.
    assert run(environment / "bin" / "python", environment / "bin" / "tool-script") == f"{environment}\n"
    assert (environment / "bin" / "tool-text").read_text() == "no shebang\n"
    assert run(sys.executable, "-m", "pip", "--python", str(environment), "check") == "No broken requirements found.\n"
    assert problems(environment) == []
    site = site_packages(environment)
    assert (site / info / "INSTALLER").read_text() == "test\n"
    assert (site / info / "REQUESTED").exists()
    assert not (site / "helper-1.0.dist-info" / "REQUESTED").exists()


def test_an_installation_that_was_killed_looks_unfinished_and_is_completed_by_the_next(
    house: Wheelhouse, environment: Path
) -> None:
    wheel = house.add_wheel("alpha", files={"alpha/one/file.py": "", "alpha/two/file.py": ""})
    for _ in range(2):
        # Also where the wheel was installed before.
        killed = installing_up_to("one", environment, [wheel])
        killed.kill()
        killed.communicate()
        assert not (site_packages(environment) / "alpha-1.0.dist-info" / "RECORD").exists()
        install_wheels([wheel], environment)
        assert problems(environment) == []


def test_what_a_killed_installation_has_left_under_hidden_names_is_removed_by_the_next(
    house: Wheelhouse, environment: Path
) -> None:
    """Killed between the making of a file and its renaming: too short a moment to be met each time."""
    wheel = house.add_wheel("alpha", files={"alpha/file.py": "", "alpha/.file.py.000000000000000a.tmp": "of the wheel"})
    info = site_packages(environment) / "alpha-1.0.dist-info"
    left = [info / f".{name}.0123456789abcdef.tmp" for name in ("INSTALLER", "RECORD")]
    left.append(site_packages(environment) / "alpha" / ".file.py.0123456789abcdef.tmp")
    foreign = [info / ".INSTALLER.0123456789abcdeg.tmp", info / ".other.0123456789abcdef.tmp"]
    for path in (*left, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    install_wheels([wheel], environment)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in foreign)
    for path in foreign:
        path.unlink()
    assert problems(environment) == []

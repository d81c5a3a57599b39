"""Wheels installed in parallel: every package whole, the same winner in every run, whoever installs beside.

The full counts of the long test, ``WHEEL_COUNT=200 WHEEL_ROUNDS=50``, take some minutes; by default it does less.
"""

from __future__ import annotations

import base64
import contextlib
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
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lockbuild.errors import EnvironmentFolderError, WheelError
from lockbuild.events import Reporter
from lockbuild.wheels import install_wheels
from lockbuild.wheels.destination import locked
from wheelhouse import Wheelhouse, site_packages
from witness import PATIENCE, wait_until

COUNT = int(os.environ.get("WHEEL_COUNT", "40"))
ROUNDS = int(os.environ.get("WHEEL_ROUNDS", "2"))

_INSTALL = textwrap.dedent(
    """
    import sys
    from lockbuild.wheels import install_wheels
    print("ready", flush=True)
    sys.stdin.readline()
    install_wheels(sys.argv[2:], sys.argv[1], threads=8)
    """
)


class Warnings(Reporter):
    """Keeps the warnings, and the progress with the thread that told of it."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        self.threads.add(threading.get_ident())

    def warn(self, message: str) -> None:
        self.messages.append(message)


def rows(environment: Path, distribution: str) -> dict[str, str]:
    """Return what a RECORD says: digests by path."""
    [info] = site_packages(environment).glob(f"{distribution}-*.dist-info")
    with (info / "RECORD").open(newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file)}


def problems(environment: Path) -> list[str]:
    """Return in what the files of an environment and its RECORDs disagree."""
    site, found, listed = site_packages(environment), [], set()
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(newline="") as file:
            for name, digest, size in csv.reader(file):
                path = Path(os.path.normpath(site / name))
                listed.add(path)
                if not path.exists():
                    found.append(f"{name} is missing")
                elif digest:
                    content = path.read_bytes()
                    actual = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                    if (f"sha256={actual}", str(len(content))) != (digest, size):
                        found.append(f"{name} is not what the RECORD of {record.parent.name} says")
    paths = [path for path in [*site.rglob("*"), *(environment / "share").rglob("*")] if path.is_file()]
    # Bytecode is of whoever has run something there since.
    ours = [path for path in paths if path.parent.name != "__pycache__"]
    return found + [f"{path} is in no RECORD" for path in ours if path not in listed]


def test_the_progress_counts_wheels_and_is_told_by_the_thread_that_installs(tmp_path: Path, environment: Path) -> None:
    house = Wheelhouse(tmp_path)
    reporter = Warnings()
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
            assert top == f"WINNER = {COUNT - 1}\n" * (201 - COUNT), (way, number)
            assert set(clash) == {f"{COUNT - 1}\n"}, (way, number, clash)
            assert share == f"{COUNT - 1}\n" * COUNT, (way, number)
            assert tool.endswith(f"print({COUNT - 1})\n"), (way, number)
            shutil.rmtree(environment)
            shutil.copytree(empty, environment, symlinks=True)


def test_a_directory_that_is_locked_is_waited_for(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel(
        "alpha", files={"alpha/one/file.py": "", **{f"alpha/more{n}/file.py": "" for n in range(30)}}
    )
    site = site_packages(environment)
    (site / "alpha" / "one").mkdir(parents=True)
    with locked(str(site / "alpha" / "one"), None, Reporter()):
        process = installing(environment, [wheel])
        let_begin(process)
        wait_until(lambda: len(list(site.glob("alpha/more*/file.py"))) == 30, "the files in all other directories")
        assert not (site / "alpha" / "one" / "file.py").exists()
        assert not (site / "alpha-1.0.dist-info" / "RECORD").exists()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert problems(environment) == []


@contextlib.contextmanager
def half_installed(environment: Path, wheel: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield an installer of a wheel with ``alpha/one`` and ``alpha/two`` that waits for the first of these folders."""
    site = site_packages(environment)
    (site / "alpha" / "one").mkdir(parents=True)
    with locked(str(site / "alpha" / "one"), None, Reporter()):
        process = installing(environment, [wheel])
        let_begin(process)
        wait_until((site / "alpha" / "two" / "file.py").exists, "the files that go where nothing is locked")
        yield process


def test_an_installer_that_waits_for_a_directory_can_be_interrupted(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha", files={"alpha/one/file.py": "", "alpha/two/file.py": ""})
    with half_installed(environment, wheel) as process:
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
    assert winners(environment)[0].startswith("WINNER = 19\n")


@pytest.mark.parametrize("order", [("alpha", "beta"), ("beta", "alpha"), ("both",)])
def test_of_two_files_of_one_path_the_later_name_wins_in_any_order(
    house: Wheelhouse, environment: Path, order: tuple[str, ...]
) -> None:
    wheels = {
        name: house.add_wheel(name, files={"common.py": f"OF = {name!r}\n", f"{name}.py": ""})
        for name in ("alpha", "beta")
    }
    told = Warnings()
    for name in order:
        install_wheels(list(wheels.values()) if name == "both" else [wheels[name]], environment, reporter=told)
    common = site_packages(environment) / "common.py"
    assert common.read_text() == "OF = 'beta'\n"
    assert told.messages == [f"alpha and beta both have {common}, with different contents; that of beta is used"]
    assert problems(environment) == []
    assert "common.py" in rows(environment, "beta")
    assert "common.py" not in rows(environment, "alpha")


def test_a_file_that_nobody_claims_is_replaced_whole(house: Wheelhouse, environment: Path) -> None:
    """Who has it open goes on reading the old one."""
    wheel = house.add_wheel("alpha", files={"alpha.py": "NEW = 1\n"})
    target = site_packages(environment) / "alpha.py"
    target.write_text("OLD = 1\n")
    with target.open() as old:
        install_wheels([wheel], environment)
        assert old.read() == "OLD = 1\n"
    assert target.read_text() == "NEW = 1\n"
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


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


def test_a_folder_without_an_interpreter_is_an_error(house: Wheelhouse, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFolderError, match="is not a virtual environment"):
        install_wheels([house.add_wheel("alpha")], tmp_path / "nowhere")


def test_two_wheels_of_one_distribution_are_an_error(house: Wheelhouse, environment: Path) -> None:
    with pytest.raises(WheelError, match="there is a second wheel of alpha"):
        install_wheels([house.add_wheel("alpha", "1.0"), house.add_wheel("alpha", "2.0")], environment)


def test_an_installation_that_was_killed_looks_unfinished_and_is_completed_by_the_next(
    house: Wheelhouse, environment: Path
) -> None:
    wheel = house.add_wheel("alpha", files={"alpha/one/file.py": "", "alpha/two/file.py": ""})
    with half_installed(environment, wheel) as killed:
        killed.kill()
        killed.communicate()
    assert not (site_packages(environment) / "alpha-1.0.dist-info" / "RECORD").exists()
    install_wheels([wheel], environment)
    assert problems(environment) == []


def test_what_a_killed_installation_has_left_under_hidden_names_is_removed_by_the_next(
    house: Wheelhouse, environment: Path
) -> None:
    """Killed between the making of a file and its renaming: too short a moment to be met each time."""
    wheel = house.add_wheel("alpha", files={"alpha/file.py": "", "alpha/.file.py.00000000000a": "of the wheel"})
    info = site_packages(environment) / "alpha-1.0.dist-info"
    left = [info / f".{name}.0123456789ab" for name in ("INSTALLER", "RECORD.part", "RECORD")]
    left.append(site_packages(environment) / "alpha" / ".file.py.0123456789ab")
    foreign = [info / ".INSTALLER.0123456789ag", info / ".other.0123456789ab"]
    for path in (*left, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    install_wheels([wheel], environment)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in foreign)
    for path in foreign:
        path.unlink()
    assert problems(environment) == []


# What is refused


def _write(path: Path, members: Sequence[tuple[str | zipfile.ZipInfo, str]]) -> Path:
    info = f"{path.name.split('-')[0]}-1.0.dist-info"
    everything = [
        *members,
        (f"{info}/METADATA", "Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n"),
        (f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
    ]
    record = ""
    for member, text in everything:
        name = member if isinstance(member, str) else member.filename
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text.encode())}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in [*everything, (f"{info}/RECORD", f"{record}{info}/RECORD,,\n")]:
            archive.writestr(member, text)
    return path


def _symlink() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("bad/link")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("../outside.py", "'../outside.py' would leave the folder"),
        ("bad/../../outside.py", "would leave the folder"),
        ("/tmp/outside.py", "'/tmp/outside.py' would leave the folder"),
        ("..\\outside.py", "would leave the folder"),
        ("bad-1.0.data/data/../../outside.py", "would leave the folder"),
        (_symlink(), "'bad/link' is a symbolic link"),
    ],
    ids=str,
)
def test_a_file_that_would_leave_its_root_is_refused(
    tmp_path: Path, environment: Path, member: str | zipfile.ZipInfo, why: str
) -> None:
    wheel = _write(tmp_path / "bad-1.0-py3-none-any.whl", [("good.py", ""), (member, "x")])
    with pytest.raises(WheelError) as raised:
        install_wheels([wheel], environment)
    assert why in str(raised.value)
    assert str(raised.value).startswith(f"The wheel {wheel} cannot be installed: ")
    assert list(site_packages(environment).iterdir()) == []
    store = Path(os.environ["LOCKBUILD_CACHE_DIR"]) / "wheels"
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("change", ["damaged", "unlisted", "not a zip", "truncated"])
def test_a_wheel_that_is_not_what_its_record_says_is_refused(house: Wheelhouse, environment: Path, change: str) -> None:
    wheel = house.add_wheel("alpha", files={"alpha.py": "VALUE = 1\n"})
    content = wheel.read_bytes()
    if change == "not a zip":
        wheel.write_text("this is no archive")
    elif change == "truncated":
        wheel.write_bytes(content[:-40])
    else:
        with zipfile.ZipFile(wheel) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["alpha.py" if change == "damaged" else "more.py"] = b"VALUE = 2\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    with pytest.raises(WheelError):
        install_wheels([wheel], environment)
    assert list(site_packages(environment).iterdir()) == []


def test_a_wheel_with_another_hash_is_refused(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(WheelError, match=f"its SHA-256 is {digest}, and has to be {'0' * 64}"):
        install_wheels([wheel], environment, hashes={wheel.name: "0" * 64})
    install_wheels([wheel], environment, hashes={wheel.name: digest})


@pytest.fixture(autouse=True)
def _collect_nothing_outside(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("outside.py"))

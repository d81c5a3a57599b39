"""What no wheel can do: write outside of an environment, replace its interpreter, or break off with another error.

Whatever a wheel is like, it is installed or a `WheelError` names it, and a refused one has changed nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lockbuild.errors import EnvironmentFolderError, WheelError
from lockbuild.events import Reporter
from lockbuild.paths import wheel_folder
from lockbuild.wheels import install_wheels
from lockbuild.wheels.destination import virtual_environment
from lockbuild.wheels.install import install_archives
from lockbuild.wheels.plan import Installation
from lockbuild.wheels.store import WheelStore
from wheelhouse import Wheelhouse, site_packages

Members = Sequence[tuple[str | zipfile.ZipInfo, str | bytes]]

INFO = "bad-1.0.dist-info"
ABOUT = {
    "METADATA": b"Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n",
    "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def write_wheel(
    folder: Path, members: Members, name: str = "bad-1.0-py3-none-any.whl", *, about: Mapping[str, bytes] = ABOUT
) -> Path:
    """Write a wheel whose RECORD is right. ``about`` are the other files of its ``.dist-info`` folder."""
    info = f"{name.partition('-')[0]}-1.0.dist-info"
    everything = [(member, text.encode() if isinstance(text, str) else text) for member, text in members]
    everything += [(f"{info}/{path}", content) for path, content in about.items()]
    record = ""
    for member, content in everything:
        path = member if isinstance(member, str) else member.filename
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f'"{path}",sha256={digest},{len(content)}\n'
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, content in [*everything, (f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode())]:
            archive.writestr(member, content)
    return folder / name


def with_entry_point(folder: Path, name: str, section: str = "console_scripts") -> Path:
    return write_wheel(folder, [("bad.py", ""), (f"{INFO}/entry_points.txt", f"[{section}]\n{name} = bad:main\n")])


def snapshot(*folders: Path) -> dict[str, object]:
    """Return what there is in folders: of files contents and mode, of links the target."""
    found: dict[str, object] = {}
    for folder in folders:
        for parent, names, files in os.walk(folder):
            for path in (os.path.join(parent, name) for name in (*names, *files)):
                if os.path.islink(path):
                    found[path] = os.readlink(path)
                elif os.path.isfile(path):
                    found[path] = Path(path).read_bytes(), os.stat(path).st_mode
                else:
                    found[path] = None
    return found


@contextlib.contextmanager
def refused(wheel: Path, environment: Path) -> Iterator[list[str]]:
    """Expect that a wheel is refused and changes nothing, and yield the message."""
    # The store of wheels apart, all that the wheel could reach from there.
    cache = Path(os.environ["LOCKBUILD_CACHE_DIR"])
    shutil.rmtree(cache, ignore_errors=True)
    before = snapshot(environment.parent)
    with pytest.raises(WheelError) as raised:
        install_wheels([wheel], environment)
    message = str(raised.value)
    assert message.startswith(f"The wheel {wheel} cannot be installed: ")
    assert {path.name for path in cache.iterdir()} <= {"locks", "wheels"}
    shutil.rmtree(cache)
    assert snapshot(environment.parent) == before
    yield [message]


def test_a_folder_without_an_interpreter_is_an_error(house: Wheelhouse, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFolderError, match="is not a virtual environment"):
        install_wheels([house.add_wheel("alpha")], tmp_path / "nowhere")


def test_two_wheels_of_one_distribution_are_an_error(house: Wheelhouse, environment: Path) -> None:
    with pytest.raises(WheelError, match="there is a second wheel of alpha"):
        install_wheels([house.add_wheel("alpha", "1.0"), house.add_wheel("alpha", "2.0")], environment)


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
    wheel = write_wheel(tmp_path, [("good.py", ""), (member, "x")])
    with pytest.raises(WheelError) as raised:
        install_wheels([wheel], environment)
    assert why in str(raised.value)
    assert str(raised.value).startswith(f"The wheel {wheel} cannot be installed: ")
    assert list(site_packages(environment).iterdir()) == []
    store = Path(os.environ["LOCKBUILD_CACHE_DIR"]) / "wheels"
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("change", ["damaged", "not a zip", "truncated"])
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
        members["alpha.py"] = b"VALUE = 2\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    with pytest.raises(WheelError) as raised:
        install_wheels([wheel], environment)
    assert ("nor does a build with --no-cache" in str(raised.value)) == (change == "damaged")
    assert list(site_packages(environment).iterdir()) == []


def test_a_wheel_that_cannot_be_read_is_named(tmp_path: Path, environment: Path) -> None:
    wheel = tmp_path / "bad-1.0-py3-none-any.whl"
    with refused(wheel, environment) as [message]:
        assert message.endswith("it cannot be read: No such file or directory")
    wheel.mkdir()
    with refused(wheel, environment) as [message]:
        assert message.endswith("it cannot be read: Is a directory")


def test_a_wheel_with_another_hash_is_refused(house: Wheelhouse, environment: Path) -> None:
    wheel = house.add_wheel("alpha")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(WheelError, match=f"its SHA-256 is {digest}, and has to be {'0' * 64}"):
        install_wheels([wheel], environment, hashes={wheel.name: "0" * 64})
    install_wheels([wheel], environment, hashes={wheel.name: digest})


# Names that leave the folder


@pytest.mark.parametrize(
    "name",
    [
        "../../../outside",
        "../outside",
        "/outside",
        "a/b",
        "a\\b",
        "..",
        ".",
        "\x01",
        "a\x7fb",
        "é" * 128,
        "a\tb",
        "C:\\a",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("section", ["console_scripts", "gui_scripts"])
def test_an_entry_point_whose_name_is_no_file_name_is_refused(
    tmp_path: Path, environment: Path, name: str, section: str
) -> None:
    with refused(with_entry_point(tmp_path, name, section), environment) as [message]:
        assert "its entry point " in message
        assert "has a name that no script may have" in message


def test_an_absolute_entry_point_is_refused(tmp_path: Path, environment: Path) -> None:
    with refused(with_entry_point(tmp_path, f"{tmp_path}/outside"), environment) as [message]:
        assert f"its entry point '{tmp_path}/outside'" in message


@pytest.mark.parametrize("member", ["./a.py", "a//b.py", "a/./b.py", "a\x01.py", "a\nb.py", "bad-1.0.data", "x" * 256])
def test_a_member_whose_name_is_no_file_name_is_refused(tmp_path: Path, environment: Path, member: str) -> None:
    with refused(write_wheel(tmp_path, [(member, "")]), environment):
        pass


@pytest.mark.parametrize("name", ["..-1.0-py3-none-any.whl", ".-1.0-py3-none-any.whl"])
def test_a_folder_of_headers_is_named_by_a_distribution_and_nothing_else(
    tmp_path: Path, environment: Path, name: str
) -> None:
    """The name of the folder is that in the name of the wheel file."""
    wheel = write_wheel(tmp_path, [(f"{name.partition('-')[0]}-1.0.data/headers/outside.h", "")], name)
    with refused(wheel, environment) as [message]:
        assert "is not a name that it may give to a file" in message


# The interpreter


INTERPRETERS = [
    "python",
    "python3",
    "python3.11",
    "Python",
    "PYTHON.EXE",
    "pythonw",
    "pythonw.exe",
    "python3.12",
    "pypy3",
]


@pytest.mark.parametrize("name", [*INTERPRETERS, "pyvenv.cfg"])
@pytest.mark.parametrize("way", ["entry point", "script", "data"])
def test_a_script_that_would_replace_the_interpreter_is_refused(
    tmp_path: Path, environment: Path, name: str, way: str
) -> None:
    if way == "entry point":
        wheel = with_entry_point(tmp_path, name)
    else:
        place = "scripts" if way == "script" else "data/bin"
        wheel = write_wheel(tmp_path, [("bad.py", ""), (f"bad-1.0.data/{place}/{name}", "#!python\n")])
    with refused(wheel, environment) as [message]:
        assert f"its '{name}' would replace the interpreter in {environment}/bin" in message


def test_a_script_that_is_another_name_of_the_interpreter_is_refused(tmp_path: Path, environment: Path) -> None:
    (environment / "bin" / "snake").symlink_to("python")
    with refused(with_entry_point(tmp_path, "snake"), environment) as [message]:
        assert "its 'snake' would replace the interpreter" in message


def test_the_configuration_that_chooses_the_interpreter_is_not_replaced(tmp_path: Path, environment: Path) -> None:
    with refused(write_wheel(tmp_path, [("bad-1.0.data/data/pyvenv.cfg", "home = /\n")]), environment) as [message]:
        assert "its 'pyvenv.cfg' would replace the interpreter" in message


def test_a_script_may_be_called_nearly_like_the_interpreter(tmp_path: Path, environment: Path) -> None:
    names = ["python-config", "ipython", "pythonic", "activate", "python3-x"]
    install_wheels([write_wheel(tmp_path, [(f"bad-1.0.data/scripts/{name}", "x") for name in names])], environment)
    assert all((environment / "bin" / name).read_text() == "x" for name in names)


# Links in the environment


@pytest.mark.parametrize("place", ["purelib/linked/outside.py", "data/linked/outside", "data/linked/deep/outside"])
def test_a_folder_of_the_environment_that_leads_out_of_it_is_refused(
    tmp_path: Path, environment: Path, place: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for folder in (environment, site_packages(environment)):
        (folder / "linked").symlink_to(tmp_path / "elsewhere")
    with refused(write_wheel(tmp_path, [(f"bad-1.0.data/{place}", "")]), environment) as [message]:
        assert f"leads to {tmp_path}/elsewhere" in message
        assert f"which is outside of {environment}" in message


def test_a_folder_of_the_environment_that_leads_to_its_scripts_is_no_way_to_the_interpreter(
    tmp_path: Path, environment: Path
) -> None:
    (environment / "linked").symlink_to("bin")
    with refused(write_wheel(tmp_path, [("bad-1.0.data/data/linked/python", "")]), environment) as [message]:
        assert "its 'python' would replace the interpreter" in message


def test_a_link_within_the_environment_is_followed(tmp_path: Path, environment: Path) -> None:
    """As ``lib64`` is one to ``lib``."""
    (environment / "linked").symlink_to("lib")
    install_wheels([write_wheel(tmp_path, [("bad-1.0.data/data/linked/file", "x")])], environment)
    assert (environment / "lib" / "file").read_text() == "x"


def test_an_environment_may_be_reached_through_a_link(tmp_path: Path, environment: Path) -> None:
    (tmp_path / "link").symlink_to(environment)
    install_wheels([write_wheel(tmp_path, [("bad.py", "x"), ("bad-1.0.data/scripts/tool", "x")])], tmp_path / "link")
    assert (site_packages(environment) / "bad.py").read_text() == "x"
    assert (environment / "bin" / "tool").read_text() == "x"


# Files and folders of one name


@pytest.mark.parametrize(
    "members",
    [
        ["a", "a/b"],
        ["a/b", "a"],
        ["a", "a"],
        ["a", "bad-1.0.data/platlib/a/b"],
        ["bad-1.0.data/data/share/a", "bad-1.0.data/data/share/a/b/c"],
        ["bad-1.0.data/data/bin"],
        ["bad-1.0.data/data/lib64"],
        ["bad-1.0.data/data/pip/file"],
        ["bad-1.0.data/data/activate/deep/file", "bad-1.0.data/scripts/activate/deep/file"],
        [f"bad-1.0.data/purelib/{INFO}/RECORD"],
        [f"bad-1.0.data/platlib/{INFO}/RECORD"],
        ["bad-1.0.data/nowhere/a"],
        ["bad-1.0.data/a"],
        ["bad-1.0.data/purelib"],
    ],
    ids=lambda members: members[-1],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_where_there_is_a_folder_is_refused_and_the_other_way_round(
    tmp_path: Path, environment: Path, members: list[str]
) -> None:
    (environment / "lib64").unlink(missing_ok=True)
    (environment / "lib64").symlink_to("lib")
    (environment / "pip").write_text("a file")
    with refused(write_wheel(tmp_path, [("good.py", ""), *((member, "") for member in members)]), environment):
        pass


def test_wheels_of_one_call_that_want_a_name_for_a_file_and_a_folder_are_refused(
    house: Wheelhouse, environment: Path
) -> None:
    wheels = [house.add_wheel("alpha", files={"common": ""}), house.add_wheel("beta", files={"common/b.py": ""})]
    before = snapshot(environment)
    with pytest.raises(WheelError, match=r"it has a file .*/common, and a folder is to have that name"):
        install_wheels(wheels, environment)
    assert snapshot(environment) == before


# What zipfile cannot read


@pytest.mark.parametrize("method", [9, 93, 95, 98, 99])
def test_a_method_of_compression_that_python_does_not_know_is_named(
    tmp_path: Path, environment: Path, method: int
) -> None:
    if method == getattr(zipfile, "ZIP_ZSTANDARD", None):
        pytest.skip("this Python knows it")
    with refused(changed_member(write_wheel(tmp_path, [("bad.py", "x")]), "bad.py", 10, method), environment) as [told]:
        assert f"'bad.py' has compression method {method}, which Python does not know" in told


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_of_compression_that_python_knows_is_read(tmp_path: Path, environment: Path, method: int) -> None:
    member = zipfile.ZipInfo("bad.py")
    member.compress_type = method
    install_wheels([write_wheel(tmp_path, [(member, "x" * 1000)])], environment)
    assert (site_packages(environment) / "bad.py").read_text() == "x" * 1000


def test_an_encrypted_member_is_named(tmp_path: Path, environment: Path) -> None:
    with refused(changed_member(write_wheel(tmp_path, [("bad.py", "x")]), "bad.py", 8, 1), environment) as [message]:
        assert "'bad.py' is encrypted" in message


def changed_member(wheel: Path, name: str, offset: int, value: int) -> Path:
    """Change two bytes of a member's entry in the directory of an archive."""
    content = bytearray(wheel.read_bytes())
    entry = content.rindex(name.encode()) - 46
    while content[entry : entry + 4] != b"PK\1\2":
        entry = content.rindex(name.encode(), 0, entry + 46) - 46
    content[entry + offset : entry + offset + 2] = value.to_bytes(2, "little")
    wheel.write_bytes(content)
    return wheel


# Broken ones, by chance


def flipped(chance: random.Random, wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    wheel.write_bytes(content)


def spliced(chance: random.Random, wheel: Path) -> None:
    content = wheel.read_bytes()
    start, end = sorted(chance.choices(range(len(content)), k=2))
    middle = chance.choice((b"", content[start:end] * 2, chance.randbytes(end - start)))
    wheel.write_bytes(content[:start] + middle + content[end:])


def truncated(chance: random.Random, wheel: Path) -> None:
    content = wheel.read_bytes()
    wheel.write_bytes(content[: chance.randrange(len(content))])


# What may stand in a field that somebody else has written.
NONSENSE = (
    *(
        "",
        "\0",
        "..",
        "../outside",
        "/outside",
        "a/../../outside",
        "\\..\\outside",
        ".",
        "\n",
        "[",
        "=",
        ":",
        "%(x)s",
        "é",
    ),
    *(
        "\u202e",
        "9" * 5000,
        "-1",
        "sha256=",
        "sha256=AAAA",
        "shake_128=AAAA",
        "md5=",
        "=",
        "nul",
        "con:",
        "a" * 300,
        ",",
    ),
    *('"', "true", "bad", "bad.py", "python", "bin/python", "Wheel-Version: 1.0\n", "Root-Is-Purelib: maybe\n", "a\rb"),
)


def nonsense(chance: random.Random) -> bytes:
    """Return something where there should be a text."""
    words = "".join(chance.choice(NONSENSE) for _ in range(chance.choice((0, 1, 1, 2, 5)))).encode()
    return chance.choice((words, words + chance.randbytes(4), b"\xff\xfe" + words))


def rewritten(chance: random.Random, wheel: Path) -> None:
    """Write it anew with nonsense in one of the files that are about it, or in names; mostly with a right RECORD."""
    members: dict[str, bytes] = {"bad.py": b"", "bad-1.0.data/scripts/tool": b"#!python\n"}
    about = dict(ABOUT)
    points = f"{INFO}/entry_points.txt"
    kind = chance.randrange(6)
    if kind == 0:
        lines = (b"[console_scripts]\n", b"[gui_scripts]\n", b"a = b:c\n", b"a\n", b"= b:c\n", b"x = y\n")
        text = b"".join(chance.choice((*lines, nonsense(chance) + b" = bad:main\n")) for _ in range(4))
        members[points] = text
    elif kind == 1:
        about["WHEEL"] = chance.choice((b"Wheel-Version: 1.0\n", b"Wheel-Version: 9\n", nonsense(chance)))
    elif kind == 2:
        del about[chance.choice(list(about))]
    elif kind == 3:
        place = chance.choice(("", "a/", "bad-1.0.data/", "bad-1.0.data/scripts/", "bad-1.0.data/data/", f"{INFO}/"))
        members[(place + nonsense(chance).decode(errors="replace")).lstrip("\0") or "x"] = b"x"
    elif kind == 4:
        section = chance.choice(("console_scripts", "gui_scripts")).encode()
        members[points] = b"[" + section + b"]\n" + nonsense(chance) + b" = bad:main\n"
    write_wheel(wheel.parent, list(members.items()), wheel.name, about=about)
    if kind == 5:
        with zipfile.ZipFile(wheel) as archive:
            contents = {each: archive.read(each) for each in archive.namelist()}
        record = contents[f"{INFO}/RECORD"].splitlines(keepends=True)
        record[chance.randrange(len(record))] = b",".join(nonsense(chance) for _ in range(chance.choice((1, 3, 3, 4))))
        contents[f"{INFO}/RECORD"] = b"".join(record)
        with zipfile.ZipFile(wheel, "w") as archive:
            for each, content in contents.items():
                archive.writestr(each, content)


BREAKERS: Mapping[str, Callable[[random.Random, Path], None]] = {
    "flipped": flipped,
    "spliced": spliced,
    "truncated": truncated,
    "rewritten": rewritten,
}


@pytest.mark.parametrize("way", BREAKERS)
@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:Skip installing")
def test_a_broken_wheel_is_refused_with_its_name_and_has_changed_nothing(
    tmp_path: Path, environment: Path, way: str
) -> None:
    """``BROKEN_WHEELS`` is how many for each way to break one, ``BROKEN_SEED`` another choice of them."""
    chance = random.Random(f"{way} {os.environ.get('BROKEN_SEED', '0')}")
    store = WheelStore(wheel_folder(None), None, None, Reporter())
    installation = Installation(virtual_environment(str(environment)), Reporter(), threads=1)
    original = write_wheel(
        tmp_path,
        [
            ("bad.py", "VALUE = 1\n" * 20),
            (f"{INFO}/entry_points.txt", "[console_scripts]\nbad = bad:main\n"),
            ("bad-1.0.data/scripts/tool", "#!python\n"),
        ],
    ).read_bytes()
    around = [path for path in tmp_path.iterdir() if path.name not in {"cache", "env", "broken"}]
    (tmp_path / "broken").mkdir()
    wheel = tmp_path / "broken" / "bad-1.0-py3-none-any.whl"
    outside, inside = snapshot(*around), snapshot(environment)
    interpreter = {path: content for path, content in inside.items() if "/bin/python" in path or "pyvenv" in path}
    for number in range(int(os.environ.get("BROKEN_WHEELS", "80"))):
        wheel.write_bytes(original)
        BREAKERS[way](chance, wheel)
        refusal = None
        try:
            install_archives([str(wheel)], {}, store, installation)
        except WheelError as error:
            refusal = error
        if refusal:
            assert refusal.wheel == str(wheel)
            assert snapshot(environment) == inside, (number, str(refusal))
        inside = snapshot(environment)
        assert snapshot(*around) == outside, number
        assert {**inside, **interpreter} == inside, number
        assert {path.name for path in tmp_path.iterdir()} == {"cache", "env", "broken", *(each.name for each in around)}

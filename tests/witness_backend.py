"""An in-tree build backend that notices when another hook runs in the same tree. Copied into trees by `witness`.

It needs nothing but the standard library and imports no setuptools, so that a hook takes milliseconds. Environment:

WITNESS_LOG    a file that every hook appends lines to: "enter PID HOOK", "leave PID HOOK", "overlap PID OTHER",
               and "private PID HOOK" before it enters with a private view
WITNESS_GATE   a FIFO: build hooks wait inside until somebody opens it for writing and closes it (optional)
WITNESS_WORK   seconds for which every hook stays inside (default 0.02): the width of the window for an overlap
WITNESS_VERSION   the version of what is built (default 1.0), and the value in the module witness
WITNESS_METADATA  more lines for METADATA (optional)

Settings that a hook is given are in WITNESS_LOG, too: "settings PID JSON".
"""

import base64
import contextlib
import glob
import hashlib
import io
import json
import os
import tarfile
import time
import zipfile

VERSION = os.environ.get("WITNESS_VERSION", "1.0")


def _write(line):
    # One write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(os.environ["WITNESS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, (line + "\n").encode())
    os.close(descriptor)


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _others_inside():
    with open(os.environ["WITNESS_LOG"]) as file:
        lines = [line.split() for line in file]
    inside = {}
    for word, pid, hook in lines:
        if word == "enter":
            inside[int(pid), hook] = True
        elif word == "leave":
            inside.pop((int(pid), hook), None)
    return {pid for pid, _ in inside if pid != os.getpid() and _is_alive(pid)}


@contextlib.contextmanager
def _witness(hook, config_settings=None):
    if config_settings:
        _write(f"settings {os.getpid()} {json.dumps(config_settings, separators=(',', ':'))}")
    if locks := os.environ.get("LOCKBUILD_HELD_LOCKS"):
        tell(f"locks-{os.getpid()}", locks)
    if "LOCKBUILD_VIEWS" in os.environ:
        _write(f"private {os.getpid()} {hook}")
    _write(f"enter {os.getpid()} {hook}")
    for other in _others_inside():
        _write(f"overlap {os.getpid()} {other}")
    time.sleep(float(os.environ.get("WITNESS_WORK", "0.02")))
    try:
        yield
    finally:
        for other in _others_inside():
            _write(f"overlap {os.getpid()} {other}")
        _write(f"leave {os.getpid()} {hook}")


def tell(name, text):
    """Leave a file for the test beside the log, whole as soon as it is there. For backends that import this one."""
    path = os.path.join(os.path.dirname(os.environ["WITNESS_LOG"]), name)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def _wait_at_gate():
    gate = os.environ.get("WITNESS_GATE")
    if gate:
        with open(gate) as file:
            file.read()


def get_requires_for_build_wheel(config_settings=None):
    with _witness("get_requires_for_build_wheel", config_settings):
        return []


def get_requires_for_build_sdist(config_settings=None):
    with _witness("get_requires_for_build_sdist", config_settings):
        return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    with _witness("prepare_metadata_for_build_wheel", config_settings):
        _wait_at_gate()
        folder = os.path.join(metadata_directory, f"witness-{VERSION}.dist-info")
        os.mkdir(folder)
        for name, content in _dist_info().items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(content)
        return os.path.basename(folder)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with _witness("build_wheel", config_settings):
        _wait_at_gate()
        name = f"witness-{VERSION}-py3-none-any.whl"
        files = {"witness.py": f"VERSION = {VERSION!r}\n"}
        files |= {f"witness-{VERSION}.dist-info/{key}": content for key, content in _dist_info().items()}
        record = "".join(f"{path},{_hash(content)},{len(content)}\n" for path, content in files.items())
        files[f"witness-{VERSION}.dist-info/RECORD"] = record + f"witness-{VERSION}.dist-info/RECORD,,\n"
        with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        return name


def get_requires_for_build_editable(config_settings=None):
    with _witness("get_requires_for_build_editable", config_settings):
        return []


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return build_wheel(wheel_directory, config_settings)


def build_sdist(sdist_directory, config_settings=None):
    with _witness("build_sdist", config_settings):
        _wait_at_gate()
        name = f"witness-{VERSION}.tar.gz"
        with tarfile.open(os.path.join(sdist_directory, name), "w:gz") as archive:
            for path in ("pyproject.toml", *sorted(glob.glob("*.py"))):
                archive.add(path, f"witness-{VERSION}/{path}")
            metadata = _dist_info()["METADATA"].encode()
            info = tarfile.TarInfo(f"witness-{VERSION}/PKG-INFO")
            info.size = len(metadata)
            archive.addfile(info, io.BytesIO(metadata))
        return name


def _dist_info():
    return {
        "METADATA": f"Metadata-Version: 2.1\nName: witness\nVersion: {VERSION}\n"
        + os.environ.get("WITNESS_METADATA", ""),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: witness\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }


def _hash(content):
    digest = hashlib.sha256(content.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

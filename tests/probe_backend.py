"""A build backend that tells what it was given. `wheelhouse` packs it into a wheel named probe-backend.

It needs nothing but the standard library and knows no setuptools, so that builds of one tree run side by side.
Environment:

PROBE_LOG       a file that every hook appends a line of JSON to: hook, pid, prefix, path, environ, ...
PROBE_GATE      a FIFO: build_wheel waits inside until somebody opens it for writing and closes it (optional)
PROBE_REQUIRES  what get_requires_for_build_wheel answers, as a JSON list (optional)
"""

import base64
import hashlib
import importlib.metadata
import json
import os
import site
import sys
import zipfile


def _tell(hook: str) -> None:
    log = os.environ.get("PROBE_LOG")
    if not log:
        return
    line = {
        "hook": hook,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "executable": sys.executable,
        "path": sys.path,
        "flags": str(sys.flags),
        "user_site": site.ENABLE_USER_SITE,
        "environ": dict(os.environ),
        "distributions": sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions()),
    }
    # One write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    _tell("get_requires_for_build_wheel")
    requires: list[str] = json.loads(os.environ.get("PROBE_REQUIRES", "[]"))
    return requires


def build_wheel(
    wheel_directory: str,
    config_settings: object = None,
    metadata_directory: object = None,
) -> str:
    _tell("build_wheel")
    gate = os.environ.get("PROBE_GATE")
    if gate:
        with open(gate) as file:
            file.read()
        _tell("build_wheel after the gate")
    # What is imported now, and not before the gate, has to be there still.
    import probe_backend_late  # type: ignore[import-not-found]

    name = "probed-1.0-py3-none-any.whl"
    files = {
        "probed.py": f"value = {probe_backend_late.VALUE!r}\n",
        "probed-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: probed\nVersion: 1.0\n",
        "probed-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: probe\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{path},{_hash(content)},{len(content)}\n" for path, content in files.items())
    files["probed-1.0.dist-info/RECORD"] = record + "probed-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return name


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

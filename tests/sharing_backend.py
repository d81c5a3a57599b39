"""An in-tree build backend whose wheels are never the same twice. Copied into sdists and trees by `sharing`.

SHARING_LOG    a file to which every run of build_wheel appends "enter PID" and, when it has written, "leave PID"
SHARING_GATE   a file that build_wheel waits for (optional)
SHARING_FAIL   what it writes to standard error before it fails (optional)
SHARING_RUN    a command, as JSON, that the first run of all runs before it builds (optional)
"""

import json
import os
import subprocess
import sys
import time
import uuid
import zipfile


def _write(word):
    descriptor = os.open(os.environ["SHARING_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{word} {os.getpid()}\n".encode())
    os.close(descriptor)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with open("source.txt") as file:
        source = file.read()
    _write("enter")
    print("on standard output", sys.stdout.isatty(), flush=True)
    print("on standard error", sys.stderr.isatty(), file=sys.stderr, flush=True)
    with open(os.environ["SHARING_LOG"]) as file:
        is_first = file.read().count("enter") == 1
    if is_first and "SHARING_RUN" in os.environ:
        subprocess.run(json.loads(os.environ["SHARING_RUN"]), check=True)
    while "SHARING_GATE" in os.environ and not os.path.exists(os.environ["SHARING_GATE"]):
        time.sleep(0.005)
    if "SHARING_FAIL" in os.environ:
        sys.exit(os.environ["SHARING_FAIL"])
    name = "shared-1.0-py3-none-any.whl"
    files = {
        "shared.txt": source,
        "run.txt": uuid.uuid4().hex,
        "shared-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: shared\nVersion: 1.0\n",
        "shared-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "shared-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    _write("leave")
    return name

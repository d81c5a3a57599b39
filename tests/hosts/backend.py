"""A backend whose builds of wheels notice each other, also on different hosts. Copied into trees by the tests.

A folder that only one host can make says that a hook is inside, so that no clock is needed. Environment:

INSIDE   a file that the hook makes when it is inside (optional)
HELD     a file that the hook waits for (optional)
"""

import os
import time

import witness_backend


def build_wheel(*arguments: object) -> object:
    try:
        os.mkdir("busy")
    except FileExistsError:
        os.mkdir("overlap-" + os.urandom(8).hex())
        alone = False
    else:
        alone = True
    if "INSIDE" in os.environ:
        os.mkdir(os.environ["INSIDE"])
    while "HELD" in os.environ and not os.path.exists(os.environ["HELD"]):
        time.sleep(0.05)
    # The width of the window for an overlap.
    time.sleep(1)
    try:
        return witness_backend.build_wheel(*arguments)  # type: ignore[no-untyped-call]
    finally:
        if alone:
            os.rmdir("busy")

"""Locks a file with an OFD lock, as a process on a host: ``ofd.py FILE try``, or ``hold MARK CHECK``.

``try`` ends with 1 if the lock is not free. ``hold`` makes the file MARK when it has the lock. It lets go when there is
a file CHECK, and prints what a write through the lock's own descriptor says by then.
"""

import fcntl
import os
import struct
import sys
import time


def main() -> None:
    path, word, *others = sys.argv[1:]
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        sys.exit(f"{error.strerror}")
    if word == "hold":
        mark, check = others
        os.mkdir(mark)
        while not os.path.exists(check):
            time.sleep(0.05)
        try:
            os.pwrite(descriptor, b"x", 0)
            os.fsync(descriptor)
        except OSError as error:
            print(error.strerror)


main()

"""SHA-256, for keys and for files.

`hashlib` loads OpenSSL, which takes longer than to hash all that a build hashes before its hook host starts. So
Python's own implementation is used where there is one, as `random` in the standard library does, and OpenSSL for large
files.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        # Since Python 3.12.
        from _sha2 import sha256
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256

__all__ = ["digest_of_file", "sha256"]

# From how many bytes on OpenSSL is quicker, its import included: it takes 4 ms and is 1 ms a MiB faster.
_LARGE = 4 << 20


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size >= _LARGE:
            from hashlib import file_digest

            return file_digest(file, "sha256").hexdigest()
        return sha256(file.read()).hexdigest()

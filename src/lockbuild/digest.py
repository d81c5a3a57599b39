"""SHA-256, for keys and for files."""

from __future__ import annotations

from hashlib import file_digest, sha256

__all__ = ["digest_of_file", "sha256"]


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()

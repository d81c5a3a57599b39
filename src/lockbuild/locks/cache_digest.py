"""The digest of a path that names lock files. uv computes the same one, so that both use one lock file.

uv's crate ``uv-cache-key`` feeds a ``SeaHasher`` with Rust's ``Hash for Path``. The hash is SeaHash (crate
``seahash`` 4, 64 bits, its default seeds); the path is hashed as its components, written without separators,
and then one 64-bit word that mixes the components' lengths, so that ``a/bc`` and ``ab/c`` differ.
"""

from __future__ import annotations

import os

_WORD = (1 << 64) - 1

# The constants of the SeaHash specification: its multiplier and the four default seeds.
_MULTIPLIER = 0x6EED0E9DA4D94A4F
_SEEDS = (0x16F11FE89B0D677C, 0xB480A793D8E6C86C, 0x6FE2E5AAF078EBC9, 0x14F994A4C5259381)


def cache_digest(path: str | os.PathLike[str]) -> str:
    """
    Digest a canonical path (absolute, without symbolic links) into 16 hexadecimal digits.

    ``/srv/demo/project`` gives ``0d7f8a6ebbae0a85``. Bytes that are invalid in the file system's encoding are hashed
    as they are on disk. On Windows the digest is stable but differs from uv's.
    """
    separators = os.sep + (os.altsep or "")
    text = os.fspath(path)
    for separator in separators:
        text = text.replace(separator, "/")
    components = [os.fsencode(component) for component in text.split("/") if component]
    lengths = 0
    for component in components:
        lengths = _rotate_right_by_two((lengths + len(component)) & _WORD)
    hashed = _seahash(b"".join(components) + lengths.to_bytes(8, "little"))
    return hashed.to_bytes(8, "little").hex()


def _rotate_right_by_two(word: int) -> int:
    return (word >> 2) | (word & 0b11) << 62


def _seahash(data: bytes) -> int:
    a, b, c, d = _SEEDS
    for start in range(0, len(data), 8):
        a, b, c, d = b, c, d, _diffuse(a ^ int.from_bytes(data[start : start + 8], "little"))
    return _diffuse(a ^ b ^ c ^ d ^ len(data))


def _diffuse(word: int) -> int:
    word = word * _MULTIPLIER & _WORD
    word ^= (word >> 32) >> (word >> 60)
    return word * _MULTIPLIER & _WORD

"""A PEP 517 build frontend that is safe to run any number of times at once."""

from __future__ import annotations

__version__ = "0.1.0"

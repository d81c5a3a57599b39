"""A table of lengths."""

from tables._lengths import LENGTHS as LENGTHS

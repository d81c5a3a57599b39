"""Conversions of lengths."""

METRES = {"inch": 0.0254, "foot": 0.3048, "mile": 1609.344}

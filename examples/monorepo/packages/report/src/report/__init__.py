"""Prints the table."""

from tables import LENGTHS


def main() -> None:
    """Print a line for each length."""
    for name, length in LENGTHS.items():
        print(f"1 {name} is {length} m")

"""``python -m lockbuild``."""

from lockbuild.cli import entrypoint

if __name__ == "__main__":
    entrypoint(prog="python -m lockbuild")

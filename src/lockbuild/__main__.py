"""``python -m lockbuild``."""

from lockbuild.commands.program import entrypoint

if __name__ == "__main__":
    entrypoint(prog="python -m lockbuild")

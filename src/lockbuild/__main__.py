"""``python -m lockbuild``."""

from lockbuild.cli import main

if __name__ == "__main__":
    main(prog="python -m lockbuild")

"""``python -m sandboxd``."""

import sys

from sandboxd.cli import main

if __name__ == "__main__":
    sys.exit(main())

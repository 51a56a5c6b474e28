"""`python -m manifoldid`."""

import sys

from manifoldid.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m part_robust COMMAND`: the same as `part-robust COMMAND`."""

import sys

from part_robust.cli import main

if __name__ == "__main__":
    sys.exit(main())

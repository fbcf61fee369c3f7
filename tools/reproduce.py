#!/usr/bin/env python
"""`part-robust reproduce` of this checkout; see part_robust/cli/reproduce.py."""

import sys

from part_robust.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())

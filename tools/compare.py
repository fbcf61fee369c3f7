#!/usr/bin/env python
"""`part-robust compare` of this checkout; see part_robust/cli/compare.py."""

import sys

from part_robust.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())

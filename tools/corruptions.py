#!/usr/bin/env python
"""`part-robust corruptions` of this checkout; see part_robust/cli/corruptions.py."""

import sys

from part_robust.cli.corruptions import main

if __name__ == "__main__":
    sys.exit(main())

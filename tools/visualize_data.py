#!/usr/bin/env python
"""`part-robust visualize-data` of this checkout; see part_robust/cli/visualize_data.py."""

import sys

from part_robust.cli.visualize_data import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""`part-robust visualize-attack` of this checkout; see part_robust/cli/visualize_attack.py."""

import sys

from part_robust.cli.visualize_attack import main

if __name__ == "__main__":
    sys.exit(main())

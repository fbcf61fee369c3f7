#!/usr/bin/env python
"""`part-robust convert-checkpoint` of this checkout; see part_robust/cli/convert_checkpoint.py."""

import sys

from part_robust.cli.convert_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""`part-robust preannotate` of this checkout; see part_robust/cli/preannotate.py."""

import sys

from part_robust.cli.preannotate import main

if __name__ == "__main__":
    sys.exit(main())

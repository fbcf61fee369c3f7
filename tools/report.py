#!/usr/bin/env python
"""`part-robust report` of this checkout; see part_robust/cli/report.py."""

import sys

from part_robust.cli.report import main

if __name__ == "__main__":
    sys.exit(main())

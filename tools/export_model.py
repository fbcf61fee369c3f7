#!/usr/bin/env python
"""`part-robust export` of this checkout; see part_robust/cli/export_model.py."""

import sys

from part_robust.cli.export_model import main

if __name__ == "__main__":
    sys.exit(main())

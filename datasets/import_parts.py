#!/usr/bin/env python
"""`part-robust import-parts` of this checkout; see part_robust/cli/import_parts.py."""

import sys

from part_robust.cli.import_parts import main

if __name__ == "__main__":
    sys.exit(main())

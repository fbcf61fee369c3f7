#!/usr/bin/env python
"""`part-robust export-annotations` of this checkout; see part_robust/cli/export_annotations.py."""

import sys

from part_robust.cli.export_annotations import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""`part-robust import-coco` of this checkout; see part_robust/cli/import_coco.py."""

import sys

from part_robust.cli.import_coco import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""`part-robust make-part-shapes` of this checkout; see part_robust/cli/make_part_shapes.py."""

import sys

from part_robust.cli.make_part_shapes import main

if __name__ == "__main__":
    sys.exit(main())

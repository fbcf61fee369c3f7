#!/usr/bin/env python
"""`part-robust zoo-page` of this checkout; see part_robust/cli/model_zoo.py."""

import sys

from part_robust.cli.model_zoo import main

if __name__ == "__main__":
    sys.exit(main())

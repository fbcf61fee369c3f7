#!/usr/bin/env python
"""`part-robust prepare-paco` of this checkout; see part_robust/cli/prepare_paco.py."""

import sys

from part_robust.cli.prepare_paco import main

if __name__ == "__main__":
    sys.exit(main())

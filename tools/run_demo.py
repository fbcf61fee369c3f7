#!/usr/bin/env python
"""`make demo` of this checkout; see part_robust/cli/run_demo.py."""

import sys

from part_robust.cli.run_demo import main

if __name__ == "__main__":
    sys.exit(main())

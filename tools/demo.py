#!/usr/bin/env python
"""`part-robust demo` of this checkout; see part_robust/cli/demo.py."""

import sys

from part_robust.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())

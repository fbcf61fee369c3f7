#!/usr/bin/env python
"""`part-robust verify-adversarials` of this checkout; see part_robust/cli/verify_adversarials.py."""

import sys

from part_robust.cli.verify_adversarials import main

if __name__ == "__main__":
    sys.exit(main())

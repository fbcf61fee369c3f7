#!/usr/bin/env python
"""`part-robust train` of this checkout; see part_robust/cli/train_net.py."""

import sys

from part_robust.cli.train_net import main

if __name__ == "__main__":
    sys.exit(main())

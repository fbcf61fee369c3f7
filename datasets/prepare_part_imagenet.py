#!/usr/bin/env python
"""`part-robust prepare-part-imagenet` of this checkout; see part_robust/cli/prepare_part_imagenet.py."""

import sys

from part_robust.cli.prepare_part_imagenet import main

if __name__ == "__main__":
    sys.exit(main())

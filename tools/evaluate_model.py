#!/usr/bin/env python
"""`part-robust evaluate-model` of this checkout; see part_robust/cli/evaluate_model.py."""

import sys

from part_robust.cli.evaluate_model import main

if __name__ == "__main__":
    sys.exit(main())

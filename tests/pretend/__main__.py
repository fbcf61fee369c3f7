"""Runs a script on the pretend device: python -m tests.pretend tools/train_net.py ... MODEL.DEVICE cuda"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from tests.pretend.device import pretend_device

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.pretend SCRIPT [ARGUMENT ...]")
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    with pretend_device():
        runpy.run_path(sys.argv[0], run_name="__main__")

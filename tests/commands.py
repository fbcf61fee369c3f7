"""Commands as a shell sees them, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def exit_code(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Calls a command; where it ends with a sentence, that goes to stderr, as Python does with it."""
    try:
        return main(arguments) or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return int(stop.code or 0)


def call(tool: str, *arguments, datasets: Path | None = None) -> subprocess.CompletedProcess:
    """Runs a script of tools/ from the root of the repository, as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if datasets:
        environment["DETECTRON2_DATASETS"] = str(datasets)
    command = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def succeeded(done: subprocess.CompletedProcess) -> str:
    """Returns the output of a command that has ended well."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr

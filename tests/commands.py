"""Commands as a shell sees them, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def exit_code(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Calls a command; where it ends with a sentence, that goes to stderr, as Python does with it."""
    try:
        return main(arguments) or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return int(stop.code or 0)

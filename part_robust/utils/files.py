"""Files that a run reads back, described in a sentence where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from part_robust.utils.errors import UserError


def read_json(path: str | Path, remedy: str) -> Any:
    """
    Args:
        path: of a file that exists.
        remedy: what to do where it is damaged, a clause.

    Raises:
        UserError: the file is empty, cut off or no json.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        found = f"{len(content)} bytes that begin with {content[:40]!r}" if content else "an empty file"
        raise UserError(f"{path} must be json, got {found}: {remedy}") from error

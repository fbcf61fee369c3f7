"""Files that a run reads back, described in a sentence where they are damaged."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from part_robust.utils.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_file(path: str | Path, what: str = "a file") -> None:
    """Refuses what has no end to be read to: reading a named pipe waits for a writer, and a device may go on forever.

    Args:
        path: of what is to be read; links are followed.
        what: the kind of file that is wanted.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it cannot be looked at.
        UserError: it is a folder, a pipe, a device or a socket.
    """
    mode = Path(path).stat().st_mode
    found = next((words for is_kind, words in _KINDS if is_kind(mode)), None)
    if found:
        raise UserError(f"{path} must be {what}, got {found}")


def read_json(path: str | Path, remedy: str) -> Any:
    """
    Args:
        path: of a file that exists.
        remedy: what to do where it is damaged, a clause.

    Raises:
        UserError: the file is empty, cut off, no json or no file.
        OSError: it cannot be read.
    """
    check_file(path, "a json file")
    content = Path(path).read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        found = f"{len(content)} bytes that begin with {content[:40]!r}" if content else "an empty file"
        raise UserError(f"{path} must be json, got {found}: {remedy}") from error

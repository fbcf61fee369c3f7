"""Files that a run writes at once and reads back: text, json, hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from part_robust.utils.errors import UserError


def file_sha256(path: str | Path) -> str | None:
    """SHA-256 of a file in hexadecimal; None where there is no such file."""
    if not path or not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically: a killed process leaves the old file or the new one. Makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_json(path: str | Path, record: Mapping) -> None:
    """Writes json atomically, as `write_text`."""
    write_text(path, json.dumps(record, indent=1) + "\n")


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

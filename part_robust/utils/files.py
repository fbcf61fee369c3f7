"""Files that a run writes whole or not at all, and reads back, described in a sentence where they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from part_robust.utils.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_file(path: str | Path, what: str = "a file") -> None:
    """Refuse files without an end: reading a named pipe waits for a writer, and a device may never end.

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


@contextlib.contextmanager
def replacing(path: str | Path, flushed: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the place of `path` when the block ends.

    A killed process leaves the old file or the new one, never a part of it. After an error the temporary file is
    removed and `path` stays as it is. The folder is made if it is missing.

    Args:
        path: the file.
        flushed: its content is on the disk before it takes the place, which a loss of power survives too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        if flushed:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file whole or not at all and return its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a file of UTF-8 text whole or not at all and return its path."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, record: Mapping) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def file_sha256(path: str | Path) -> str | None:
    """Return the SHA-256 of a file in hexadecimal, None where there is no such file."""
    if not path or not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: str | Path, what: str) -> str:
    """Read a file of UTF-8 text.

    Args:
        path: of a file that exists.
        what: what it holds, for the message.

    Raises:
        UserError: it is not a file, or no text.
        OSError: it cannot be read.
    """
    check_file(path, f"a file of {what}")
    content = Path(path).read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be {what}, got {len(content)} bytes that begin with {content[:40]!r}") from error


def read_arrays(path: str | Path, what: str) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file.

    Args:
        path: of a file that exists.
        what: what it holds, for the message.

    Raises:
        UserError: the file is empty, cut off, damaged or no file.
        OSError: it cannot be read.
    """
    check_file(path, f"a file of {what}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # Of damaged files, and of those that hold one array alone or another kind of content.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} must be a whole file of {what}, got {Path(path).stat().st_size} bytes that cannot be read: "
            "evaluate again"
        ) from error


def read_json(path: str | Path, remedy: str, keys: Collection[str] = ()) -> Any:
    """Read a json file.

    Args:
        path: of a file that exists.
        remedy: what to do where it is damaged, a clause.
        keys: that it must have, as an object.

    Raises:
        UserError: the file is empty, cut off, no json or no file.
        OSError: it cannot be read.
    """
    check_file(path, "a json file")
    content = Path(path).read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        found = f"{len(content)} bytes that begin with {content[:40]!r}" if content else "an empty file"
        raise UserError(f"{path} must be json, got {found}: {remedy}") from error
    if keys and not (isinstance(value, dict) and value.keys() >= set(keys)):
        raise UserError(f"{path} must be a json object with {', '.join(keys)}, got {content[:40]!r}: {remedy}")
    return value

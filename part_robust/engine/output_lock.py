"""A lock on OUTPUT_DIR: two runs that write into one folder would mix their checkpoints, batches and records."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from detectron2.utils import comm

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Errors of file systems that have no locks.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}

_held: dict[Path, IO[str]] = {}


class OutputInUse(ValueError):
    """Another run writes into the folder, or nothing can be written there."""


def lock_output(folder: str | Path, purpose: str) -> None:
    """Rank 0 locks the folder for this process until `release_output` or the end of the process; every rank calls it.

    A folder that this process has locked already stays locked. The operating system releases the lock of a process that
    is killed. A file system without locks gives a warning in the log.

    Args:
        folder: OUTPUT_DIR, made if it is missing.
        purpose: what the run does, for the sentence that another run gets.

    Raises:
        OutputInUse: another process has locked the folder, or it cannot be written; on every rank.
    """
    problem = _lock(Path(folder), purpose) if comm.is_main_process() else None
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise OutputInUse(problem)


def release_output(folder: str | Path) -> None:
    """Releases the lock of this process, if it has one."""
    file = _held.pop(Path(folder).resolve(), None)
    if file is not None:
        file.truncate(0)
        file.close()


def _lock(folder: Path, purpose: str) -> str | None:
    """Locks the folder; returns a sentence where that is impossible."""
    path = folder.resolve() / LOCK
    if path.parent in _held:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (open for as long as the lock is held)
    except OSError as error:
        return (
            f"OUTPUT_DIR must be a folder that can be written, got {folder} ({error.strerror}). Set another OUTPUT_DIR"
        )
    try:
        # Unlike flock's, these locks do not pass to forked data-loading workers, which may outlive a killed process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            logger.warning("%s cannot be locked (%s): start no other run with this OUTPUT_DIR", folder, error.strerror)
            file.close()
            return None
        holder = _read_holder(file)
        file.close()
        return f"OUTPUT_DIR {folder} is in use by {holder}. Set another OUTPUT_DIR, or wait until that run has ended"
    file.seek(0)
    file.truncate()
    json.dump({"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname(), "since": _now()}, file)
    file.flush()
    _held[path.parent] = file
    return None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _read_holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        holder = json.load(file)
        return f"{holder['purpose']} (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return "another run"

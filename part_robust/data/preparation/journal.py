"""Journal of finished units: an append-only file that survives kill -9, and a lock for the process that writes it."""

from __future__ import annotations

import fcntl
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def dump(value: Any) -> str:
    """Json in one line and one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the operating system frees it whatever ends the process.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another process is preparing data in {folder.parent}: wait for it to end") from error
        yield


class PreparationJournal:
    """Results by unit of work. A line is `crc32 json`; a torn last line is cut off on opening."""

    def __init__(self, path: Path, settings: dict, root: Path) -> None:
        """Open the file, and read what it says is done.

        Args:
            path: the file.
            settings: everything that the results depend on.
            root: folder that the `files` of a result, [name, size, crc32], are relative to; a result counts only
                while its files are as they were.

        Raises:
            ValueError: the journal was begun with other settings.
        """
        self._path = path
        self._root = root
        self._offsets: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        end = self._read(settings) if path.exists() else 0
        self._file = open(path, "ab")  # noqa: SIM115 (closed by close)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._write({"settings": settings})

    def _read(self, settings: dict) -> int:
        """Indexes the good lines; returns where they end."""
        end = 0
        with open(self._path, "rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is None:
                    break
                if "settings" in entry:
                    _same_settings(entry["settings"], settings, self._path)
                elif self._files_are_good(entry["result"]):
                    self._offsets[entry["unit"]] = end
                end += len(line)
        return end

    def _files_are_good(self, result: dict) -> bool:
        for name, size, crc in result.get("files", ()):
            path = self._root / name
            if not path.is_file() or path.stat().st_size != size or zlib.crc32(path.read_bytes()) != crc:
                return False
        return True

    def _write(self, entry: dict) -> int:
        text = dump(entry)
        offset = self._file.tell()
        self._file.write(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
        self._file.flush()
        return offset

    def append(self, unit: str, result: dict) -> None:
        """Write the result of a unit, which from now on counts as finished."""
        self._offsets[unit] = self._write({"unit": unit, "result": result})

    @property
    def units(self) -> list[str]:
        """Finished units, sorted."""
        return sorted(self._offsets)

    def results(self) -> Iterator[tuple[str, dict]]:
        """Yield (unit, result) in the order of the unit names, one at a time in memory.

        Raises:
            RuntimeError: the file changed while it was read.
        """
        with open(self._path, "rb") as file:
            for unit in self.units:
                file.seek(self._offsets[unit])
                entry = _parse(file.readline())
                if entry is None:
                    raise RuntimeError(f"{self._path} changed while it was read: run the command again")
                yield unit, entry["result"]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse(line: bytes) -> dict | None:
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)


def _same_settings(found: dict, wanted: dict, path: Path) -> None:
    if found != wanted:
        keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        raise ValueError(
            f"{path.parent.parent} holds an unfinished preparation with other settings ({', '.join(keys)}): repeat it "
            "with the old ones, prepare into another folder, or start over with --restart"
        )

"""Writes one split's part json without holding it in memory."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import IO

from part_robust.data.preparation.journal import dump
from part_robust.utils.files import replacing


class SplitWriter:
    """Takes samples in their final order and numbers images and annotations from 1."""

    def __init__(self, work: Path, split: str) -> None:
        """Begin the json of a split.

        Args:
            work: folder for the two halves of the json until it is whole.
            split: name of the split.
        """
        self._paths = {key: work / f"{split}.{key}" for key in ("annotations", "images")}
        self._files: dict[str, IO[bytes]] = {key: open(path, "wb") for key, path in self._paths.items()}  # noqa: SIM115
        self._counts = Counter({"annotations": 0, "images": 0})
        self._classes: Counter = Counter()
        self._parts: Counter = Counter()
        self._supervision: Counter = Counter()

    def add(self, sample: dict) -> None:
        """Appends one sample: the part json's `image` and its `annotations`, still without ids."""
        image_id = self._append("images", sample["image"])
        for annotation in sample["annotations"]:
            self._append("annotations", {**annotation, "image_id": image_id})
            self._parts[annotation["category_id"]] += 1
        self._classes[sample["image"]["class_id"]] += 1
        self._supervision[sample["image"].get("part_supervision", "full")] += 1

    def _append(self, key: str, entry: dict) -> int:
        self._counts[key] += 1
        separator = b",\n" if self._counts[key] > 1 else b""
        self._files[key].write(separator + dump({**entry, "id": self._counts[key]}).encode())
        return self._counts[key]

    def finish(self, path: Path, frame: dict) -> bool:
        """Puts the json together under `path`, atomically.

        Args:
            path: file to write.
            frame: the other keys of the json.

        Returns:
            False, and no file, where there was no sample.
        """
        for file in self._files.values():
            file.close()
        if self._counts["images"]:
            with replacing(path) as temporary, open(temporary, "wb") as out:
                for index, key in enumerate(sorted({*frame, *self._paths})):
                    out.write((b"{" if index == 0 else b",\n") + f'"{key}":'.encode())
                    if key in self._paths:
                        out.write(b"[")
                        with open(self._paths[key], "rb") as half:
                            shutil.copyfileobj(half, out, 1 << 20)
                        out.write(b"]")
                    else:
                        out.write(dump(frame[key]).encode())
                out.write(b"}\n")
        for half_path in self._paths.values():
            half_path.unlink()
        return bool(self._counts["images"])

    def class_counts(self, classes: list[dict]) -> dict[str, int]:
        """Images of every class, by name."""
        return {entry["name"]: self._classes[entry["id"]] for entry in classes}

    def summary(self, classes: list[dict], categories: list[dict]) -> dict:
        """Numbers for the report."""
        return {
            "images": self._counts["images"],
            "part annotations": self._counts["annotations"],
            **{f"part_supervision {key}": count for key, count in sorted(self._supervision.items())},
            "classes absent": [c["name"] for c in classes if not self._classes[c["id"]]],
            "parts absent": [c["name"] for c in categories if not self._parts[c["id"]]],
        }

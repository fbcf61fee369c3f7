"""Pieces of the files that annotation tools write about the coloured pictures, and imports of them."""

from __future__ import annotations

from pathlib import Path

from part_robust.cli import import_parts
from part_robust.data import check
from tests.commands import exit_code
from tests.data.coloured import H, W, measured, polygon


def command(*arguments: object) -> int:
    """Imports into the split train by `import-parts`; its exit code."""
    common = ("--workers", "1", "--ratios", "1", "0", "0")
    return exit_code(import_parts.main, [*map(str, arguments), *common])


def result(out: Path, images: Path) -> dict[str, dict]:
    """What was imported, by `measured`, after the check has found it good."""
    path = out / "annotations" / "train.json"
    assert check.main([str(path), "--image-root", str(images)]) == 0
    return measured(path, images.resolve())


def right(found: dict, supervision: str = "full", parts=("wheel", "door"), label: str = "car") -> bool:
    return found["supervision"] == supervision and found["class"] == label and all(found[p] == (1, 1) for p in parts)


def label_studio(kind: str, value: dict, labels: list[str]) -> dict:
    return {
        "original_width": W, "original_height": H, "image_rotation": 0, "id": "x", "from_name": "label",
        "to_name": "image", "type": kind, "origin": "manual", "value": {**value, kind: labels},
    }  # fmt: skip


def percent(box) -> dict:
    x, y, w, h = box
    return {"x": 100 * x / W, "y": 100 * y / H, "width": 100 * w / W, "height": 100 * h / H, "rotation": 0}


def line(number: int, box, kind: str) -> str:
    x, y, w, h = box
    if kind == "detection":
        return f"{number} {(x + w / 2) / W} {(y + h / 2) / H} {w / W} {h / H}"
    values = polygon(box)
    return f"{number} " + " ".join(str(v / (W, H)[i % 2]) for i, v in enumerate(values))

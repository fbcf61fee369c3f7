"""Imports of annotation tools' files in tests: the command, what it wrote, and pieces of such files."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from part_robust.cli import import_parts
from part_robust.data import check
from tests.commands import exit_code
from tests.data.coloured import H, W, measured, polygon


def command(*arguments: object) -> int:
    common = ("--workers", "1", "--ratios", "1", "0", "0")
    return exit_code(import_parts.main, [*map(str, arguments), *common])


def result(out: Path, images: Path) -> dict[str, dict]:
    path = out / "annotations" / "train.json"
    assert check.main([str(path), "--image-root", str(images)]) == 0
    return measured(path, images.resolve())


def counted(out: Path) -> dict[str, int]:
    """Counts by reason of what was skipped, repaired and noticed."""
    data = json.loads((out / "report.json").read_text())
    return {reason: e["count"] for kind in ("skipped", "repaired", "noted") for reason, e in data[kind].items()}


def mask(box) -> np.ndarray:
    x, y, w, h = box
    found = np.zeros((H, W), dtype=np.uint8)
    found[y : y + h, x : x + w] = 1
    return found


def right(found: dict, supervision: str = "full", parts=("wheel", "door"), label: str = "car") -> bool:
    return found["supervision"] == supervision and found["class"] == label and all(found[p] == (1, 1) for p in parts)


def brush(found: np.ndarray) -> list[int]:
    """Label Studio's run-length code of an RGBA picture, by runs of equal values."""
    values = np.repeat(found.ravel() * 255, 4)
    bits = f"{values.size:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    start = 0
    while start < values.size:
        end = start + 1
        while end < values.size and values[end] == values[start] and end - start < 1 << 16:
            end += 1
        length = end - start
        if length > 1:
            width = next(i for i, size in enumerate((3, 4, 8, 16)) if length <= 1 << size)
            bits += "1" + f"{width:02b}" + f"{length - 1:0{(3, 4, 8, 16)[width]}b}" + f"{values[start]:08b}"
        else:
            bits += "0" + "00" + "000" + f"{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def data_url(found: np.ndarray, mode: str = "LA") -> str:
    """Label Studio's bit mask: black on transparent ground."""
    picture = np.stack([found * 0, found * 255], axis=2) if mode == "LA" else found * 255
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8), mode).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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

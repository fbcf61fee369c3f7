"""Parts of single images, true and predicted, and the same as plain arrays that a file can keep.

Letters: G true and D predicted parts of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageParts:
    """Parts of one image, with classes (G,), (D,) and scores (D,).

    They are boxes (G, 4), (D, 4), XYXY pixels, or masks (G,), (D,), COCO's run lengths as objects.
    """

    true_parts: np.ndarray
    true_classes: np.ndarray
    parts: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def pack(images: Mapping[int, ImageParts]) -> dict[str, np.ndarray]:
    """All images' parts one after the other, none of the arrays of objects; `unpack` undoes it."""
    ids = sorted(images)
    records = [images[image_id] for image_id in ids]
    counts = [(i, len(record.true_parts), len(record.parts)) for i, record in zip(ids, records, strict=True)]
    arrays = {
        "counts": np.array(counts, dtype=np.int64).reshape(-1, 3),
        "true_classes": np.concatenate([np.zeros(0, np.int64), *(record.true_classes for record in records)]),
        "classes": np.concatenate([np.zeros(0, np.int64), *(record.classes for record in records)]),
        "scores": np.concatenate([np.zeros(0), *(record.scores for record in records)]),
    }
    for name in ("true_parts", "parts"):
        arrays |= {f"{name}{end}": array for end, array in _pack_parts([getattr(r, name) for r in records]).items()}
    return arrays


def unpack(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[int, ImageParts]]:
    """Image ids and parts of what `pack` made."""
    true_parts, parts = _unpack_parts("true_parts", arrays), _unpack_parts("parts", arrays)
    true_start = start = 0
    for image_id, true_count, count in arrays["counts"].tolist():
        true, found = slice(true_start, true_start + true_count), slice(start, start + count)
        yield (
            image_id,
            ImageParts(
                true_parts=true_parts[true],
                true_classes=arrays["true_classes"][true],
                parts=parts[found],
                classes=arrays["classes"][found],
                scores=arrays["scores"][found],
            ),
        )
        true_start, start = true.stop, found.stop


def _pack_parts(parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    if not any(own.dtype == object for own in parts):
        return {"": np.concatenate([np.zeros((0, 4)), *parts])}
    masks = [mask for own in parts for mask in own]
    return {
        ".sizes": np.array([mask["size"] for mask in masks], dtype=np.int64).reshape(-1, 2),
        ".lengths": np.array([len(mask["counts"]) for mask in masks], dtype=np.int64),
        ".runs": np.frombuffer(b"".join(mask["counts"] for mask in masks), dtype=np.uint8),
    }


def _unpack_parts(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    ends = arrays[f"{name}.lengths"].cumsum()
    runs = arrays[f"{name}.runs"].tobytes()
    masks = np.empty(len(ends), dtype=object)
    for i, (size, length, end) in enumerate(
        zip(arrays[f"{name}.sizes"].tolist(), arrays[f"{name}.lengths"].tolist(), ends.tolist(), strict=True)
    ):
        masks[i] = {"size": size, "counts": runs[end - length : end]}
    return masks

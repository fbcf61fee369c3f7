"""What average precision needs of each image, and the same of many images as plain arrays.

Letters: G true and D predicted parts of an image, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor


@dataclass(frozen=True)
class ImageParts:
    """Parts of one image: G true and D predicted ones, with classes (G,), (D,) and scores (D,).

    They are boxes (G, 4), (D, 4), XYXY pixels, or masks (G,), (D,), COCO's run lengths as objects.
    """

    true_parts: np.ndarray
    true_classes: np.ndarray
    parts: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def run_lengths(masks: Tensor) -> np.ndarray:
    """Bool (D, H, W) on the CPU -> objects (D,), COCO's run lengths."""
    result = np.empty(len(masks), dtype=object)
    result[:] = coco_mask.encode(np.asfortranarray(masks.numpy().view(np.uint8).transpose(1, 2, 0)))
    return result


def pack(records: Mapping[int, ImageParts]) -> dict[str, np.ndarray]:
    """All images' parts one after the other, and how many are whose."""
    ordered = [(image_id, records[image_id]) for image_id in sorted(records)]
    counts = [(image_id, len(record.true_parts), len(record.parts)) for image_id, record in ordered]
    arrays = {"counts": np.array(counts, dtype=np.int64).reshape(-1, 3)}
    for field in fields(ImageParts) if ordered else ():
        values = np.concatenate([getattr(record, field.name) for _, record in ordered])
        if values.dtype == object:
            texts = [mask["counts"] for mask in values]
            arrays[f"{field.name}_bytes"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
            arrays[f"{field.name}_ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
            arrays[f"{field.name}_sizes"] = np.array([m["size"] for m in values], dtype=np.int64).reshape(-1, 2)
        else:
            arrays[field.name] = values
    return arrays


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[int, ImageParts]:
    """What `pack` was given."""
    if not len(arrays["counts"]):
        return {}
    columns = {field.name: _column(arrays, field.name) for field in fields(ImageParts)}
    records = {}
    true_start = start = 0
    for image_id, true_count, count in arrays["counts"].tolist():
        true, found = slice(true_start, true_start + true_count), slice(start, start + count)
        slices = {name: values[true if name.startswith("true") else found] for name, values in columns.items()}
        records[image_id] = ImageParts(**slices)
        true_start, start = true.stop, found.stop
    return records


def _column(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    text, ends = arrays[f"{name}_bytes"].tobytes(), arrays[f"{name}_ends"].tolist()
    masks = np.empty(len(ends), dtype=object)
    for row, (start, end, size) in enumerate(zip([0, *ends], ends, arrays[f"{name}_sizes"].tolist(), strict=False)):
        masks[row] = {"size": size, "counts": text[start:end]}
    return masks

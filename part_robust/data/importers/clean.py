"""Foreign annotations -> what the part format allows. Everything repaired or left out is counted.

Letters: h, w image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from part_robust.data.importers.files import BROKEN_PICTURE
from part_robust.data.importers.items import Item, MaskFile
from part_robust.data.importers.numbers import as_number, is_number, is_set
from part_robust.data.importers.report import ImportCounts
from part_robust.data.mask_validation import BOX_OFF, is_near, is_sound_rle


def clean_item(item: Item, crowd: str, tally: ImportCounts) -> None:
    """Fills `item.parts`, `item.ignore` and `item.lost` from its raw parts; needs its width and height.

    Args:
        item: changed in place.
        crowd: "part" takes iscrowd 1 as an ordinary part, "ignore" makes its pixels count nowhere.
        tally: receives what was repaired or left out.
    """
    for raw in item.raw:
        part = _clean_part(raw, item, crowd, tally)
        if part is not None:
            item.parts.append(part)


def _clean_part(raw: Mapping, item: Item, crowd: str, tally: ImportCounts) -> dict | None:
    where, h, w = raw["where"], item.height, item.width
    given = _numbers(raw.get("bbox"))
    segmentation, reason = _clean_segmentation(raw, h, w, tally)
    if reason is not None:
        tally.add(reason, where)
        item.lost += 1
        return None
    box = _clip_box(given, h, w)
    if segmentation is None and box is not None and box != [float(value) for value in given or ()]:
        tally.add("box_clipped", where)
    area = None
    if segmentation is not None:
        rle = _as_rle(segmentation, h, w)
        area = float(coco_mask.area(rle))
        if area <= 0:
            tally.add("zero_area", where)
            item.lost += 1
            return None
        from_mask = [float(value) for value in coco_mask.toBbox(rle)]
        if not isinstance(raw.get("segmentation"), MaskFile) and not raw.get("no_box"):
            _count_box_repair(given, from_mask, box, where, tally)
        box = from_mask
    if box is None:
        tally.add("degenerate_box", where)
        item.lost += 1
        return None
    if raw.get("ignore"):
        item.ignore.append(_as_rle(segmentation or [_box_polygon(box)], h, w))
        return None
    if is_set(raw.get("iscrowd", 0)):
        if crowd == "ignore":
            tally.add("crowd_to_ignore", where)
            item.ignore.append(_as_rle(segmentation or [_box_polygon(box)], h, w))
            return None
        tally.add("crowd_to_part", where)
    part = {"part": raw["part"], "bbox": box, "area": area if area is not None else box[2] * box[3]}
    if segmentation is None:
        tally.add("box_only", where)
    else:
        part["segmentation"] = segmentation
    for key in ("object_id", "is_target"):
        if key in raw:
            part[key] = raw[key]
    return part


def ignored_region(item: Item) -> dict | None:
    """The union of the regions that count nowhere as one RLE with string counts."""
    return _text(coco_mask.merge(item.ignore)) if item.ignore else None


def _text(rle: Mapping) -> dict:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _as_rle(segmentation: Any, h: int, w: int) -> dict:
    if isinstance(segmentation, Mapping):
        return dict(segmentation)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))


def _clean_segmentation(raw: Mapping, h: int, w: int, tally: ImportCounts) -> tuple[list | dict | None, str | None]:
    """Return the segmentation, and the reason why the whole annotation cannot be used, or None.

    The segmentation is polygons of 3 or more distinct points, or a compressed RLE of the image's size, or None where
    there is only a box.
    """
    segmentation, where = raw.get("segmentation"), raw["where"]
    if isinstance(segmentation, MaskFile):
        return _read_mask(segmentation, h, w)
    if isinstance(segmentation, Mapping) and segmentation:
        rle, compressed = _clean_rle(segmentation, h, w)
        if rle is None:
            tally.add("rle_unusable", where)
        elif compressed:
            tally.add("rle_list_counts", where)
        return rle, None
    if not isinstance(segmentation, list) or not segmentation:
        if "segmentation" in raw:
            tally.add("empty_segmentation", where)
        return None, None
    if all(as_number(value) is not None for value in segmentation) or _is_point_list(segmentation):
        tally.add("flat_polygon", where)
        segmentation = [segmentation]
    segmentation = [_flat(polygon) for polygon in segmentation]
    good = [polygon for polygon in segmentation if _is_polygon(polygon)]
    if len(good) < len(segmentation):
        tally.add("bad_polygon", where)
    if not good:
        tally.add("empty_segmentation", where)
        return None, None
    # pycocotools rasterises what lies outside too, and takes all memory for a vertex that is far away.
    if not all(is_near(polygon, h, w) for polygon in good):
        return None, "far_outside"
    return good, None


def _read_mask(mask: MaskFile, h: int, w: int) -> tuple[dict | None, str | None]:
    try:
        pixels = mask.read(mask.path, mask.key)
    except BROKEN_PICTURE:
        return None, "mask_unreadable"
    if pixels.shape != (h, w):
        return None, "mask_size"
    return _text(coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))), None


def _flat(polygon: Any) -> Any:
    """[[x, y], ...] as [x, y, ...], and numbers that are text as numbers."""
    if not isinstance(polygon, list):
        return polygon
    if polygon and all(isinstance(point, list) and len(point) == 2 for point in polygon):
        polygon = [value for point in polygon for value in point]
    numbers = [as_number(value) for value in polygon]
    return polygon if any(number is None for number in numbers) else numbers


def _is_point_list(segmentation: list) -> bool:
    """Return whether it is one polygon [[x, y], ...], not a list of polygons."""
    return len(segmentation) >= 3 and all(isinstance(point, list) and len(point) == 2 for point in segmentation)


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) % 2 or not all(is_number(value) for value in polygon):
        return False
    return len(set(zip(polygon[::2], polygon[1::2], strict=True))) >= 3


def _clean_rle(rle: Mapping, h: int, w: int) -> tuple[dict | None, bool]:
    """(RLE with string counts or None, whether it had to be compressed)."""
    counts = rle.get("counts")
    if rle.get("size") != [h, w]:
        return None, False
    if isinstance(counts, list):
        usable = all(isinstance(run, int) and run >= 0 for run in counts) and sum(counts) == h * w
        return (
            (_text(coco_mask.frPyObjects({"size": [h, w], "counts": counts}, h, w)), True) if usable else (None, True)
        )
    if not isinstance(counts, str):
        return None, False
    clean = {"size": [h, w], "counts": counts}
    # pycocotools would read beyond the end of a cut one.
    return (clean if is_sound_rle(clean, h, w) else None), False


def _numbers(box: Any) -> list[float] | None:
    """Four numbers, also where some are text, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [as_number(value) for value in box]
    return None if any(number is None for number in numbers) else [n for n in numbers if n is not None]


def _clip_box(box: Sequence[float] | None, h: int, w: int) -> list[float] | None:
    """XYWH inside the image, None where nothing of it is."""
    if box is None:
        return None
    left, top = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
    # A box that is inside keeps its numbers to the bit.
    width = float(box[2]) if left == box[0] and box[0] + box[2] <= w else min(float(box[0] + box[2]), w) - left
    height = float(box[3]) if top == box[1] and box[1] + box[3] <= h else min(float(box[1] + box[3]), h) - top
    return [left, top, width, height] if width > 0 and height > 0 else None


def _count_box_repair(
    given: Sequence[float] | None, from_mask: list[float], clipped: list[float] | None, where: str, tally: ImportCounts
) -> None:
    if clipped is None or given is None:
        tally.add("box_replaced", where)
        return
    if any(abs(new - old) > 0.51 for new, old in zip(clipped, given, strict=True)):
        tally.add("box_clipped", where)
    ends = [from_mask[0] + from_mask[2], from_mask[1] + from_mask[3], clipped[0] + clipped[2], clipped[1] + clipped[3]]
    off = (from_mask[0] - clipped[0], from_mask[1] - clipped[1], ends[0] - ends[2], ends[1] - ends[3])
    if max(map(abs, off)) > BOX_OFF:
        tally.add("box_replaced", where)


def _box_polygon(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]

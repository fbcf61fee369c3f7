"""Regions of an image that a local attacker may change: one part, the object, all but the object, a square patch.

Parts are those of the data set's labels, in the network's geometry: masks, or with INPUT.PART_MASKS boxes the boxes.
Region r is part r for r < P, then the object, then the background, then the patches.

Letters: N images of (3, H, W), M of them; P parts; K positions of a patch; h w places of its top left corner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.attacks import noise
from part_robust.attacks.square import squares
from part_robust.utils.transfer import to_device

REGIONS = ("parts", "object", "background", "patch")


@dataclass(frozen=True)
class Regions:
    """One region of each of some images.

    Attributes:
        rows: int64 (M,), images of the batch, ascending, on the host.
        regions: int64 (M,), on the host.
        masks: bool (M, 1, H, W) each, on the device: K candidates of a patch, of which the worst counts; one of others.
        corners: int64 (M, K, 2), top and left of the candidates of a patch, on the host; None of others.
    """

    rows: Tensor
    regions: Tensor
    masks: Sequence[Tensor]
    corners: Tensor | None = None


def region_names(part_names: Sequence[str], sides: Sequence[int]) -> list[str]:
    """Names of all regions; `sides` of patches in pixels."""
    return [*(f"part:{name}" for name in part_names), "object", "background", *(f"patch:{side}px" for side in sides)]


def region_numbers(kinds: Collection[str], num_parts: int, sides: int) -> list[int]:
    """The regions of some of `REGIONS`, ascending; `sides` is the number of patches."""
    groups = {
        "parts": range(num_parts),
        "object": [num_parts],
        "background": [num_parts + 1],
        "patch": range(num_parts + 2, num_parts + 2 + sides),
    }
    return [region for kind, regions in groups.items() if kind in kinds for region in regions]


def labelled_regions(
    items: Sequence[dict], num_parts: int, kinds: Collection[str], device: torch.device
) -> Iterator[Regions]:
    """Yield the regions that labels tell, each image's first part first, then its second, and so on.

    An image without labels of a part has none of that region. Object and background are known where all parts are
    labelled and there is one; pixels to be ignored belong to neither.

    Args:
        items: the mapper's dicts.
        num_parts: P.
        kinds: of `REGIONS`.
        device: of the masks.
    """
    labels = torch.stack([item["sem_seg"] for item in items])
    found = torch.zeros(len(items), num_parts + 1, dtype=torch.bool)
    found.scatter_(1, labels.clamp(max=num_parts).flatten(1), torch.ones_like(labels.flatten(1), dtype=torch.bool))
    found = found[:, :num_parts]
    complete = torch.tensor([item["part_supervision"] == "full" for item in items]) & found.any(dim=1)
    there = {
        "object": complete,
        "background": complete & (labels == num_parts).flatten(1).any(dim=1),
    }
    maps = to_device({"": labels}, device)[""]
    if "parts" in kinds:
        place = found.cumsum(dim=1)
        for index in range(int(found.sum(dim=1).max()) if len(items) else 0):
            rows, parts = (found & (place == index + 1)).nonzero(as_tuple=True)
            moved = to_device({"rows": rows, "parts": parts}, device)
            yield Regions(rows, parts, [(maps[moved["rows"]] == moved["parts"][:, None, None])[:, None]])
    for offset, kind in enumerate(("object", "background")):
        rows = there[kind].nonzero()[:, 0]
        if kind in kinds and len(rows):
            own = maps[to_device({"": rows}, device)[""]][:, None]
            regions = torch.full_like(rows, num_parts + offset)
            yield Regions(rows, regions, [own < num_parts if kind == "object" else own == num_parts])


def chosen_regions(
    items: Sequence[dict], num_parts: int, sides: Sequence[int], pairs: Tensor, device: torch.device
) -> list[Regions]:
    """Return some regions of images, patches at given places.

    Args:
        items: the mapper's dicts.
        num_parts: P.
        sides: of patches, pixels.
        pairs: int64 (M, 4), on the host: row of the image, region, top and left of a patch.
        device: of the masks.
    """
    labels = torch.stack([item["sem_seg"] for item in items])
    # Labels of each region from the first to the last.
    first = torch.tensor([*range(num_parts), 0, num_parts])
    last = torch.tensor([*range(num_parts), num_parts - 1, num_parts])
    found, height, width = [], labels.shape[1], labels.shape[2]
    rows, regions, _, _ = pairs[pairs[:, 1] < num_parts + 2].unbind(dim=1)
    if len(rows):
        moved = to_device({"maps": labels, "rows": rows, "first": first[regions], "last": last[regions]}, device)
        own = moved["maps"][moved["rows"]]
        inside = (own >= moved["first"][:, None, None]) & (own <= moved["last"][:, None, None])
        found.append(Regions(rows, regions, [inside[:, None]]))
    for number, side in enumerate(sides):
        patches = pairs[pairs[:, 1] == num_parts + 2 + number]
        if len(patches):
            corner = to_device({"": patches[:, 2:]}, device)[""]
            mask = squares(corner[:, 0], corner[:, 1], side, height, width)
            found.append(Regions(patches[:, 0], patches[:, 1], [mask], patches[:, None, 2:]))
    return found


def in_one_region(
    changed: Tensor, labels: Tensor, num_parts: int, kinds: Collection[str], sides: Sequence[int]
) -> Tensor:
    """Return whether all changed pixels of each image lie in one region that an attacker may change.

    Args:
        changed: bool (N, H, W).
        labels: int64 (N, H, W), the mapper's `sem_seg`.
        num_parts: P.
        kinds: of `REGIONS`.
        sides: of patches, pixels.

    Returns:
        bool (N,); true for images without changes.
    """
    # With pixels that have not changed out of the way, an image's lowest and highest label tell its labels.
    low = labels.masked_fill(~changed, num_parts + 1).flatten(1).amin(dim=1)
    high = labels.masked_fill(~changed, -1).flatten(1).amax(dim=1)
    inside = ~changed.flatten(1).any(dim=1)
    if "parts" in kinds:
        inside = inside | ((low == high) & (high < num_parts))
    if "object" in kinds:
        inside = inside | (high < num_parts)
    if "background" in kinds:
        inside = inside | ((low == high) & (high == num_parts))
    if "patch" in kinds and sides:
        width, height = _reach(changed.any(dim=1)), _reach(changed.any(dim=2))
        inside = inside | (torch.maximum(width, height) <= max(sides))
    return inside


def _reach(line: Tensor) -> Tensor:
    """Return the number of places from the first to the last true one of each line, bool (N, L)."""
    place = torch.arange(1, line.shape[1] + 1, device=line.device)
    last = torch.where(line, place, 0).amax(dim=1)
    first = torch.where(line, place, line.shape[1] + 1).amin(dim=1)
    return (last - first + 1).clamp(min=0)


def patch_regions(
    importance: Tensor, padding: Tensor | None, keys: Tensor, region: int, side: int, count: int
) -> Regions | None:
    """Return candidates for the place of a square patch in each image; None where no image has room for one.

    Half of them, rounded up, are the places where `importance` sums up to most, the others are drawn at random. Each is
    at least half a side away from those before it, along one axis, as long as there is such a place.

    Args:
        importance: (N, H, W), of each pixel.
        padding: bool (N, H, W), where no patch may lie.
        keys: int64 (N,), of the random places; on the device of the images.
        region: the patch's number.
        side: of the patch, pixels.
        count: K.
    """
    height, width = importance.shape[1:]
    if side > min(height, width):
        return None
    outside = torch.zeros_like(importance) if padding is None else padding.to(importance.dtype)
    fits = F.max_pool2d(outside[:, None], side, stride=1)[:, 0] == 0
    rows = fits.flatten(1).any(dim=1).cpu().nonzero()[:, 0]
    if not len(rows):
        return None
    index = to_device({"": rows}, importance.device)[""]
    corners = _places(importance[index], fits[index], keys[index], side, count)
    masks = [squares(top, left, side, height, width) for top, left in (place.unbind(dim=1) for place in corners)]
    return Regions(rows, torch.full_like(rows, region), masks, torch.stack(corners, dim=1).cpu())


def _places(importance: Tensor, fits: Tensor, keys: Tensor, side: int, count: int) -> list[Tensor]:
    """K corners int64 (M, 2) each, on the device; `fits` bool (M, h, w)."""
    by_importance = F.avg_pool2d(importance[:, None], side, stride=1)[:, 0]
    at_random = noise.uniform(noise.make_keys(0, keys, side), by_importance.shape[1:])
    columns = by_importance.shape[2]
    far, corners = fits, []
    for number in range(count):
        ranking = by_importance if 2 * number < count else at_random
        # Where all places are near earlier ones, an earlier one may come again.
        free = torch.where(far.flatten(1).any(dim=1)[:, None, None], far, fits)
        best = ranking.masked_fill(~free, -1.0).flatten(1).argmax(dim=1)
        top, left = best // columns, best % columns
        corners.append(torch.stack([top, left], dim=1))
        reach = (side + 1) // 2
        near = squares(top - reach + 1, left - reach + 1, 2 * reach - 1, *by_importance.shape[1:])[:, 0]
        far = far & ~near
    return corners

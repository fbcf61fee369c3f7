"""CutMix and MixUp of training images, with the parts that move along.

A mixed image has its partner from the whole training set, not from its batch, so that it is the same for any batch size
and number of processes. Letters: H, W of all training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances

from part_robust.utils.errors import UserError


class MixingMapper:
    """A mapper that mixes some images with another one, drawn from the data set.

    CutMix (Yun et al., 2019) puts a rectangle of the other image, with its labels, at its place; MixUp (Zhang et al.,
    2018) blends both and teaches no parts. The result's `class_id` is the class of the larger share, and
    `mixed_class` (class, share) the other one with its share of the class loss, 0..0.5.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict],
        records: Sequence[dict],
        *,
        ignore_label: int,
        cutmix: tuple[float, float] = (0.0, 1.0),
        mixup: tuple[float, float] = (0.0, 0.2),
    ) -> None:
        """Wrap the mapper of single images.

        Args:
            mapper: gives all images one size.
            records: of the training set; has a length.
            ignore_label: semantic label of pixels that count nowhere.
            cutmix: probability, and alpha of the Beta(alpha, alpha) distribution of the share.
            mixup: the same of MixUp.

        Raises:
            UserError: the probabilities sum to more than 1.
        """
        if cutmix[0] + mixup[0] > 1:
            raise UserError(
                f"INPUT.CUTMIX_PROB and MIXUP_PROB must sum to at most 1, got {cutmix[0]:g} and {mixup[0]:g}: an image "
                "is mixed once"
            )
        self.mapper = mapper
        self.records = records
        self.ignore_label = ignore_label
        self.cutmix = cutmix
        self.mixup = mixup

    @classmethod
    def from_config(
        cls, cfg: CfgNode, mapper: Callable[[dict], dict], records: Sequence[dict], ignore_label: int
    ) -> Callable[[dict], dict]:
        """Return the mapper, mixing as INPUT says, or itself where it mixes nothing."""
        node = cfg.INPUT
        if not mixes(cfg):
            return mapper
        cutmix, mixup = (node.CUTMIX_PROB, node.CUTMIX_ALPHA), (node.MIXUP_PROB, node.MIXUP_ALPHA)
        return cls(mapper, records, ignore_label=ignore_label, cutmix=cutmix, mixup=mixup)

    def __call__(self, record: dict) -> dict:
        item = self.mapper(record)
        draw = np.random.uniform()  # noqa: NPY002 (the random numbers that detectron2's augmentations draw from)
        if draw >= self.cutmix[0] + self.mixup[0]:
            return item
        other = self.mapper(self.records[np.random.randint(len(self.records))])  # noqa: NPY002
        if draw < self.cutmix[0]:
            return cut_mixed(item, other, self._share(self.cutmix[1]))
        return blended(item, other, self._share(self.mixup[1]), self.ignore_label)

    @staticmethod
    def _share(alpha: float) -> float:
        return float(np.random.beta(alpha, alpha))  # noqa: NPY002


def mixes(cfg: CfgNode) -> bool:
    """Whether training images are mixed."""
    return cfg.INPUT.CUTMIX_PROB > 0 or cfg.INPUT.MIXUP_PROB > 0


def cut_mixed(item: dict, other: dict, share: float) -> dict:
    """Put a rectangle of another image at its place in an image.

    Args:
        item: of the mapper.
        other: of the mapper, of the same size.
        share: of the area that the rectangle has before it is cut at the border, 0..1.

    Returns:
        A new item: pixels, labels and masks are those of `other` inside the rectangle and those of `item` elsewhere.
    """
    height, width = item["image"].shape[-2:]
    inside = torch.zeros(height, width, dtype=torch.bool)
    sides = [round(side * share**0.5) for side in (height, width)]
    middle = [np.random.randint(side) for side in (height, width)]  # noqa: NPY002
    top, left = (max(place - side // 2, 0) for place, side in zip(middle, sides, strict=True))
    bottom, right = (place - side // 2 + side for place, side in zip(middle, sides, strict=True))
    inside[top : max(bottom, 0), left : max(right, 0)] = True
    mixed = _with_classes(item, other, float(inside.float().mean()))
    mixed["image"] = torch.where(inside, other["image"], item["image"])
    mixed["sem_seg"] = torch.where(inside, other["sem_seg"], item["sem_seg"])
    mixed["instances"] = Instances.cat([_within(item["instances"], ~inside), _within(other["instances"], inside)])
    kinds = {item["part_supervision"], other["part_supervision"]}
    mixed["part_supervision"] = kinds.pop() if len(kinds) == 1 else "partial"
    return mixed


def blended(item: dict, other: dict, share: float, ignore_label: int) -> dict:
    """Blend two images, of which the result has no part labels.

    Args:
        item: of the mapper.
        other: of the mapper, of the same size.
        share: of `other`, 0..1.
        ignore_label: semantic label of pixels that count nowhere.
    """
    mixed = _with_classes(item, other, share)
    pixels = (1.0 - share) * item["image"].float() + share * other["image"].float()
    mixed["image"] = pixels.round().to(item["image"].dtype)
    mixed["sem_seg"] = torch.full_like(item["sem_seg"], ignore_label)
    mixed["instances"] = item["instances"][:0]
    mixed["part_supervision"] = "none"
    return mixed


def _with_classes(item: dict, other: dict, share: float) -> dict:
    """The item with the classes of both, the one of the larger share first."""
    first, second = item["class_id"], other["class_id"]
    if share > 0.5:
        first, second, share = second, first, 1.0 - share
    return {**item, "class_id": first, "mixed_class": (second, share)}


def _within(instances: Instances, region: torch.Tensor) -> Instances:
    """The instances inside a region, bool (H, W); those without a pixel there are gone."""
    masks = instances.gt_masks.tensor & region
    # NumPy is ten times as fast as torch at this, on a CPU.
    columns, rows = masks.numpy().any(axis=1), masks.numpy().any(axis=2)
    kept = columns.any(axis=1)
    result = Instances(instances.image_size)
    result.gt_boxes = _boxes(columns[kept], rows[kept])
    kept = torch.from_numpy(kept)
    result.gt_classes, result.gt_masks = instances.gt_classes[kept], BitMasks(masks[kept])
    return result


def _boxes(columns: np.ndarray, rows: np.ndarray) -> Boxes:
    """Return the tight boxes of n masks that are not empty.

    Args:
        columns: bool (n, W), whether a mask has a pixel in a column.
        rows: bool (n, H), whether it has one in a row.
    """
    first = [side.argmax(axis=1) for side in (columns, rows)]
    last = [side.shape[1] - side[:, ::-1].argmax(axis=1) for side in (columns, rows)]
    return Boxes(torch.from_numpy(np.stack([*first, *last], axis=1)).float())

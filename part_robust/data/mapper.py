"""Turns a record of the part json into what the model and the evaluators see, alike in training and evaluation.

Letters: H, W side lengths after the transform (both INPUT.SIZE), P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from torchvision.transforms import ColorJitter

from part_robust.data.augmentations import build_test_augmentations, build_train_augmentations
from part_robust.data.colour_jitter import draw_colours
from part_robust.data.mask_sampling import Block, MaskSampler
from part_robust.data.register import get_taxonomy
from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file


class UnreadableImage(UserError):
    """An image file that cannot be decoded, or has another size than the json says.

    A worker of the loader raises it again with the whole traceback as its message: the last line of that is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class PartDatasetMapper:
    """Record -> model input. Image, masks and boxes go through one geometry; targets are kept at test time.

    The result has the record's `file_name`, `image_id`, `class_id`, `part_supervision` and
        image: uint8 (3, H, W), RGB, 0..255.
        sem_seg: int64 (H, W); 0..P-1 parts, P background, `ignore_label` for pixels that count nowhere.
        instances: `Instances` with gt_boxes (XYXY pixels), gt_classes (0..P-1) and gt_masks, one per annotation
            that is still visible after the transform.
        content_size: (h, w) of the image's own pixels inside a letterbox, from the top left corner; only there.
        colours: with a colour jitter, what it is for this image; `colour_jitter.jittered` applies it to the batch.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        num_parts: int,
        ignore_label: int,
        masks_from: str = "masks",
        jitter: ColorJitter | None = None,
    ) -> None:
        """Set what is done to every record of a data set.

        Args:
            augmentations: geometry only; the result must be one size for all images.
            num_parts: P.
            ignore_label: semantic label of pixels that count nowhere.
            masks_from: "masks", or "boxes" to paint each part's box as its mask (box supervision).
            jitter: that `colours` are drawn from.

        Raises:
            ValueError: `masks_from` is neither.
        """
        if masks_from not in ("masks", "boxes"):
            raise ValueError(f"INPUT.PART_MASKS must be masks or boxes, is {masks_from}")
        self.augmentations = T.AugmentationList(list(augmentations))
        self.num_parts = num_parts
        self.ignore_label = ignore_label
        self.masks_from = masks_from
        self.jitter = jitter

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool, dataset_name: str) -> dict:
        taxonomy = get_taxonomy(dataset_name)
        return {
            "augmentations": build_train_augmentations(cfg) if is_train else build_test_augmentations(cfg),
            "num_parts": taxonomy.num_parts,
            "ignore_label": taxonomy.ignore_label,
            "masks_from": cfg.INPUT.PART_MASKS,
            "jitter": ColorJitter(*cfg.INPUT.COLOR_JITTER) if is_train and any(cfg.INPUT.COLOR_JITTER) else None,
        }

    def __call__(self, record: dict) -> dict:
        image = read_image(record)
        height, width = image.shape[:2]
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image, content = aug_input.image, content_size(transforms)
        sampler = MaskSampler(transforms, height, width)
        masks = [self._mask(annotation, record, sampler) for annotation in record["annotations"]]

        result = {key: record[key] for key in ("file_name", "image_id", "class_id", "part_supervision")}
        result["height"], result["width"] = image.shape[:2]
        # A copy: NumPy takes a mirrored image of one pixel for contiguous, and PyTorch refuses its negative strides.
        result["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        ignored = [sampler.outside()]
        if "ignore_segmentation" in record:
            ignored.append(sampler.rle(record["ignore_segmentation"]))
        result["sem_seg"] = self._paint(record, masks, ignored, image.shape[:2], content)
        result["instances"] = _instances(record["annotations"], [block for block, _ in masks], image.shape[:2])
        if content is not None:
            result["content_size"] = content
        if self.jitter is not None:
            result["colours"] = draw_colours(self.jitter)
        return result

    def _mask(self, annotation: dict, record: dict, sampler: MaskSampler) -> tuple[Block | None, float]:
        """Return the rest of one annotation after the transform, and the area that decides what lies on top."""
        height, width = record["height"], record["width"]
        if self.masks_from == "boxes":
            x, y, w, h = annotation["bbox"]
            # Every pixel the box touches, as a mask's bounding box would.
            left, top = max(int(np.floor(x)), 0), max(int(np.floor(y)), 0)
            # The mask of a long slanted part is smaller than the box of a part that its own box contains.
            return sampler.box(left, top, int(np.ceil(x + w)), int(np.ceil(y + h))), w * h
        if "segmentation" not in annotation:
            raise ValueError(
                f"{record['file_name']}: annotation {annotation['id']} has only a box, no `segmentation`. "
                "To train on boxes painted as masks set INPUT.PART_MASKS boxes"
            )
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        # The json's own `area` may be wrong.
        return sampler.rle(segmentation), float(coco_mask.area(segmentation))

    def _paint(
        self,
        record: dict,
        masks: list[tuple[Block | None, float]],
        ignored: Sequence[Block | None],
        size: tuple[int, int],
        content: tuple[int, int] | None,
    ) -> torch.Tensor:
        """Semantic label map. Small parts lie on top of large ones, the target object's on its neighbours'."""
        # What an image without or with incomplete part labels does not show is unknown, not background.
        complete = record["part_supervision"] == "full"
        labels = np.full(size, self.num_parts if complete else self.ignore_label, dtype=np.int64)
        annotations = record["annotations"]
        for index in sorted(range(len(masks)), key=lambda i: _painting_rank(annotations[i], masks[i][1])):
            block = masks[index][0]
            if block is not None:
                np.copyto(block.inside(labels), annotations[index]["category_id"], where=block.pixels)
        for block in filter(None, ignored):
            np.copyto(block.inside(labels), self.ignore_label, where=block.pixels)
        if content is not None:
            labels[content[0] :, :] = self.ignore_label
            labels[:, content[1] :] = self.ignore_label
        return torch.from_numpy(labels)


def _painting_rank(annotation: dict, area: float) -> tuple:
    return annotation["is_target"], -area, annotation["id"]


def read_image(record: dict) -> np.ndarray:
    """Reads the image of a record: uint8 (height, width, 3) RGB; of 16-bit images the upper 8 bits.

    A file of another size than the json's is cut to `crop_xyxy`, if the record has it. A camera's EXIF rotation is
    applied only if the json's size says that it was when the parts were drawn.

    Raises:
        UnreadableImage: the file cannot be decoded, or its size is not the json's.
    """
    path = record["file_name"]
    try:
        check_file(path, "an image file")
        with Image.open(path) as file:
            return np.asarray(to_rgb(_select(file, record)))
    except Exception as error:  # Pillow raises many types for a broken file; all of them mean this image
        raise UnreadableImage(f"image {path} (image_id {record['image_id']}): {error}") from error


def _select(file: Image.Image, record: dict) -> Image.Image:
    """The part of the file that is the image."""
    width, height = record["width"], record["height"]
    if file.size == (width, height):
        return file
    if "crop_xyxy" in record:
        crop = record["crop_xyxy"]
        if record.get("source_size", file.size) != file.size:
            turned = ImageOps.exif_transpose(file)
            if turned.size != record["source_size"]:
                raise ValueError(f"is {file.width} x {file.height}, source.image_size is {record['source_size']}")
            return turned.crop(crop)
        # Pillow would fill up with black.
        if crop[2] > file.width or crop[3] > file.height:
            raise ValueError(f"is {file.width} x {file.height}, source.crop_xyxy {crop} leaves it")
        return file.crop(crop)
    turned = ImageOps.exif_transpose(file)
    if turned.size != (width, height):
        raise ValueError(f"is {file.width} x {file.height}, the json says {width} x {height}")
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB with 8 bits.

    Raises:
        ValueError: pixels of 32 bits.
    """
    # Pillow's own conversion of these clips at 255.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"has pixels of 32 bits (mode {image.mode}), whose range is unknown: save it with 8 bits")
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # as a conversion does, before the file is closed
    return image


def content_size(transform: T.Transform) -> tuple[int, int] | None:
    """Image part of a letterbox, if a transform somewhere in the (nested) list is one."""
    if isinstance(transform, T.TransformList):
        return next(filter(None, map(content_size, transform.transforms)), None)
    return getattr(transform, "content_size", None)


def _instances(annotations: list[dict], blocks: list[Block | None], size: tuple[int, int]) -> Instances:
    """Boxes are those of the transformed masks, so they end where the crop ends."""
    visible = [
        (index, block, box)
        for index, block in enumerate(blocks)
        if block is not None and (box := block.box()) is not None
    ]
    stacked = np.zeros((len(visible), *size), dtype=bool)
    for row, (_, block, _) in enumerate(visible):
        block.inside(stacked[row])[:] = block.pixels
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor([box for _, _, box in visible], dtype=torch.float32).reshape(-1, 4))
    categories = [annotations[index]["category_id"] for index, _, _ in visible]
    instances.gt_classes = torch.tensor(categories, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(stacked))
    return instances

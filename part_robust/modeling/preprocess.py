"""From the mapper's dicts to the batch the network sees; the same in training, evaluation and attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from part_robust.structures import PaddedParts, PartTargets
from part_robust.utils.transfer import to_device


def preprocess(batched_inputs: Sequence[dict], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Images float32 (N, 3, H, W), 0..255 RGB, and the mask of `padding_mask`, on the device.

    Raises:
        ValueError: images of different sizes.
    """
    tensors = {"images": stack_images(batched_inputs)}
    padding = padding_mask(batched_inputs)
    if padding is not None:
        tensors["padding"] = padding
    moved = to_device(tensors, device)
    return moved["images"].float(), moved.get("padding")


def stack_images(batched_inputs: Sequence[dict], key: str = "image") -> Tensor:
    """Returns (N, 3, H, W), of the type and on the device that the images have.

    Raises:
        ValueError: images of different sizes; padding them together would let batch-mates change a prediction.
    """
    first = batched_inputs[0][key]
    for item in batched_inputs:
        if item[key].shape != first.shape:
            raise ValueError(
                f"images of different sizes in one batch: {_describe(batched_inputs[0])} and {_describe(item)}. "
                "Use PartDatasetMapper (INPUT.SIZE makes all images one size) or batches of one image"
            )
    images = [item[key] for item in batched_inputs]
    if len({(image.device, image.dtype) for image in images}) > 1:  # attacked images beside clean ones
        device = next((image.device for image in images if image.device.type != "cpu"), first.device)
        images = [image.float() for image in to_device({str(i): x for i, x in enumerate(images)}, device).values()]
    return torch.stack(images)


def padding_mask(batched_inputs: Sequence[dict]) -> Tensor | None:
    """Return bool (N, H, W), True on letterbox padding; None when no image of the batch has any."""
    if not any("content_size" in item for item in batched_inputs):
        return None
    height, width = batched_inputs[0]["image"].shape[-2:]
    sizes = torch.tensor([item.get("content_size", (height, width)) for item in batched_inputs])
    below = torch.arange(height)[None, :, None] >= sizes[:, 0, None, None]
    beside = torch.arange(width)[None, None, :] >= sizes[:, 1, None, None]
    return below | beside


def class_targets(batched_inputs: Sequence[dict]) -> Tensor:
    """int64 (N,) class indices."""
    return torch.tensor([item["class_id"] for item in batched_inputs])


def part_targets(
    batched_inputs: Sequence[dict], device: torch.device, fields: Sequence[str] = ("sem_seg", "instances")
) -> PartTargets:
    """Part labels of a batch; `fields` is `PartSegmenter.target_fields`."""
    parts = training_targets(batched_inputs, device, fields).parts
    assert parts is not None
    return parts


@dataclass
class TrainingTargets:
    """Targets that a batch is learned from, on one device.

    Attributes:
        labels: int64 (N,) class indices; None where they are not wanted.
        parts: part labels; None where they are not wanted.
        clean: float32 (N, 3, H, W), 0..255, the images before an attack; None where the batch does not have them.
        mixed: int64 (N,), second classes of mixed images, and float (N,), their shares; None where no image is mixed.
    """

    labels: Tensor | None
    parts: PartTargets | None
    clean: Tensor | None
    mixed: tuple[Tensor, Tensor] | None = None

    def class_targets(self, num_classes: int) -> Tensor:
        """int64 (N,) class indices, or float (N, C) shares of the classes if images are mixed."""
        assert self.labels is not None
        if self.mixed is None:
            return self.labels
        others, shares = self.mixed
        first, second = (functional.one_hot(labels, num_classes) for labels in (self.labels, others))
        return first * (1.0 - shares[:, None]) + second * shares[:, None]


def training_targets(
    batched_inputs: Sequence[dict], device: torch.device, fields: Sequence[str] | None, classes: bool = False
) -> TrainingTargets:
    """Everything that a batch is learned from, by one copy to the device.

    Args:
        batched_inputs: the mapper's dicts.
        device: of the model.
        fields: what the segmenter reads (`PartSegmenter.target_fields`); None for models without parts.
        classes: the model reads `class_id`.
    """
    tensors: dict[str, Tensor] = {}
    if classes:
        tensors["labels"] = class_targets(batched_inputs)
        if any("mixed_class" in item for item in batched_inputs):
            others = [item.get("mixed_class", (item["class_id"], 0.0)) for item in batched_inputs]
            tensors["mixed"] = torch.tensor([label for label, _ in others])
            tensors["share"] = torch.tensor([share for _, share in others])
    if "image_clean" in batched_inputs[0]:
        tensors["clean"] = stack_images(batched_inputs, "image_clean")
    padded = None
    if fields is not None:
        supervision = [item["part_supervision"] for item in batched_inputs]
        tensors["labelled"] = torch.tensor([kind != "none" for kind in supervision])
        tensors["complete"] = torch.tensor([kind == "full" for kind in supervision])
        if "sem_seg" in fields:
            tensors["sem_seg"] = torch.stack([item["sem_seg"] for item in batched_inputs])
        if "parts" in fields:
            labelled = [kind != "none" for kind in supervision]
            padded = PaddedParts.pad([item["instances"] for item in batched_inputs], labelled, "masks" in fields)
            tensors |= {name: value for name, value in vars(padded).items() if isinstance(value, Tensor)}
    moved = to_device(tensors, device)
    parts = None
    if fields is not None:
        instances = [item["instances"] for item in batched_inputs]
        parts = PartTargets(
            sem_seg=moved.get("sem_seg"),
            instances=[own.to(device) for own in instances] if "instances" in fields else instances,
            labelled=moved["labelled"],
            complete=moved["complete"],
        )
        if padded is not None:
            parts.parts = replace(
                padded,
                classes=moved["classes"],
                boxes=moved["boxes"],
                present=moved["present"],
                masks=moved.get("masks"),
            )
    clean = moved.get("clean")
    mixed = (moved["mixed"], moved["share"]) if "mixed" in moved else None
    return TrainingTargets(moved.get("labels"), parts, None if clean is None else clean.float(), mixed)


def _describe(item: dict) -> str:
    return f"{item.get('file_name', 'an image')} {tuple(item['image'].shape)}"

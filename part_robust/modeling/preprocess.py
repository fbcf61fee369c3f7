"""From the mapper's dicts to the batch the network sees; the same in training, evaluation and attacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from part_robust.modeling.registry import PartTargets


def stack_images(batched_inputs: Sequence[dict], device: torch.device, key: str = "image") -> Tensor:
    """Returns float32 (N, 3, H, W), 0..255 RGB.

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
    return torch.stack([item[key].to(device, non_blocking=True) for item in batched_inputs]).float()


def clean_images(batched_inputs: Sequence[dict], device: torch.device) -> Tensor | None:
    """What the images were before an attack, as `stack_images` gives them; None where a batch does not say."""
    return stack_images(batched_inputs, device, "image_clean") if "image_clean" in batched_inputs[0] else None


def padding_mask(batched_inputs: Sequence[dict], device: torch.device) -> Tensor | None:
    """bool (N, H, W), True on letterbox padding; None when no image of the batch has any."""
    if not any("content_size" in item for item in batched_inputs):
        return None
    height, width = batched_inputs[0]["image"].shape[-2:]
    sizes = torch.tensor([item.get("content_size", (height, width)) for item in batched_inputs])
    below = torch.arange(height)[None, :, None] >= sizes[:, 0, None, None]
    beside = torch.arange(width)[None, None, :] >= sizes[:, 1, None, None]
    return (below | beside).to(device)


def class_targets(batched_inputs: Sequence[dict], device: torch.device) -> Tensor:
    """int64 (N,) class indices."""
    return torch.tensor([item["class_id"] for item in batched_inputs], device=device)


def part_targets(batched_inputs: Sequence[dict], device: torch.device) -> PartTargets:
    instances: list[Instances] = [item["instances"].to(device) for item in batched_inputs]
    return PartTargets(
        sem_seg=torch.stack([item["sem_seg"].to(device, non_blocking=True) for item in batched_inputs]),
        instances=instances,
        labelled=torch.tensor([item["part_supervision"] != "none" for item in batched_inputs], device=device),
        complete=torch.tensor([item["part_supervision"] == "full" for item in batched_inputs], device=device),
    )


def _describe(item: dict) -> str:
    return f"{item.get('file_name', 'an image')} {tuple(item['image'].shape)}"

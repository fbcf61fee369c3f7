"""Predicted parts as label maps or as boxes, whichever of the two a model predicts itself.

Letters: P parts (label P is background), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from part_robust.layers.mask_box import boxes_to_sem_seg, masks_to_boxes, most_probable
from part_robust.utils.transfer import to_host


def host_outputs(outputs: Sequence[Mapping]) -> list[dict]:
    """Return what is evaluated of a batch's outputs, in the memory of the host, by one copy.

    Args:
        outputs: the model's, on any device, or what this function returned before.

    Returns:
        Per image `class_logits` and `instances` as they were; instead of `sem_seg`, scores (P + 1, H, W) that are too
        large to copy, `labels` int64 (H, W) and, where there are no instances, their `probability` (H, W).
    """
    tensors: dict[str, Tensor] = {}
    for number, output in enumerate(outputs):
        tensors |= {f"{number}.{name}": value for name, value in _evaluated(output).items()}
    moved = to_host(tensors)
    results: list[dict] = [{} for _ in outputs]
    for key, value in moved.items():
        index, name = key.split(".", 1)
        results[int(index)][name] = value.long() if name == "labels" else value
    for result, output in zip(results, outputs, strict=True):
        if "instances" in output:
            found = output["instances"]
            fields = {name: result.pop(f"instances.{name}") for name in found.get_fields()}
            fields = {k: Boxes(v) if isinstance(found.get(k), Boxes) else v for k, v in fields.items()}
            result["instances"] = Instances(found.image_size, **fields)
    return results


def _evaluated(output: Mapping) -> dict[str, Tensor]:
    """The tensors of one image's output that are copied, by name."""
    tensors = {name: output[name] for name in ("class_logits", "labels", "probability") if name in output}
    if "sem_seg" in output:
        tensors["labels"] = output["sem_seg"].argmax(dim=0).to(torch.int32)
    if "instances" in output:
        for name, value in output["instances"].get_fields().items():
            tensors[f"instances.{name}"] = value.tensor if isinstance(value, Boxes) else value
    elif "sem_seg" in output:
        tensors["probability"] = most_probable(output["sem_seg"])[1]
    return tensors


def predicted_labels(output: Mapping, num_parts: int, size: tuple[int, int]) -> Tensor:
    """Label map int64 (H, W), 0..P, of one image.

    Args:
        output: the model's, with `sem_seg` (P + 1, H, W), or with `instances` alone, which are painted as the thesis
            does it (`boxes_to_sem_seg`); or that of `host_outputs`.
        num_parts: P.
        size: (H, W).
    """
    if "labels" in output:
        return output["labels"]
    if "sem_seg" in output:
        return output["sem_seg"].argmax(dim=0)
    found = output["instances"]
    return boxes_to_sem_seg(found.pred_boxes.tensor, found.scores, found.pred_classes, num_parts, size)


def predicted_boxes(outputs: Sequence[Mapping], num_parts: int) -> list[Instances]:
    """Return pred_boxes, scores and pred_classes of each image.

    They are the model's `instances`, or the connected components of its `sem_seg` logits (P + 1, H, W), all of one size
    (`masks_to_boxes`).
    """
    if not outputs or "instances" in outputs[0]:
        return [output["instances"] for output in outputs]
    if "labels" in outputs[0]:
        labels, probabilities = zip(*((output["labels"], output["probability"]) for output in outputs), strict=True)
    else:
        labels, probabilities = zip(*(most_probable(output["sem_seg"]) for output in outputs), strict=True)
    return masks_to_boxes(torch.stack(labels), torch.stack(probabilities), num_parts)

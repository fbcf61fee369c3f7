"""COCO's average precision of part boxes and part masks over a data set, at the resolution the network sees.

Letters: P parts (label P is background), H W pixels, G true and D predicted boxes of an image.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import COCOeval_opt  # pycocotools' own where detectron2 built no faster one
from detectron2.structures import Boxes, Instances, pairwise_iou
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor

from part_robust.evaluation.conversion import predicted_boxes
from part_robust.evaluation.image_parts import ImageParts, pack, unpack
from part_robust.evaluation.mergeable import MergeableEvaluator


class PartDetectionEvaluator(MergeableEvaluator):
    """Evaluator of the average precision of part boxes and part masks.

    Results: `{"part_box": {"AP", "AP50", "num_images", "num_unlabelled_images", "AP-<part>"...}}`, percent, and the
    same as "part_mask" where the model's `instances` have `pred_masks`.

    The truth are the boxes of the mapper's `instances`, after its crop: stock evaluators read the json, whose boxes are
    those of the whole image. Predictions are the model's `instances`, or boxes around the connected components of its
    `sem_seg`. The thesis's conversion keeps even a perfect segmenter under 100: it drops parts of less than 1 % of the
    image, and a part in several pieces, such as four legs, gives several boxes.

    AP is the mean over IoU 0.5, 0.55 .. 0.95 and over the parts that occur in the truth; it is left out, as is
    `AP-<part>`, where there is no truth at all. Images without part labels are left out and counted. A prediction with
    more than half of its area on ignored pixels counts nowhere, unless it could match a true box of its class (IoU 0.5
    or more): what lies there is unknown, so it is not a false alarm. Stock COCO evaluation counts it as one. Of masks,
    the ignored pixels are then left out.
    """

    def __init__(self, part_names: Sequence[str]) -> None:
        self.part_names = list(part_names)
        self.reset()

    def reset(self) -> None:
        self._images: dict[int, ImageParts] = {}
        self._masks: dict[int, ImageParts] = {}
        self._unlabelled: set[int] = set()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._unlabelled.update(item["image_id"] for item in inputs if item["part_supervision"] == "none")
        labelled = [
            (item, output) for item, output in zip(inputs, outputs, strict=True) if item["part_supervision"] != "none"
        ]
        predictions = predicted_boxes([output for _, output in labelled], len(self.part_names))
        for (item, _), prediction in zip(labelled, predictions, strict=True):
            prediction = prediction.to(torch.device("cpu"))
            if prediction.has("pred_masks"):
                self._masks[item["image_id"]] = self._mask_parts(item, prediction)
                prediction.remove("pred_masks")
            self._images[item["image_id"]] = self._box_parts(item, prediction)

    def _mask_parts(self, item: dict, prediction: Instances) -> ImageParts:
        truth = item["instances"].to(torch.device("cpu"))
        known = item["sem_seg"].cpu() <= len(self.part_names)
        masks, true = prediction.pred_masks, truth.gt_masks.tensor & known
        if not known.all() and len(masks):
            inside = masks & known
            both = torch.einsum("dhw,ghw->dg", inside.float(), true.float())
            union = inside.flatten(1).sum(dim=1)[:, None] + true.flatten(1).sum(dim=1) - both
            could_match = 2 * both >= union.clamp(min=1)
            could_match &= prediction.pred_classes[:, None] == truth.gt_classes[None]
            covered = 1.0 - inside.flatten(1).sum(dim=1) / masks.flatten(1).sum(dim=1).clamp(min=1)
            keep = could_match.any(dim=1) | (covered <= 0.5)
            prediction, masks = prediction[keep], inside[keep]
        return ImageParts(
            true_parts=run_lengths(true),
            true_classes=truth.gt_classes.numpy(),
            parts=run_lengths(masks),
            classes=prediction.pred_classes.numpy(),
            scores=prediction.scores.detach().double().numpy(),
        )

    def _box_parts(self, item: dict, prediction: Instances) -> ImageParts:
        truth = item["instances"].to(torch.device("cpu"))
        ignored = item["sem_seg"].cpu() > len(self.part_names)
        # True boxes end at the edge of the crop.
        boxes = Boxes(prediction.pred_boxes.tensor.detach().float().clone())
        boxes.clip(tuple(ignored.shape))
        if ignored.any() and len(boxes):
            could_match = pairwise_iou(boxes, truth.gt_boxes) >= 0.5
            could_match &= prediction.pred_classes[:, None] == truth.gt_classes[None]
            keep = could_match.any(dim=1) | (_covered_share(boxes.tensor, ignored) <= 0.5)
            prediction, boxes = prediction[keep], boxes[keep]
        return ImageParts(
            true_parts=truth.gt_boxes.tensor.double().numpy(),
            true_classes=truth.gt_classes.numpy(),
            parts=boxes.tensor.double().numpy(),
            classes=prediction.pred_classes.numpy(),
            scores=prediction.scores.detach().double().numpy(),
        )

    def partial(self) -> dict[str, np.ndarray]:
        arrays = {"unlabelled": np.array(sorted(self._unlabelled), dtype=np.int64)}
        for task, images in (("box", self._images), ("mask", self._masks)):
            if images or task == "box":
                arrays |= {f"{task}.{name}": array for name, array in pack(images).items()}
        return arrays

    def absorb(self, partial: Mapping[str, np.ndarray]) -> None:
        self._unlabelled.update(partial["unlabelled"].tolist())
        self._images.update(parts_of(partial, "box") or {})
        self._masks.update(parts_of(partial, "mask") or {})

    def score(self) -> OrderedDict:
        counts = {"num_images": float(len(self._images)), "num_unlabelled_images": float(len(self._unlabelled))}
        results = OrderedDict()
        for task, records in (("part_box", self._images), ("part_mask", self._masks)):
            if records or task == "part_box":
                headline, per_part = _average_precision(records, self.part_names)
                results[task] = {**headline, **counts, **per_part}
        return results


def parts_of(partial: Mapping[str, np.ndarray], kind: str) -> dict[int, ImageParts] | None:
    """Return parts by image id of what `PartDetectionEvaluator.partial` returned; None where it has none of the kind.

    Args:
        partial: of one process or batch.
        kind: "box" or "mask".
    """
    own = {name.removeprefix(f"{kind}."): x for name, x in partial.items() if name.startswith(f"{kind}.")}
    return dict(unpack(own)) if own else None


def run_lengths(masks: Tensor) -> np.ndarray:
    """Return bool (D, H, W) as objects (D,), COCO's run lengths."""
    result = np.empty(len(masks), dtype=object)
    result[:] = coco_mask.encode(np.asfortranarray(masks.numpy().view(np.uint8).transpose(1, 2, 0)))
    return result


def _covered_share(boxes: Tensor, mask: Tensor) -> Tensor:
    """Share of each box (D, 4), in pixels of the mask (H, W), where the mask is True; 0 for empty boxes."""
    # Sums over rectangles from the corner: one look-up per corner of a box instead of its pixels.
    table = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1)
    table[1:, 1:] = mask.float().cumsum(dim=0).cumsum(dim=1)
    left, top, right, bottom = boxes.round().long().unbind(dim=1)
    inside = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return inside / ((right - left) * (bottom - top)).clamp(min=1)


def _average_precision(
    images: Mapping[int, ImageParts], part_names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """AP and AP50, and `AP-<part>` of each part that occurs in the truth, percent; both empty where none does."""
    # Sorted, so that equal scores rank the same however the images were spread over processes.
    order = sorted(images)
    if not order:
        return {}, {}
    records = [images[image_id] for image_id in order]
    true_parts = np.concatenate([record.true_parts for record in records])
    true_classes = np.concatenate([record.true_classes for record in records])
    true_images = np.repeat(order, [len(record.true_parts) for record in records])
    parts = np.concatenate([record.parts for record in records])
    classes = np.concatenate([record.classes for record in records])
    scores = np.concatenate([record.scores for record in records])
    found_images = np.repeat(order, [len(record.parts) for record in records])
    precision = {}
    with _quiet():
        # Part by part, each over the images where it is: COCO's own loop takes minutes for PACO's parts x images.
        for part in np.unique(true_classes):
            true, found = true_classes == part, classes == part
            precision[part_names[part]] = 100.0 * _precision(
                _coco(true_images[true], true_parts[true]), _coco(found_images[found], parts[found], scores[found])
            )
    if not precision:
        return {}, {}
    headline = {
        "AP": float(np.mean(list(precision.values()))),
        "AP50": float(np.mean([curve[0] for curve in precision.values()])),
    }
    # A "-" keeps per-part numbers out of detectron2's one-line summary.
    return headline, {f"AP-{name}": float(curve.mean()) for name, curve in precision.items()}


def _precision(truth: COCO, found: COCO) -> np.ndarray:
    """Precision (10, 101), 0..1, by IoU threshold and recall; COCO's limit of 100 boxes per image and part."""
    kind = "segm" if "segmentation" in next(iter(truth.anns.values())) else "bbox"
    evaluation = COCOeval_opt(truth, found, kind)
    evaluation.params.imgIds = sorted({*truth.getImgIds(), *found.getImgIds()})
    # Only what is reported: COCO's size classes and smaller limits would quadruple the work.
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """COCO's tools print, or log, their progress; one evaluation per attack would fill the log with it."""
    log = logging.getLogger(COCOeval_opt.__module__)
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _coco(image_ids: np.ndarray, parts: np.ndarray, scores: np.ndarray | None = None) -> COCO:
    """COCO's own index over the boxes (K, 4) or masks (K,) of one part: image ids (K,), and scores (K,) of predictions.

    Built from scratch, ids from 1: COCO's matching takes annotation 0 for "no match", a missing `iscrowd` for an error,
    and `COCO.loadRes` cannot read an empty list.
    """
    annotations: list[dict] = []
    for row, (image_id, part) in enumerate(zip(image_ids.tolist(), parts.tolist(), strict=True)):
        annotation = {"id": row + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
        if isinstance(part, dict):
            annotation |= {"segmentation": part, "area": float(coco_mask.area(part))}
        else:
            left, top, right, bottom = part
            annotation |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
        if scores is not None:
            annotation["score"] = float(scores[row])
        annotations.append(annotation)
    sizes = {
        annotation["image_id"]: annotation.get("segmentation", {}).get("size", (0, 0)) for annotation in annotations
    }
    coco = COCO()
    coco.dataset = {
        "images": [{"id": key, "height": size[0], "width": size[1]} for key, size in sorted(sizes.items())],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco

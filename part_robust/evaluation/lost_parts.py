"""Parts that a model loses under attack are counted as missed, taken for another part, or badly placed.

The kinds of errors are those of TIDE (Bolya et al., 2020), of ground-truth parts instead of predictions.

Letters: G true and D predicted parts of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torchvision.ops import box_iou

from part_robust.evaluation.image_parts import ImageParts, unpack
from part_robust.evaluation.journal import BatchArrays
from part_robust.layers.mask_box import FOUND_SCORE

# TIDE's thresholds: where a box counts as found, and where it is at least near the part.
FOUND_IOU, NEAR_IOU = 0.5, 0.1
FOUND, WRONG_PART, BADLY_PLACED, MISSED = range(4)


def part_results(image: ImageParts) -> np.ndarray:
    """Return int64 (G,), how the predictions of an image show each of its true parts.

    Of the predictions with a score of at least `FOUND_SCORE`, one decides, the first of these that there is:

    - `FOUND`: one of the part's own label overlaps it with an IoU of 0.5 or more.
    - `WRONG_PART`: one of another label does.
    - `BADLY_PLACED`: one of its own label overlaps it with an IoU of 0.1 or more.
    - `MISSED`: none of these.

    A prediction may show several true parts, so the result does not depend on the order of predictions.

    Args:
        image: with boxes, not masks.
    """
    shown = image.scores >= FOUND_SCORE
    true, found = torch.from_numpy(image.true_parts).double(), torch.from_numpy(image.parts[shown]).double()
    overlap = box_iou(true, found).nan_to_num(nan=0.0).numpy()  # 0 / 0 for two boxes without area
    own = image.true_classes[:, None] == image.classes[shown][None]
    best_own = np.where(own, overlap, 0.0).max(axis=1, initial=0.0)
    best_other = np.where(own, 0.0, overlap).max(axis=1, initial=0.0)
    conditions = [best_own >= FOUND_IOU, best_other >= FOUND_IOU, best_own >= NEAR_IOU]
    return np.select(conditions, [FOUND, WRONG_PART, BADLY_PLACED], MISSED)


def box_parts(batches: Iterable[BatchArrays], row: str) -> dict[int, ImageParts]:
    """Return the boxes of parts that the evaluator of part boxes saw, by image id.

    Args:
        batches: finished ones, of any number of processes.
        row: "clean", a tier, or an attack of a tier on the parts.

    Returns:
        Empty where no evaluator of part boxes ran (TEST.PART_BOX_AP False).
    """
    found: dict[int, ImageParts] = {}
    for batch in batches:
        for name in batch:
            if name.startswith(f"evaluators.{row}.") and name.endswith(".box.counts"):
                prefix = name.removesuffix("counts")
                arrays = {key.removeprefix(prefix): array for key, array in batch.items() if key.startswith(prefix)}
                found.update(unpack(arrays))
    return found


def count_lost_parts(clean: Mapping[int, ImageParts], attacked: Mapping[int, ImageParts]) -> dict[str, int]:
    """Count the true parts that the model finds without attack, and what became of those it does not find under attack.

    Args:
        clean: image id -> parts, without attack.
        attacked: the same images under attack.

    Returns:
        "parts": all true parts; "found": those found without attack; "lost": those of them that are not found under
        attack, the sum of "missed", "wrong_part" and "badly_placed" (`part_results`).
    """
    counts = np.zeros(4, dtype=np.int64)
    parts = 0
    for image_id, image in clean.items():
        before, after = part_results(image), part_results(attacked[image_id])
        parts += len(before)
        counts += np.bincount(after[before == FOUND], minlength=4)
    return {
        "parts": parts,
        "found": int(counts.sum()),
        "lost": int(counts.sum() - counts[FOUND]),
        "missed": int(counts[MISSED]),
        "wrong_part": int(counts[WRONG_PART]),
        "badly_placed": int(counts[BADLY_PLACED]),
    }

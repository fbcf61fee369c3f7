"""Pixel accuracy and mIoU of parts over a data set, at the resolution the network sees.

Letters: P parts, K = P + 1 labels (background last), H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from part_robust.evaluation.conversion import predicted_labels
from part_robust.evaluation.mergeable import MergeableEvaluator


class PartSegmentationEvaluator(MergeableEvaluator):
    """Results: `{"part_seg": {"pixel_accuracy", "mIoU", ..., "IoU-<part>"...}}`, percent.

    One confusion matrix over the whole data set. Ignored pixels count nowhere; images without part labels are left out
    and counted in `num_unlabelled_images`. mIoU is the mean over labels that occur in the truth or the prediction
    (`num_labels` of them), background included. The boxes of a detector are painted as labels (`boxes_to_sem_seg`).
    """

    def __init__(self, part_names: Sequence[str]) -> None:
        self.label_names = [*part_names, "background"]
        self.reset()

    def reset(self) -> None:
        self._confusion: Tensor | None = None
        self._images = 0
        self._unlabelled = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            if item["part_supervision"] == "none":
                self._unlabelled += 1
                continue
            self._images += 1
            # Stays on the model's device: one copy at the end instead of one per image.
            labels = predicted_labels(output, len(self.label_names) - 1, tuple(item["sem_seg"].shape))
            matrix = confusion(labels, item["sem_seg"], len(self.label_names))
            self._confusion = matrix if self._confusion is None else self._confusion + matrix

    def partial(self) -> dict[str, np.ndarray]:
        """Returns the entries of the confusion matrix that are not 0, and how many images are labelled or not."""
        labels = len(self.label_names)
        flat = np.zeros(0, dtype=np.int64) if self._confusion is None else self._confusion.cpu().numpy().ravel()
        index = np.flatnonzero(flat)
        return {
            "entries": np.stack([index // labels, index % labels, flat[index]], axis=1),
            "images": np.array([self._images, self._unlabelled], dtype=np.int64),
        }

    def absorb(self, partial: Mapping[str, np.ndarray]) -> None:
        labels = len(self.label_names)
        own = torch.zeros(labels, labels, dtype=torch.int64) if self._confusion is None else self._confusion
        truth, prediction, count = torch.from_numpy(partial["entries"]).to(own.device).T
        self._confusion = own.index_put((truth, prediction), count, accumulate=True)
        self._images += int(partial["images"][0])
        self._unlabelled += int(partial["images"][1])

    def score(self) -> OrderedDict:
        labels = len(self.label_names)
        matrix = np.zeros((labels, labels), dtype=np.int64)
        if self._confusion is not None:
            matrix = self._confusion.cpu().numpy()
        return OrderedDict(part_seg=self._metrics(matrix, self._images, self._unlabelled))

    def _metrics(self, matrix: np.ndarray, images: int, unlabelled: int) -> dict[str, float]:
        hits = np.diag(matrix)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
        occurs = union > 0
        with np.errstate(invalid="ignore"):
            iou = 100.0 * hits / union
        pixels = matrix.sum()
        metrics = {
            "pixel_accuracy": 100.0 * float(hits.sum() / pixels) if pixels else float("nan"),
            "mIoU": float(iou[occurs].mean()) if occurs.any() else float("nan"),
            "num_labels": float(occurs.sum()),
            "num_images": float(images),
            "num_unlabelled_images": float(unlabelled),
        }
        metrics.update({f"IoU-{self.label_names[i]}": float(iou[i]) for i in np.flatnonzero(occurs)})
        return metrics


def confusion(prediction: Tensor, truth: Tensor, labels: int) -> Tensor:
    """int64 (K, K), rows truth, columns prediction; truth outside 0..K-1 is ignored."""
    truth = truth.to(prediction.device, non_blocking=True)
    counts = (truth >= 0) & (truth < labels)
    # Ignored pixels go into one extra bin: a boolean index would make the host wait for the device.
    index = torch.where(counts, truth * labels + prediction, labels * labels)
    return torch.bincount(index.flatten(), minlength=labels * labels + 1)[:-1].view(labels, labels)

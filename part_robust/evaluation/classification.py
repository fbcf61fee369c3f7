"""Class accuracy over a data set, from one record per image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from part_robust.evaluation.mergeable import MergeableEvaluator


class ClassificationEvaluator(MergeableEvaluator):
    """Results: `{"classification": {"accuracy", "class_mean_accuracy", "num_images", "accuracy-<class>"...}}`, percent.

    Records are keyed by image id, so the numbers are the same for any batch size, order and process count.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.reset()

    def reset(self) -> None:
        self._predictions: dict[int, tuple[int, int]] = {}
        # Predicted classes of whole batches, on the model's device until they are needed.
        self._waiting: list[tuple[list[tuple[int, int]], Tensor]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        if inputs:
            guesses = torch.stack([output["class_logits"] for output in outputs]).argmax(dim=1)
            self._waiting.append(([(item["image_id"], item["class_id"]) for item in inputs], guesses))

    def _collect(self) -> dict[int, tuple[int, int]]:
        """Image id -> true and predicted class; one copy from the device for all batches since the last call."""
        if self._waiting:
            guesses = torch.cat([guess for _, guess in self._waiting]).tolist()
            truths = [pair for pairs, _ in self._waiting for pair in pairs]
            for (image_id, truth), guess in zip(truths, guesses, strict=True):
                self._predictions[image_id] = (truth, guess)
            self._waiting = []
        return self._predictions

    def partial(self) -> dict[str, np.ndarray]:
        """Returns what was processed since `reset`: int64 (N, 3) of image id, true and predicted class."""
        records = [(image_id, *pair) for image_id, pair in sorted(self._collect().items())]
        return {"records": np.array(records, dtype=np.int64).reshape(-1, 3)}

    def absorb(self, partial: Mapping[str, np.ndarray]) -> None:
        self._predictions.update({image_id: (truth, guess) for image_id, truth, guess in partial["records"].tolist()})

    def score(self) -> OrderedDict:
        """Return the metrics of all images processed so far.

        Raises:
            ValueError: no image was processed.
        """
        predictions = self._collect()
        if not predictions:
            raise ValueError("no image was evaluated: is the data set empty?")
        truth, guess = np.array([predictions[key] for key in sorted(predictions)]).T
        right = truth == guess
        per_class = {
            name: 100.0 * float(right[truth == index].mean())
            for index, name in enumerate(self.class_names)
            if (truth == index).any()
        }
        metrics = {
            "accuracy": 100.0 * float(right.mean()),
            # Classes without an image in this split are left out.
            "class_mean_accuracy": float(np.mean(list(per_class.values()))),
            "num_images": float(len(truth)),
        }
        # A "-" keeps per-class numbers out of detectron2's one-line summary.
        metrics.update({f"accuracy-{name}": value for name, value in per_class.items()})
        return OrderedDict(classification=metrics)

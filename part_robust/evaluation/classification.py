"""Class accuracy over a data set, from one record per image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ClassificationEvaluator(DatasetEvaluator):
    """Results: `{"classification": {"accuracy", "class_mean_accuracy", "num_images", "accuracy-<class>"...}}`, percent.

    Records are keyed by image id, so the numbers are the same for any batch size, order and process count.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.reset()

    def reset(self) -> None:
        self._predictions: dict[int, tuple[int, int]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            self._predictions[item["image_id"]] = (item["class_id"], int(output["class_logits"].argmax()))

    def partial(self) -> dict[str, np.ndarray]:
        """What was processed since `reset`, for `absorb`: int64 (N, 3) of image id, true and predicted class."""
        records = [(image_id, *pair) for image_id, pair in sorted(self._predictions.items())]
        return {"records": np.array(records, dtype=np.int64).reshape(-1, 3)}

    def absorb(self, partial: Mapping[str, np.ndarray]) -> None:
        """Adds what another evaluator's `partial` returned."""
        self._predictions.update({image_id: (truth, guess) for image_id, truth, guess in partial["records"].tolist()})

    def evaluate(self) -> OrderedDict | None:
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        predictions: dict[int, tuple[int, int]] = {}
        for part in gathered:
            predictions.update(part)
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

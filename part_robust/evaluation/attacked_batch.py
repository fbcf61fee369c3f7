"""One batch on its way through several attacks: the clean pass and every attack's images are made once and shared.

Letters: N images of (3, H, W), RGB, 0..255; C classes; P parts, K = P + 1 labels (background last); S steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from part_robust.attacks import Attack, attack_batch
from part_robust.attacks.class_losses import class_margin
from part_robust.evaluation.conversion import predicted_labels


@dataclass
class Cost:
    """What an attack took, over all images it was run on.

    Attributes:
        images: images attacked.
        forwards: images sent through the model by the attack.
        backwards: images whose gradient was taken.
        seconds: wall time.
        blind: images whose gradient was zero throughout.
        history: (S,), the sum over images of the loss at each step of the first run; images that left the batch keep
            the last loss they had. None for attacks that record none.
    """

    images: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    blind: int = 0
    history: np.ndarray | None = None


@dataclass
class Outcome:
    """Attributes:
    images: (N, 3, H, W), attacked where `done`, the originals elsewhere.
    done: bool (N,).
    distance: (N,), of attacks that look for the smallest perturbation; NaN where not done.
    cost: of the attack on the images that are done.
    """

    images: Tensor
    done: Tensor
    distance: Tensor | None = None
    cost: Cost = field(default_factory=Cost)


class AttackedBatch:
    """A batch inside `attack_view`.

    Attributes:
        items: the mapper's dicts.
        images: (N, 3, H, W), the originals.
        padding: bool (N, H, W) or None.
        labels: int64 (N,), true classes.
        clean: the model's output of each original.
        outcomes: by the attack's name.
        forwards: images sent through the model outside of attacks.
    """

    def __init__(self, inner: Any, items: list[dict], num_parts: int) -> None:
        """
        Args:
            inner: the model, inside `attack_view`.
            items: the mapper's dicts.
            num_parts: P.
        """
        self.inner = inner
        self.items = items
        self.num_parts = num_parts
        self.images, self.padding = inner.preprocess(items)
        device = self.images.device
        self.labels = torch.tensor([item["class_id"] for item in items], device=device)
        self.keys = torch.tensor([item["image_id"] for item in items], dtype=torch.int64)
        self.outcomes: dict[str, Outcome] = {}
        self.forwards = 0
        self.clean = self.outputs(self.images)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_classes(self) -> bool:
        return "class_logits" in self.clean[0]

    @property
    def has_parts(self) -> bool:
        return "sem_seg" in self.clean[0] or "instances" in self.clean[0]

    @torch.no_grad()
    def outputs(self, images: Tensor) -> list[dict]:
        """Everything the model says about the images (N, 3, H, W)."""
        self.forwards += len(images)
        return self.inner.inference(images, self.padding)

    @torch.no_grad()
    def class_logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """(M, C) logits of the images at `rows`, int64 (M,), by the shortest path."""
        self.forwards += len(rows)
        padding = None if self.padding is None else self.padding[rows]
        return self.inner.class_logits(images[rows], padding=padding)

    def attack(self, name: str, attack: Attack, wanted: Tensor, starts: Tensor | None = None) -> Outcome:
        """Runs the attack on those of the images `wanted`, bool (N,), that it has not been run on yet.

        An attack of ours gives an image the same result in any batch, so it does not matter who asked for it first.
        `starts` (N, 3, H, W) are where it begins instead of a random point.
        """
        if name not in self.outcomes:
            self.outcomes[name] = Outcome(self.images.clone(), torch.zeros_like(wanted))
        outcome = self.outcomes[name]
        index = (wanted & ~outcome.done).nonzero()[:, 0]
        if not len(index):
            return outcome
        start = time.perf_counter()
        rows = index.tolist()
        begin = None if starts is None else starts[index]
        items = [self.items[row] for row in rows]
        result, _ = attack_batch(attack, self.inner, items, self.keys[rows], starts=begin)
        outcome.images[index] = result.images
        outcome.done[index] = True
        cost = outcome.cost
        cost.images += len(rows)
        cost.forwards += result.forwards
        cost.backwards += result.backwards
        cost.blind += int(result.zero_gradient.sum()) if attack.threat_model.eps > 0 else 0
        if result.history is not None:
            total = _sum_of_first_run(result.history, attack.steps)
            cost.history = total if cost.history is None else cost.history + total
        if result.distance is not None:
            if outcome.distance is None:
                outcome.distance = torch.full((len(self),), float("nan"), device=self.images.device)
            outcome.distance[index] = result.distance
        cost.seconds += time.perf_counter() - start
        return outcome


def _sum_of_first_run(history: Tensor, steps: int) -> np.ndarray:
    """(S,) from (runs * S, M), NaN where an image had left; such an image keeps its last loss, 0 if it had none."""
    losses = history[:steps].double().cpu().numpy()
    # A run that everyone left before its end is shorter.
    losses = np.pad(losses, ((0, steps - len(losses)), (0, 0)), constant_values=np.nan)
    for step in range(1, len(losses)):
        gone = np.isnan(losses[step])
        losses[step, gone] = losses[step - 1, gone]
    return np.nan_to_num(losses).sum(axis=1)


def margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How far the class is from right, (N,), larger is worse for the model, and whether it is wrong, bool (N,).

    Wrong is what `argmax` says, so that it agrees with the evaluators where two logits are equal.
    """
    return class_margin(logits, labels), logits.argmax(dim=1) != labels


@dataclass
class LabelCounts:
    """Pixels by label, each int64 (N, K): right ones, true ones and predicted ones, over the labelled pixels."""

    hits: Tensor
    truth: Tensor
    predicted: Tensor

    @property
    def right(self) -> Tensor:
        """(N,) right pixels."""
        return self.hits.sum(dim=1)

    @property
    def pixels(self) -> Tensor:
        """(N,) labelled pixels."""
        return self.truth.sum(dim=1)


def label_counts(outputs: Sequence[Mapping], items: list[dict], num_parts: int) -> LabelCounts:
    """Counts of a batch; images without part labels have none."""
    labels = num_parts + 1
    size = tuple(items[0]["sem_seg"].shape)
    prediction = torch.stack([predicted_labels(output, num_parts, size) for output in outputs])
    truth = torch.stack([item["sem_seg"] for item in items]).to(prediction.device)
    unlabelled = torch.tensor([item["part_supervision"] == "none" for item in items], device=truth.device)
    counts = (truth < labels) & (truth >= 0) & ~unlabelled[:, None, None]

    def histogram(index: Tensor, where: Tensor) -> Tensor:
        # A bin of its own per image and label, and one more for what does not count.
        offset = labels * torch.arange(len(items), device=index.device)[:, None, None]
        flat = torch.where(where, index + offset, labels * len(items)).flatten()
        return torch.bincount(flat, minlength=labels * len(items) + 1)[:-1].view(len(items), labels)

    return LabelCounts(
        hits=histogram(truth, counts & (truth == prediction)),
        truth=histogram(truth, counts),
        predicted=histogram(prediction, counts),
    )


def object_share(items: list[dict], num_parts: int) -> np.ndarray:
    """float (N,), share of each image's area that its parts cover, 0..1; NaN where no part is labelled."""
    shares = np.full(len(items), np.nan)
    for row, item in enumerate(items):
        height, width = item.get("content_size", item["sem_seg"].shape)
        covered = int((item["sem_seg"] < num_parts).sum())
        if item["part_supervision"] != "none" and covered:
            shares[row] = covered / (height * width)
    return shares

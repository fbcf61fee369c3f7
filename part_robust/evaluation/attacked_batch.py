"""One batch on its way through several attacks: the clean pass and every attack's images are made once and shared.

Letters: N images of (3, H, W), RGB, 0..255; C classes; P parts, K = P + 1 labels (background last); S steps.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from part_robust.attacks import Attack, attack_batch
from part_robust.attacks.class_losses import class_margin
from part_robust.attacks.model_view import attack_gradient
from part_robust.attacks.state import AttackResult
from part_robust.evaluation.conversion import host_outputs, predicted_labels
from part_robust.utils.transfer import to_device


@dataclass
class Cost:
    """Cost of an attack, over all images it was run on.

    Attributes:
        images: images attacked.
        forwards: images sent through the model by the attack.
        backwards: images whose gradient was taken.
        seconds: wall time.
        zero_gradient: images whose gradient was zero at every step, though there was something to attack.
        histories: (S, M) each, the loss of M images at each step of the first run, NaN where an image had left, on the
            device; empty for attacks that record none.
        steps: S.
    """

    images: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    zero_gradient: int = 0
    histories: list[Tensor] = field(default_factory=list)
    steps: int = 0


@dataclass
class AttackOutcome:
    """Result of an attack on a batch.

    Attributes:
        images: (N, 3, H, W), attacked where `done`, the originals elsewhere; on the device.
        done: bool (N,), on the host.
        distance: (N,), of attacks that look for the smallest perturbation; NaN where not done; on the device.
        cost: of the attack on the images that are done.
    """

    images: Tensor
    done: Tensor
    distance: Tensor | None = None
    cost: Cost = field(default_factory=Cost)


class AttackedBatch:
    """A batch inside `attack_mode(model, full_gradient=False)`: each attack adds the gradient that it follows.

    Images stay on the model's device; outputs and whatever is decided by them are on the host, by one copy for each set
    of outputs.

    Attributes:
        items: the mapper's dicts.
        images: (N, 3, H, W), the originals.
        padding: bool (N, H, W) or None.
        labels: int64 (N,), true classes, on the host.
        clean: the model's output of each original, as `host_outputs` gives it.
        outcomes: by the attack's name.
        forwards: images sent through the model outside of attacks.
    """

    def __init__(self, inner: Any, items: list[dict], num_parts: int) -> None:
        """Predict the clean images.

        Args:
            inner: the model, inside `attack_mode(model, full_gradient=False)`.
            items: the mapper's dicts.
            num_parts: P.
        """
        self.inner = inner
        self.items = items
        self.num_parts = num_parts
        self.images, self.padding = inner.preprocess(items)
        self.labels = torch.tensor([item["class_id"] for item in items])
        self.keys = torch.tensor([item["image_id"] for item in items], dtype=torch.int64)
        self.outcomes: dict[str, AttackOutcome] = {}
        self.forwards = 0
        self.clean = self.outputs(self.images)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_classes(self) -> bool:
        """Whether the model predicts classes."""
        return "class_logits" in self.clean[0]

    @property
    def has_parts(self) -> bool:
        """Whether the model predicts parts."""
        return "labels" in self.clean[0] or "instances" in self.clean[0]

    @torch.no_grad()
    def outputs(self, images: Tensor) -> list[dict]:
        """Everything the model says about the images (N, 3, H, W), on the host; label maps of boxes, too."""
        self.forwards += len(images)
        outputs = host_outputs(self.inner.inference(images, self.padding))
        for output, item in zip(outputs, self.items, strict=True):
            if "instances" in output and "labels" not in output:
                # All that counts pixels needs them: painted once.
                output["labels"] = predicted_labels(output, self.num_parts, tuple(item["sem_seg"].shape))
        return outputs

    @torch.no_grad()
    def class_logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """(M, C) logits on the host of the images at `rows`, int64 (M,), by the shortest path."""
        return self.logits_of(images if len(rows) == len(self) else images[self.on_device(rows)], rows)

    @torch.no_grad()
    def logits_of(self, images: Tensor, rows: Tensor) -> Tensor:
        """(M, C) logits on the host of changed images (M, 3, H, W) of those at `rows`, which may repeat."""
        self.forwards += len(rows)
        padding = None if self.padding is None else self.padding[self.on_device(rows)]
        return self.inner.class_logits(images, padding=padding).cpu()

    def select(self, rows: Tensor) -> AttackedBatch:
        """The images at `rows`, int64 (M,) on the host, before any attack."""
        chosen, index = copy.copy(self), self.on_device(rows)
        chosen.items = [self.items[row] for row in rows.tolist()]
        chosen.clean = [self.clean[row] for row in rows.tolist()]
        chosen.images, chosen.padding = self.images[index], None if self.padding is None else self.padding[index]
        chosen.labels, chosen.keys = self.labels[rows], self.keys[rows]
        chosen.outcomes, chosen.forwards = {}, 0
        return chosen

    def on_device(self, values: Tensor) -> Tensor:
        """Indices or flags of the host beside the images."""
        return to_device({"": values}, self.images.device)[""]

    def attack(self, name: str, attack: Attack, wanted: Tensor, starts: Tensor | None = None) -> AttackOutcome:
        """Runs the attack on those of the images `wanted`, bool (N,) on the host, that it has not been run on yet.

        An attack of ours gives an image the same result in any batch, so the first one is reused.
        `starts` (N, 3, H, W) are where it begins instead of a random point.
        """
        outcome = self._outcome(name)
        chosen = (wanted & ~outcome.done).nonzero()[:, 0]
        if not len(chosen):
            return outcome
        index = self.on_device(chosen)
        result = self.attack_rows(name, attack, chosen, starts=None if starts is None else starts[index])
        outcome.images[index] = result.images
        if result.distance is not None:
            if outcome.distance is None:
                outcome.distance = torch.full((len(self),), float("nan"), device=self.images.device)
            outcome.distance[index] = result.distance
        return outcome

    def _outcome(self, name: str) -> AttackOutcome:
        if name not in self.outcomes:
            self.outcomes[name] = AttackOutcome(self.images.clone(), torch.zeros(len(self), dtype=torch.bool))
        return self.outcomes[name]

    def attack_rows(
        self, name: str, attack: Attack, chosen: Tensor, *, starts: Tensor | None = None, mask: Tensor | None = None
    ) -> AttackResult:
        """Run the attack on some images, whether it has been run on them before or not; its cost counts.

        Args:
            name: under which its cost counts.
            attack: the attack.
            chosen: int64 (M,), on the host.
            starts: (M, 3, H, W), see `Attack.__call__`.
            mask: bool (M, 1, H, W), see `Attack.__call__`.
        """
        start = time.perf_counter()
        rows, outcome = chosen.tolist(), self._outcome(name)
        items = [self.items[row] for row in rows]
        with attack_gradient(self.inner, attack.full_gradient):
            result, _ = attack_batch(attack, self.inner, items, self.keys[rows], starts=starts, mask=mask)
        outcome.done[chosen] = True
        cost = outcome.cost
        cost.images += len(rows)
        cost.forwards += result.forwards
        cost.backwards += result.backwards
        cost.zero_gradient += result.num_zero_gradient if attack.threat_model.eps > 0 else 0
        if result.history is not None:
            cost.steps = attack.steps
            cost.histories.append(result.history[: attack.steps])
        cost.seconds += time.perf_counter() - start
        return result


def sum_of_losses(history: Tensor, steps: int) -> np.ndarray:
    """Return the sum over the images (S,) of a history on the host (at most S, M), NaN where an image had left.

    Such an image keeps its last loss, 0 if it had none.
    """
    losses = history.double().numpy()
    # A run that all images left before its end is shorter.
    losses = np.pad(losses, ((0, steps - len(losses)), (0, 0)), constant_values=np.nan)
    for step in range(1, len(losses)):
        gone = np.isnan(losses[step])
        losses[step, gone] = losses[step - 1, gone]
    return np.nan_to_num(losses).sum(axis=1)


def margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the class is from right, (N,), larger is worse for the model, and whether it is wrong, bool (N,).

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
    """Counts of a batch, on the host; images without part labels have none."""
    labels = num_parts + 1
    size = tuple(items[0]["sem_seg"].shape)
    prediction = torch.stack([predicted_labels(output, num_parts, size) for output in host_outputs(outputs)])
    truth = torch.stack([item["sem_seg"] for item in items]).cpu()
    unlabelled = torch.tensor([item["part_supervision"] == "none" for item in items])
    counts = (truth < labels) & (truth >= 0) & ~unlabelled[:, None, None]

    def histogram(index: Tensor, where: Tensor) -> Tensor:
        # A bin for each image and label, and one more for what does not count.
        offset = labels * torch.arange(len(items))[:, None, None]
        flat = torch.where(where, index + offset, labels * len(items)).flatten()
        return torch.bincount(flat, minlength=labels * len(items) + 1)[:-1].view(len(items), labels)

    return LabelCounts(
        hits=histogram(truth, counts & (truth == prediction)),
        truth=histogram(truth, counts),
        predicted=histogram(prediction, counts),
    )


def object_share(items: list[dict], num_parts: int) -> np.ndarray:
    """Return float (N,), the share of each image's area that its parts cover, 0..1; NaN where no part is labelled."""
    shares = np.full(len(items), np.nan)
    for row, item in enumerate(items):
        height, width = item.get("content_size", item["sem_seg"].shape)
        covered = int((item["sem_seg"] < num_parts).sum())
        if item["part_supervision"] != "none" and covered:
            shares[row] = covered / (height * width)
    return shares

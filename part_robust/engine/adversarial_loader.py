"""Adversarial training as a change of the data: wraps the train loader, detectron2's trainer stays untouched."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from part_robust.attacks import Attack, attack_batch, attack_view
from part_robust.attacks.noise import make_keys


class AdversarialLoader:
    """Yields the loader's batches with `image` attacked: float (3, H, W), 0..255, on the model's device.

    The batch is fetched before the trainer opens autocast, so attacks run in float32 also under mixed precision.

    Attributes:
        iteration: the trainer's, set by `AttackSchedule`; random starts depend on it, so a resumed run goes on as the
            uninterrupted one would.
    """

    def __init__(self, loader: Iterable[list[dict]], model: nn.Module, attack: Attack, fraction: float = 1.0) -> None:
        """
        Args:
            loader: endless train loader.
            model: the model that is trained, also inside DistributedDataParallel.
            attack: its `scale` may change over time.
            fraction: share of each batch that is attacked, 0..1; the last images stay clean.
        """
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"ATTACK.TRAIN.FRACTION must lie in 0..1 and not be 0, is {fraction}")
        self.loader = loader
        self.model = model
        self.attack = attack
        self.fraction = fraction
        self.iteration = 0

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            yield self.attack_batch(batch)

    def attack_batch(self, batch: list[dict]) -> list[dict]:
        start = time.perf_counter()
        count = max(round(self.fraction * len(batch)), 1)
        position = torch.arange(count) + comm.get_rank() * len(batch)
        keys = make_keys(0, self.iteration, position)
        with attack_view(self.model, self.attack.full_gradient) as inner:
            result, _ = attack_batch(self.attack, inner, batch[:count], keys)
        attacked = [{**item, "image": image} for item, image in zip(batch[:count], result.images, strict=True)]
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("adv/attack_time", time.perf_counter() - start)
            storage.put_scalar("adv/eps", self.attack.threat_model.eps * self.attack.scale)
        return attacked + batch[count:]

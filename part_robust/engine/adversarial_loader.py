"""Adversarial training as a change of the data: wraps the train loader, detectron2's trainer stays untouched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, nn

from part_robust.attacks import (
    Attack,
    AttackError,
    AttackResult,
    ThreatModelViolation,
    attack_batch,
    attack_mode,
    training_radius,
)
from part_robust.attacks.noise import make_keys
from part_robust.utils.precision import tf32

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "tf32", "bfloat16")

# This many batches in a row without any gradient do not happen by chance.
BATCH_LIMIT = 20


class AdversarialLoader:
    """Yields the loader's batches with `image` attacked: float (3, H, W), 0..255, on the model's device.

    The batch is fetched before the trainer opens autocast, so attacks run in float32 also under mixed precision, unless
    `precision` says otherwise.

    Attributes:
        iteration: the trainer's, set by `AttackSchedule`; random starts depend on it, so a resumed run continues as the
            uninterrupted one would.
    """

    def __init__(
        self,
        loader: Iterable[list[dict]],
        model: nn.Module,
        attack: Attack,
        fraction: float = 1.0,
        *,
        keep_clean: bool = False,
        pieces: int = 1,
        precision: str = "float32",
        skip_failures: bool = False,
        seed: int = 0,
        on_batch: Callable[[int, list[dict]], None] | None = None,
    ) -> None:
        """Wrap the train loader.

        Args:
            loader: endless train loader.
            model: the model that is trained, also inside DistributedDataParallel.
            attack: its `scale` may change over time.
            fraction: share of each batch that is attacked, 0..1; the last images stay clean.
            keep_clean: every image is also given as it was, under `image_clean`.
            pieces: the batch is attacked in so many parts, one after the other; the result is the same.
            precision: "float32", "tf32" or "bfloat16", of the model under attack.
            skip_failures: images of an attack that fails, because the model's outputs are not finite numbers, stay
                clean instead of ending the training, though not for many batches in a row. What the training step
                makes of them is decided there.
            seed: of the random starts, with the iteration and the place in the batch.
            on_batch: called with the iteration and every attacked batch, before the step takes it.

        Raises:
            ValueError: a value is impossible; an attack on the divergence from the clean prediction that starts there.
        """
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"ATTACK.TRAIN.FRACTION must lie in 0..1 and not be 0, is {fraction}")
        if precision not in PRECISIONS:
            raise ValueError(f"ATTACK.TRAIN.PRECISION must be {' or '.join(PRECISIONS)}, got {precision!r}")
        if attack.objective.zero_at_start and not attack.starts_randomly:
            raise ValueError(
                "ATTACK.TRAIN.METHOD trades: the divergence has no gradient at the clean image, set "
                "ATTACK.TRAIN.RANDOM_START True"
            )
        self.loader = loader
        self.model = model
        self.attack = attack
        self.fraction = fraction
        self.keep_clean = keep_clean
        self.pieces = pieces
        self.precision = precision
        self.skip_failures = skip_failures
        self.seed = seed
        self.on_batch = on_batch
        self.iteration = 0
        self.zero_gradient_batches = 0
        self.failed_batches = 0

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            yield self.attack_batch(batch)

    def attack_batch(self, batch: list[dict]) -> list[dict]:
        """Return a batch whose first images are attacked.

        Raises:
            AttackError: the attack got no gradient for many batches, or images that are not finite numbers.
        """
        start = time.perf_counter()
        count = max(round(self.fraction * len(batch)), 1)
        keys = make_keys(self.seed, self.iteration, self._positions(batch)[:count])
        size = -(-count // self.pieces)
        attacked: list[dict] = []
        without_gradient = attackable = 0
        failed = False
        for first in range(0, count, size):
            piece = batch[first : min(first + size, count)]
            result = self._attack(piece, keys[first : first + size])
            if result is None:
                attacked += piece
                failed = True
                continue
            attacked += [{**item, "image": image} for item, image in zip(piece, result.images, strict=True)]
            without_gradient += result.num_zero_gradient
            attackable += result.num_attackable
        self.failed_batches = self.failed_batches + 1 if failed else 0
        changed = attacked + batch[count:]
        if self.keep_clean:
            changed = [{**item, "image_clean": old["image"]} for item, old in zip(changed, batch, strict=True)]
        share = without_gradient / max(attackable, 1)
        if attackable:  # by chance a batch may have no image with labels for the attack's objective
            self._watch_gradient(share)
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("adv/attack_time", time.perf_counter() - start)
            storage.put_scalar("adv/eps", training_radius(self.attack) * self.attack.scale)
            storage.put_scalar("adv/zero_gradient", share)
        if self.on_batch is not None:
            self.on_batch(self.iteration, changed)
        return changed

    def _attack(self, batch: list[dict], keys: Tensor) -> AttackResult | None:
        """None if the attack failed and `skip_failures` lets the images stay clean."""
        device = next(self.model.parameters()).device
        try:
            with (
                attack_mode(self.model, self.attack.full_gradient) as inner,
                torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
                tf32(self.precision == "tf32"),
            ):
                return attack_batch(self.attack, inner, batch, keys)[0]
        except ThreatModelViolation as error:
            files = ", ".join(str(item.get("file_name", "an image")) for item in batch)
            sentence = f"iteration {self.iteration}: the attack failed on one of {files}: {error}"
            if not self.skip_failures or self.failed_batches >= BATCH_LIMIT:
                raise AttackError(sentence) from error
            logger.warning("%s. These images stay clean (SOLVER.NON_FINITE skip)", sentence)
            return None

    def _positions(self, batch: list[dict]) -> Tensor:
        """Return the position of the images in the stream of training images, if the loader has one.

        The positions are the same for any number of processes.
        """
        if "position" in batch[0]:
            return torch.tensor([item["position"] for item in batch])
        return torch.arange(len(batch)) + comm.get_rank() * len(batch)

    def _watch_gradient(self, share: float) -> None:
        """Warns of, and in the end refuses, an attack that is nothing but its random start."""
        if share < 1.0 or self.attack.scale == 0 or self.attack.threat_model.eps == 0:
            self.zero_gradient_batches = 0
            return
        self.zero_gradient_batches += 1
        remedy = (
            "Choose a loss that depends on the images (part losses need images with part labels)"
            if self.attack.objective.needs_parts
            else "The class head may predict the same for every image: let eps grow (ATTACK.TRAIN.EPS_WARMUP_ITERS), "
            "or lower SOLVER.BASE_LR"
        )
        sentence = (
            f"the gradient of ATTACK.TRAIN.OBJECTIVE {self.attack.objective.name} was zero for every image of a "
            f"training batch: their attack is its random start alone. {remedy}"
        )
        log_every_n_seconds(logging.WARNING, sentence, n=60, name=logger.name)
        if self.zero_gradient_batches >= BATCH_LIMIT:
            raise AttackError(
                f"{sentence}; {self.zero_gradient_batches} batches in a row up to iteration {self.iteration}"
            )

"""Notices catastrophic overfitting: a training against one step that has learned to fool that step and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import (
    PGD,
    Attack,
    ThreatModel,
    attack_batch,
    attack_mode,
    get_objective,
    training_radius,
)
from part_robust.attacks.noise import make_keys
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)


# Percentage points; what a few hundred images show by chance is not collapse.
SMALLEST_FALL = 5.0


class CatastrophicOverfitting(UserError, RuntimeError):
    """The training has collapsed, and ATTACK.TRAIN.GUARD.ACTION says stop."""


class OverfittingGuard(HookBase):
    """Every so often compares the accuracy under the training's own attack with that under a short PGD.

    In catastrophic overfitting (Wong et al., 2020) the first rises while the second falls to nothing, within few
    iterations and without a trace in the training loss. Writes `guard/accuracy_training_attack`, `guard/accuracy_pgd`
    (percent) and `guard/collapsed` (0 or 1) to the event storage.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        batches: Sequence[list[dict]],
        *,
        period: int,
        steps: int = 10,
        drop: float = 0.5,
        action: str = "warn",
    ) -> None:
        """Set what is watched, and what a collapse leads to.

        Args:
            model: with a class head.
            attack: the training's; its `scale` is that of the moment.
            batches: held-out images, this process's share.
            period: iterations between two looks.
            steps: of PGD with step eps / 4 and a random start, which reaches every corner of the ball from 8 steps on.
            drop: share of its best accuracy under PGD, 0..1, whose loss is a collapse if the other accuracy rises
                meanwhile.
            action: "warn" or "stop".

        Raises:
            ValueError: another action.
        """
        if action not in ("warn", "stop"):
            raise ValueError(f"ATTACK.TRAIN.GUARD.ACTION must be warn or stop, is {action!r}")
        self.model = model
        self.attack = attack
        self.batches = batches
        self.period = period
        self.drop = drop
        self.action = action
        eps = training_radius(attack)
        self.pgd = PGD(
            threat_model=ThreatModel(norm=attack.threat_model.norm, eps=eps),
            objective=get_objective("cross_entropy"),
            steps=steps,
            step_size=eps / 4.0,
        )
        # Accuracies, percent, at the look that was best under PGD.
        self.best_pgd = 0.0
        self.training_attack_then = 0.0

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self.look()

    def look(self) -> bool:
        """Measures, writes and judges; returns whether the training has collapsed.

        Raises:
            CatastrophicOverfitting: it has, and the action is "stop".
        """
        self.pgd.scale = self.attack.scale
        own, short = self._accuracies()
        fell = short <= min((1.0 - self.drop) * self.best_pgd, self.best_pgd - SMALLEST_FALL)
        collapsed = fell and own > self.training_attack_then
        storage = self.trainer.storage
        storage.put_scalar("guard/accuracy_training_attack", own, smoothing_hint=False)
        storage.put_scalar("guard/accuracy_pgd", short, smoothing_hint=False)
        storage.put_scalar("guard/collapsed", float(collapsed), smoothing_hint=False)
        if collapsed:
            sentence = (
                f"catastrophic overfitting at iteration {self.trainer.iter}: accuracy under PGD fell from "
                f"{self.best_pgd:.1f} to {short:.1f} % while that under the training's own attack rose from "
                f"{self.training_attack_then:.1f} to {own:.1f} %. Go back to an earlier checkpoint and raise "
                "ATTACK.TRAIN.NOISE, lower EPS, or train with PGD"
            )
            if self.action == "stop":
                raise CatastrophicOverfitting(sentence)
            logger.warning("%s", sentence)
        if short > self.best_pgd:
            self.best_pgd, self.training_attack_then = short, own
        return collapsed

    def _accuracies(self) -> tuple[float, float]:
        """Percent correct under the training's attack and under PGD, over all processes."""
        right = torch.zeros(3, dtype=torch.float64)
        with attack_mode(self.model, self.attack.full_gradient) as inner:
            for index, batch in enumerate(self.batches):
                labels = torch.tensor([item["class_id"] for item in batch])
                place = torch.arange(len(batch)) + 1_000_003 * index
                keys = make_keys(0, comm.get_rank(), place)
                right[2] += len(batch)
                for row, attack in enumerate((self.attack, self.pgd)):
                    result, padding = attack_batch(attack, inner, batch, keys)
                    with torch.no_grad():
                        found = inner.class_logits(result.images, padding).argmax(dim=1).cpu()
                    right[row] += (found == labels).sum()
        totals = torch.stack(comm.all_gather(right)).sum(dim=0)
        return tuple((100.0 * totals[:2] / totals[2]).tolist())

    def state_dict(self) -> dict:
        return {"best_pgd": self.best_pgd, "training_attack_then": self.training_attack_then}

    def load_state_dict(self, state: dict) -> None:
        """Continue from what a checkpoint has kept."""
        self.best_pgd = float(state["best_pgd"])
        self.training_attack_then = float(state["training_attack_then"])

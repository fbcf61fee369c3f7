"""Hooks: the eps warm-up, a frozen backbone, random numbers by iteration, a best checkpoint that survives a restart."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from part_robust.attacks.noise import make_keys
from part_robust.engine.adversarial_loader import AdversarialLoader
from part_robust.engine.begun import BEST
from part_robust.utils.files import read_json, write_json

logger = logging.getLogger(__name__)


def _read_best(path: str) -> dict:
    """Return what `BestCheckpoint` has noted; UserError where it is damaged."""
    remedy = "delete it, and the next evaluation chooses the best checkpoint anew"
    return read_json(path, remedy, ("metric", "value", "iteration"))


class AttackSchedule(HookBase):
    """Grows the attack's radius, and its step with it, linearly to the full value over the first iterations.

    Derived from the iteration alone, so resuming needs no state.
    """

    def __init__(self, loader: AdversarialLoader, warmup_iters: int) -> None:
        """Set how long the radius grows.

        Args:
            loader: whose attack is scaled.
            warmup_iters: until the full radius.
        """
        self.loader = loader
        self.warmup_iters = warmup_iters

    def before_step(self) -> None:
        iteration = self.trainer.iter
        self.loader.iteration = iteration
        self.loader.attack.scale = min(1.0, (iteration + 1) / max(self.warmup_iters, 1))


class SeededIterations(HookBase):
    """Hook that makes a step's random numbers depend on the seed, the iteration and the process alone.

    These are dropout, denoising queries and the like, so that a resumed run draws those of the uninterrupted one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        torch.manual_seed(int(make_keys(self.seed, self.trainer.iter, comm.get_rank())) & 0x7FFFFFFFFFFFFFFF)


class FrozenBackbone(HookBase):
    """Keeps weights and statistics of the backbone for the first iterations.

    Derived from the iteration alone, so resuming needs no state. Without gradients the optimizer passes the backbone
    by: no weight decay, no momentum, and AdamW's averages begin when the backbone does.
    """

    def __init__(self, backbone: nn.Module, iterations: int) -> None:
        """Set how long the backbone stays frozen.

        Args:
            backbone: weights that are frozen for good already stay so.
            iterations: until it learns.
        """
        self.backbone = backbone
        self.iterations = iterations
        self.learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        # Evaluations between the steps put the model into training mode again, hence at every step.
        self.training = {module: module.training for module in backbone.modules()}
        self.frozen = False

    def before_step(self) -> None:
        if self.trainer.iter < self.iterations:
            self._set(frozen=True)
        elif self.frozen:
            self._set(frozen=False)
            logger.info("Iteration %d: the backbone begins to learn", self.trainer.iter)

    def after_train(self) -> None:
        if self.frozen:
            self._set(frozen=False)

    def _set(self, frozen: bool) -> None:
        for parameter in self.learning:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
        for module, flag in self.training.items():
            module.training = flag and not frozen
        self.frozen = frozen


class BestCheckpoint(HookBase):
    """Keeps `model_best.pth`, the weights with the highest value of a metric so far.

    The value is in `best_checkpoint.json` beside it, written after the weights, so neither a restart nor a killed
    process forgets it or replaces the weights by worse ones. The file also has the iteration of the last evaluation,
    for `MissedEvaluation`.
    """

    def __init__(
        self,
        checkpointer: Any,
        metric: str,
        eval_period: int,
        weights: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """Set the metric by which a checkpoint is the best.

        Args:
            checkpointer: with `save_dir` and `write`.
            metric: name in the event storage, "task/metric".
            eval_period: iterations between evaluations, as given to `EvalHook`.
            weights: context in which the model has the weights that were evaluated.
        """
        self.checkpointer = checkpointer
        self.metric = metric
        self.eval_period = eval_period
        self.weights = weights
        self.path = os.path.join(checkpointer.save_dir, BEST)
        self.best: float | None = None
        self.best_iteration: int | None = None
        self.evaluated = -1

    @property
    def evaluations_since(self) -> int:
        """Evaluations after the one with the best value; 0 while there is none."""
        if self.best_iteration is None or self.eval_period <= 0:
            return 0
        return (self.evaluated + 1) // self.eval_period - (self.best_iteration + 1) // self.eval_period

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:  # a new run in an old folder owes nothing to the old one
            if os.path.exists(self.path):
                os.remove(self.path)
            return
        if not os.path.isfile(self.path):
            return
        record = _read_best(self.path)
        if (
            record["metric"] == self.metric
            and record["value"] is not None
            and record["iteration"] < self.trainer.start_iter
        ):
            self.best, self.best_iteration = record["value"], record["iteration"]
            # Files of earlier versions lack the second; what comes after the checkpoint is evaluated again.
            self.evaluated = min(record.get("evaluated", self.best_iteration), self.trainer.start_iter - 1)
            logger.info("Best %s so far: %.4f", self.metric, self.best)

    def after_step(self) -> None:
        upcoming = self.trainer.iter + 1
        if self.eval_period > 0 and upcoming % self.eval_period == 0 and upcoming != self.trainer.max_iter:
            self.check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.check()

    def check(self) -> None:
        """Keeps the weights if the latest evaluation is the best so far.

        Raises:
            KeyError: the results lack the metric.
        """
        latest = self.trainer.storage.latest().get(self.metric)
        if latest is None:
            known = sorted(key for key in self.trainer.storage.latest() if "/" in key and "-" not in key)
            raise KeyError(f"TEST.BEST_METRIC {self.metric!r} is not among the results: {', '.join(known)}")
        value, iteration = float(latest[0]), int(latest[1])
        self.evaluated = iteration
        if not np.isfinite(value) or (self.best is not None and not operator.gt(value, self.best)):
            logger.info("%s %.4f is not better than %s", self.metric, value, self.best)
        else:
            self.best, self.best_iteration = value, iteration
            with self.weights():
                self.checkpointer.write("model_best", without=("average",), iteration=iteration)
            logger.info("Best %s so far: %.4f, saved as model_best.pth", self.metric, value)
        record = {"metric": self.metric, "value": self.best, "iteration": self.best_iteration, "evaluated": iteration}
        write_json(self.path, record)


class MissedEvaluation(HookBase):
    """Makes up for an evaluation that a killed process did not finish.

    The checkpoint is written before the evaluation, so resuming begins after it, and `model_best.pth` could be another
    than that of the uninterrupted training.
    """

    def __init__(self, period: int, evaluate: Callable[[], Any], best: BestCheckpoint | None, folder: str) -> None:
        """Set how the evaluation is made up.

        Args:
            period: iterations between evaluations.
            evaluate: evaluates, in all processes, and puts the results into the event storage.
            best: of rank 0.
            folder: OUTPUT_DIR.
        """
        self.period = period
        self.evaluate = evaluate
        self.best = best
        self.path = os.path.join(folder, BEST)

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start >= self.trainer.max_iter:
            # Only the last evaluation is left, which has the number that it has after a step.
            self.trainer.iter = self.trainer.max_iter - 1
            return
        if start == 0 or self.period <= 0 or start % self.period:
            return
        if not comm.all_gather(self._missed(start - 1) if comm.is_main_process() else None)[0]:
            return
        logger.info("The evaluation after iteration %d was interrupted: it is made up", start - 1)
        storage = self.trainer.storage
        storage.iter = start - 1
        self.evaluate()
        if self.best is not None:
            self.best.check()
        storage.iter = start

    def _missed(self, iteration: int) -> bool:
        """Return whether the last evaluation is from before; files of earlier versions do not say."""
        if not os.path.isfile(self.path):
            return True
        return _read_best(self.path).get("evaluated", iteration) < iteration

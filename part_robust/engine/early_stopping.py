"""Early stopping: a training ends when the metric of its best checkpoint has not improved for some evaluations."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from part_robust.engine.best_metric import validation_datasets
from part_robust.engine.hooks import BestCheckpoint
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """The training has ended before its last iteration, and all is saved. No error: detectron2 logs those."""


class EarlyStopping(HookBase):
    """Ends the training after a number of evaluations without a better value of TEST.BEST_METRIC.

    The number comes from `BestCheckpoint`, whose record a resumed training reads: it ends where the uninterrupted one
    would. `model_final.pth` has the weights of the last iteration, `model_best.pth` the best ones. Must come after
    `MissedEvaluation`.
    """

    def __init__(self, patience: int, period: int, best: BestCheckpoint | None, checkpointer: Any) -> None:
        """Set when the training ends.

        Args:
            patience: evaluations without a better value.
            period: iterations between evaluations.
            best: of rank 0.
            checkpointer: with `save(name, iteration=)`.
        """
        self.patience = patience
        self.period = period
        self.best = best
        self.checkpointer = checkpointer

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if 0 < start < self.trainer.max_iter and self._agreed():
            # The place of the iteration that was the last, so that no hook takes this for the end of the schedule.
            self.trainer.iter = start - 1
            self._stop()

    def after_step(self) -> None:
        upcoming = self.trainer.iter + 1
        if upcoming % self.period == 0 and upcoming != self.trainer.max_iter and self._agreed():
            self._stop()

    def _agreed(self) -> bool:
        """Return whether rank 0 has seen enough; called by all processes after every evaluation."""
        enough = self.best is not None and self.best.evaluations_since >= self.patience
        return comm.all_gather(enough)[0]

    def _stop(self) -> None:
        iteration = self.trainer.iter
        self.checkpointer.save("model_final", iteration=iteration)
        # No process ends before the checkpoint is whole.
        comm.synchronize()
        if self.best is not None:
            logger.info(
                "The training ends after iteration %d: %s has not been above %.4f, of iteration %d, in %d evaluations "
                "(SOLVER.PATIENCE)",
                iteration,
                self.best.metric,
                self.best.best,
                self.best.best_iteration,
                self.best.evaluations_since,
            )
        raise StoppedEarly


def check_patience(cfg: CfgNode) -> None:
    """Check that there are evaluations to be patient with.

    Args:
        cfg: complete, with TEST.EVAL_PERIOD.

    Raises:
        UserError: SOLVER.PATIENCE counts evaluations, and the training has none.
    """
    if cfg.SOLVER.PATIENCE > 0 and not (cfg.TEST.EVAL_PERIOD > 0 and validation_datasets(cfg)):
        raise UserError(
            f"SOLVER.PATIENCE must be 0 without evaluations during the training, got {cfg.SOLVER.PATIENCE}: set "
            "SOLVER.EVAL_EPOCHS (or TEST.EVAL_PERIOD) and DATASETS.VAL"
        )

"""Numbers that are not finite, and the signals of pre-emptible machines, in a long training."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor

from part_robust.utils.errors import UserError, is_fixable, sentence

logger = logging.getLogger(__name__)

# Iterations between two checks of the scale of a GradScaler, and the smallest scale that float16 gradients may need.
SCALE_PERIOD, SMALLEST_SCALE = 100, 2.0**-10
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class NonFiniteStep(UserError, FloatingPointError):
    """A loss or a gradient is not a finite number."""


class Preempted(SystemExit):
    """The training received a signal to end, has saved and can be resumed."""


@contextmanager
def no_tracebacks() -> Iterator[None]:
    """Keeps tracebacks of errors that the user can fix out of detectron2's log: their sentence says what to do."""

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and is_fixable(error):
            record.msg, record.args, record.exc_info = f"{record.getMessage()} {sentence(error)}", (), None
        return True

    log = logging.getLogger("detectron2.engine.train_loop")
    log.addFilter(shorten)
    try:
        yield
    finally:
        log.removeFilter(shorten)


class FiniteSteps(HookBase):
    """Check the loss and the gradients between the backward pass and the optimizer's step.

    Registered on the inner trainer, whose `after_backward` comes there. All processes come to the same verdict. The
    weights are those of the step before, so what was saved last is good. detectron2 waits for the losses at this place
    anyway, to write them down: looking costs no further exchange with the device.
    """

    def __init__(self, inner_trainer: SimpleTrainer, action: str = "stop", limit: int = 10) -> None:
        """Set what is done about steps that are not finite.

        Args:
            inner_trainer: around a `TrainingStep`.
            action: "stop", or "skip" the step, buffers (batch norm statistics) included.
            limit: steps in a row that may be skipped.

        Raises:
            ValueError: another action.
        """
        if action not in ("stop", "skip"):
            raise ValueError(f"SOLVER.NON_FINITE must be stop or skip, is {action!r}")
        self.inner_trainer = inner_trainer
        self.action = action
        self.limit = limit
        self.in_a_row = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    @property
    def step(self) -> Any:
        """The `TrainingStep` that the trainer runs."""
        return self.inner_trainer.model

    def keep_buffers(self) -> None:
        """Called before the step."""
        self.inner_trainer.skipped = False
        if self.step.scaler is not None:
            self.step.scaler.skip = False
        if self.action == "skip":
            self._buffers = [(buffer, buffer.clone()) for buffer in self.step.inner.buffers()]

    def after_backward(self) -> None:
        self._check_scale()
        if self._all_finite():
            self.in_a_row = 0
            return
        self.in_a_row += 1
        iteration = self.inner_trainer.iter
        files = [str(item.get("file_name", "an image")) for item in self.step.batch]
        everyone = [name for names in comm.all_gather(files) for name in names]
        sentence = (
            f"iteration {iteration}: the loss or a gradient is not a finite number. Images of the batch: "
            f"{', '.join(everyone)}"
        )
        if self.action == "stop" or self.in_a_row > self.limit:
            many = f" ({self.in_a_row} steps in a row)" if self.in_a_row > 1 else ""
            raise NonFiniteStep(
                f"{sentence}{many}. The last checkpoint is from before; a smaller SOLVER.BASE_LR, "
                "SOLVER.CLIP_GRADIENTS or SOLVER.NON_FINITE skip may help"
            )
        logger.warning("%s. The step is left out (SOLVER.NON_FINITE skip)", sentence)
        self.inner_trainer.skipped = True
        if self.step.scaler is not None:
            self.step.scaler.skip = True
        for parameter in self.step.inner.parameters():
            parameter.grad = None
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def _check_scale(self) -> None:
        """A GradScaler leaves steps out by itself while its scale falls: this finds the end of that.

        Raises:
            NonFiniteStep: the scale is so small that it cannot be the reason for gradients that are not finite.
        """
        scaler, iteration = self.step.scaler, self.inner_trainer.iter
        if scaler is None or iteration % SCALE_PERIOD or (scale := scaler.get_scale()) >= SMALLEST_SCALE:
            return
        raise NonFiniteStep(
            f"iteration {iteration}: gradients in float16 are not finite numbers at any loss scale, which has fallen "
            f"to {scale:.2g}. SOLVER.AMP.DTYPE bfloat16 has the range of float32"
        )

    def _all_finite(self) -> bool:
        loss = self.step.loss
        bad = ~torch.isfinite(loss)
        # A GradScaler finds its scale by gradients that overflow, and leaves such steps out itself.
        if self.step.scaler is None:
            gradients = [p.grad for p in self.step.inner.parameters() if p.grad is not None]
            norms = torch.stack(torch._foreach_norm(gradients, float("inf"))) if gradients else loss.new_zeros(1)
            bad = bad | ~torch.isfinite(norms).all()
        count = bad.float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return not bool(count > 0)


class SaveOnSignal(HookBase):
    """SIGTERM or SIGUSR1 (Slurm's --signal=USR1@60): finishes the step, saves, and ends all processes of the job."""

    def __init__(self, checkpointer: Any) -> None:
        """Name the checkpointer that saves.

        Args:
            checkpointer: with `save(name, iteration=)`.
        """
        self.checkpointer = checkpointer
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def before_train(self) -> None:
        try:
            self._before = {name: signal.signal(name, self._receive) for name in SIGNALS}
        except ValueError:  # not the main thread: the caller handles signals
            logger.warning("signals are not handled outside of the main thread")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def after_step(self) -> None:
        number = self._agreed()
        if not number or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        self.checkpointer.save(name, iteration=iteration)
        # No process exits before the checkpoint is whole: the launcher ends all when one has ended.
        comm.synchronize()
        logger.warning(
            "%s: saved %s.pth after iteration %d; the same command with --resume continues from there",
            signal.Signals(number).name,
            name,
            iteration,
        )
        raise Preempted(128 + number)

    def _agreed(self) -> int:
        """The signal that any process has received, 0 for none."""
        number = self.received or 0
        if comm.get_world_size() == 1:
            return number
        device = next(self.trainer.model.parameters()).device
        shared = torch.tensor(number, device=device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return int(shared)

    def after_train(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

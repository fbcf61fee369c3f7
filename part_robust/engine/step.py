"""One training step, seen by detectron2's trainers as a model: precision, gradient accumulation, perturbed weights.

`SimpleTrainer` says: to do something with the losses, wrap the model. Its `run_step` stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import Any, Protocol, runtime_checkable

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from part_robust.engine.weight_perturbation import WeightPerturbation
from part_robust.layers.constants import constant
from part_robust.structures import LabelCount
from part_robust.utils.transfer import to_device, to_host

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@runtime_checkable
class CountsPartLabels(Protocol):
    """A model with part losses, which are means over other things than images."""

    def part_label_counts(self, batched_inputs: list[dict]) -> dict[str, LabelCount]:
        """Denominators of the part losses by name, see `PartSegmenter.label_counts`; empty without part losses."""
        ...


class TrainingStep(nn.Module):
    """Batch -> losses, whose sum's gradient is that of the whole batch.

    A batch in several pieces goes forward and backward piece by piece, except the last piece's backward pass, which
    the trainer does. The trainer must set gradients to zero before it calls this.

    Attributes:
        model: the model, possibly inside DistributedDataParallel.
        batch: the latest one.
        loss: its total, detached.
        perturbation: of the weights; off when None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pieces: int = 1,
        dtype: torch.dtype | None = None,
        scaler: Any = None,
        perturbation: WeightPerturbation | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: batch -> dict of losses.
            pieces: parts of the batch that are computed one after the other.
            dtype: of autocast; None computes in the weights' own precision.
            scaler: a GradScaler, which the trainer uses for its backward pass.
            perturbation: see above.
        """
        super().__init__()
        self.model = model
        self.pieces = pieces
        self.dtype = dtype
        self.scaler = scaler
        self.perturbation = perturbation
        self.batch: list[dict] = []
        self.loss: Tensor | None = None

    def forward(self, batch: list[dict]) -> dict[str, Tensor]:
        self.batch = batch
        pieces = split(batch, self.pieces)
        shares = loss_shares(self.inner, pieces)
        if self.perturbation is not None and self.perturbation.active:
            self.perturbation.perturb(
                self.inner,
                [partial(self._piece_loss, piece, share) for piece, share in zip(pieces, shares, strict=True)],
            )
        done: dict[str, Tensor] = {}
        for piece, share in zip(pieces[:-1], shares[:-1], strict=True):
            with self._without_reduction():
                losses = self._losses(self.model, piece, share)
                self._total(losses).backward()
            for name, loss in losses.items():
                done[name] = done.get(name, 0.0) + loss.detach()
        losses = self._losses(self.model, pieces[-1], shares[-1])
        losses = {name: loss + done.get(name, 0.0) for name, loss in losses.items()}
        self.loss = reduce(torch.add, [loss.detach() for loss in losses.values()])
        return losses

    @property
    def inner(self) -> nn.Module:
        """The model without DistributedDataParallel."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def _losses(self, model: nn.Module, piece: list[dict], share: dict[str, Tensor | float]) -> dict[str, Tensor]:
        device = next(self.inner.parameters()).device
        with torch.autocast(device.type, self.dtype) if self.dtype else nullcontext():
            losses = model(piece)
        kinds = ("loss_cls", "loss_part")
        names = {name: name if name in share else kinds[not name.startswith("loss_cls")] for name in losses}
        return {name: loss * share[names[name]] for name, loss in losses.items()}

    def _piece_loss(self, piece: list[dict], share: dict[str, Tensor | float]) -> Tensor:
        return self._total(self._losses(self.inner, piece, share))

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        total = reduce(torch.add, losses.values())
        return total if self.scaler is None else self.scaler.scale(total)

    def _without_reduction(self) -> AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


def split(batch: list[dict], pieces: int) -> list[list[dict]]:
    """Runs of nearly equal length, none empty."""
    pieces = min(pieces, len(batch))
    ends = [len(batch) * (i + 1) // pieces for i in range(pieces)]
    return [batch[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def loss_shares(inner: nn.Module, pieces: Sequence[list[dict]]) -> list[dict[str, Tensor | float]]:
    """Factors that turn the mean losses of the pieces into those of the whole batch, when they are added up.

    Class losses, "loss_cls", are means over images. Part losses, "loss_part" except those that have a name of their
    own, are means over whatever the model counts (`CountsPartLabels`): labelled pixels, true parts, queries.
    """
    total = sum(len(piece) for piece in pieces)
    shares: list[dict[str, Tensor | float]] = [dict.fromkeys(("loss_cls", "loss_part"), len(p) / total) for p in pieces]
    if len(pieces) == 1 or not isinstance(inner, CountsPartLabels):
        return shares
    found = [inner.part_label_counts(piece) for piece in pieces]
    if not found[0]:
        return shares
    names = list(found[0])
    counts = torch.stack([torch.stack([own[name].count.float() for name in names]) for own in found])
    counts = to_device({"counts": counts}, next(inner.parameters()).device)["counts"]
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(counts)
    # Same as `global_mean_weight`: where there is next to nothing to count, losses are divided by the least.
    least = constant(tuple(float(found[0][name].least) for name in names), counts.dtype, counts.device)
    for share, row in zip(shares, counts.maximum(least) / counts.sum(dim=0).maximum(least), strict=True):
        share |= dict(zip(names, row.unbind(), strict=True))
    return shares


class _QuietOnSkip:
    """A skipped step has no metrics: what is not a number must not enter the averages, and detectron2 would stop."""

    skipped = False

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        if not self.skipped:
            # One copy for all losses, where detectron2 makes one for each.
            super()._write_metrics(to_host(loss_dict), *args, **kwargs)  # type: ignore[misc]  # of the trainer


class StepTrainer(_QuietOnSkip, SimpleTrainer):
    """`SimpleTrainer` that can leave a step out."""


class ScaledStepTrainer(_QuietOnSkip, AMPTrainer):
    """`AMPTrainer` that can leave a step out."""


class StepScaler(torch.amp.GradScaler):
    """`GradScaler` that can leave a step out and keep its scale.

    Attributes:
        skip: leaves the next step out. The scale adapts to gradients that overflow because of it; a loss that is not a
            number itself says nothing about the scale.
    """

    skip = False

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        return None if self.skip else super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        if not self.skip:
            super().update(new_scale)


def build_step_trainer(cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> SimpleTrainer:
    """detectron2's trainer around a `TrainingStep`, as SOLVER.AMP, SOLVER.ACCUMULATE and ATTACK.TRAIN.AWP say.

    Raises:
        ValueError: a value is impossible on this device.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    dtype, scaler = None, None
    if cfg.SOLVER.AMP.ENABLED:
        if cfg.SOLVER.AMP.DTYPE not in DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE must be bfloat16 or float16, is {cfg.SOLVER.AMP.DTYPE!r}")
        dtype = DTYPES[cfg.SOLVER.AMP.DTYPE]
    if dtype == torch.float16:
        if device.type != "cuda":
            raise ValueError(f"SOLVER.AMP.DTYPE float16 needs a CUDA device, MODEL.DEVICE is {device}: use bfloat16")
        scaler = StepScaler(device.type)
    awp = cfg.ATTACK.TRAIN.AWP
    perturbation = None
    if cfg.ATTACK.TRAIN.ENABLED and awp.GAMMA > 0:
        perturbation = WeightPerturbation(awp.GAMMA, awp.WARMUP_ITERS)
    step = TrainingStep(model, pieces=cfg.SOLVER.ACCUMULATE, dtype=dtype, scaler=scaler, perturbation=perturbation)
    if scaler is None:
        return StepTrainer(step, loader, optimizer, zero_grad_before_forward=True)
    return ScaledStepTrainer(
        step, loader, optimizer, zero_grad_before_forward=True, grad_scaler=scaler, precision=torch.float16
    )

"""Batch norm in training: statistics of a single value, and of another network than the one under attack."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from part_robust.attacks import attack_mode
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.modeling.preprocess import class_targets
from part_robust.utils.errors import UserError

logger = logging.getLogger(__name__)

# Where the norm of a part of the model is set, and to what it can be set for one image.
REMEDIES = {
    "backbone": "MODEL.RESNETS.NORM FrozenBN",
    "segmenter": "MODEL.SEM_SEG_HEAD.NORM GN",
    "head": "MODEL.PART_CLASSIFIER.HEAD_NORM ''",
}


def check_batch_norm(cfg: CfgNode, model: PartClassifier) -> None:
    """Runs the model once if a process, or an accumulated piece, gets one image only. All processes must call this.

    Args:
        cfg: of the training.
        model: as it will be trained, not wrapped.

    Raises:
        UserError: a batch norm layer would see one value per channel.
    """
    world, pieces = comm.get_world_size(), cfg.SOLVER.ACCUMULATE
    if cfg.SOLVER.IMS_PER_BATCH // (world * pieces) > 1 or cfg.SOLVER.BATCH_NORM == "running":
        return
    layers = layers_with_one_value(model, cfg.INPUT.SIZE)
    if not layers:
        return
    remedies = dict.fromkeys(REMEDIES.get(name.split(".")[0], f"another norm in {name}") for name in layers)
    raise UserError(
        f"SOLVER.IMS_PER_BATCH must be at least {2 * world * pieces} for {world} processes x {pieces} pieces "
        f"(SOLVER.ACCUMULATE), got {cfg.SOLVER.IMS_PER_BATCH}: batch norm cannot take statistics of the one value per "
        f"channel that {layers[0]} would see. Or set {' and '.join(remedies)}"
    )


@torch.no_grad()
def layers_with_one_value(model: PartClassifier, size: int) -> list[str]:
    """Names of the batch norm layers that train on one value per channel when each process has one image.

    Args:
        model: a `PartClassifier`; it is left as it was, as are the random numbers.
        size: side of the square image, pixels.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return []
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].numel() // inputs[0].shape[1]
        if isinstance(module, nn.SyncBatchNorm):
            values *= comm.get_world_size()
        if module.training and values == 1:
            found.append(name)
            module.eval()  # or torch would stop here

    hooks = [module.register_forward_pre_hook(functools.partial(look, name)) for name, module in norms.items()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    image = torch.zeros(1, 3, size, size, device=model.device)
    try:
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            if model.segmenter is not None:
                model.segmenter(model.backbone(model.normalize(image)), image.shape[-2:])
            if model.head is not None:
                model.class_logits(image)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
        for name in found:
            norms[name].train()
    return list(dict.fromkeys(found))


class RunningStatistics(HookBase):
    """Batch norm has its running statistics in training steps, as in attacks and evaluations, and keeps them."""

    def __init__(self, model: nn.Module) -> None:
        """Choose the layers.

        Args:
            model: batch norm layers that are in evaluation mode already stay so.
        """
        self.layers = _training_layers(model)

    def before_step(self) -> None:
        self._set(training=False)  # evaluations between the steps put the model into training mode again

    def after_train(self) -> None:
        self._set(training=True)

    def _set(self, training: bool) -> None:
        for layer in self.layers:
            layer.training = training


class StatisticsCheck:
    """Compares the accuracy on attacked training images with batch statistics and with running statistics.

    A training step normalises with the statistics of its batch, attacks and evaluations with the running ones. Every
    `PERIOD` iterations the images of the step are classified with both: `adv/accuracy_batch_statistics` and
    `adv/accuracy_running_statistics` (percent, of this process) in the event storage. If the mean of the first over the
    last `WINDOW` measurements is `GAP` points above that of the second, the step does not learn from the network that
    is attacked, and one warning is logged (Xie and Yuille, "Intriguing properties of adversarial training at scale",
    2020, on the two statistics).
    """

    PERIOD = 20  # in the iterations that detectron2 writes
    WINDOW = 5
    # Percentage points.
    GAP = 30.0

    def __init__(self, model: nn.Module, pieces: int = 1) -> None:
        """Set the model.

        Args:
            model: with a class head, also inside DistributedDataParallel.
            pieces: number of parts that the step takes one after the other; the first one is measured.
        """
        self.model = model
        self.pieces = pieces
        self.accuracies: deque[tuple[float, float]] = deque(maxlen=self.WINDOW)
        self.warned = False

    def __call__(self, iteration: int, batch: Sequence[dict]) -> None:
        """Measure on a batch, every `PERIOD` iterations and if a layer uses batch statistics.

        All processes must call this.

        Args:
            iteration: the trainer's.
            batch: the step's, with `image` attacked and `class_id`; the model is in the step's mode.
        """
        if (iteration + 1) % self.PERIOD:
            return
        layers = _training_layers(self.model)
        if not layers:
            return
        self.accuracies.append(self._measure(layers, list(batch[: -(-len(batch) // self.pieces)])))
        if has_event_storage():
            for name, value in zip(("batch", "running"), self.accuracies[-1], strict=True):
                get_event_storage().put_scalar(f"adv/accuracy_{name}_statistics", value)
        if self.warned or len(self.accuracies) < self.WINDOW:
            return
        of_batch, running = (sum(values) / self.WINDOW for values in zip(*self.accuracies, strict=True))
        if of_batch - running < self.GAP:
            return
        self.warned = True
        logger.warning(
            "of attacked training images %.0f %% are right with batch norm's statistics of the batch, as the training "
            "step sees them, and %.0f %% with the running ones, as attacks and evaluations do: the step learns little "
            "from the network that is attacked. Set SOLVER.BATCH_NORM running (docs/training.md)",
            of_batch,
            running,
        )

    def _measure(self, layers: Sequence[_BatchNorm], batch: list[dict]) -> tuple[float, float]:
        """Percent correct with batch statistics and with running statistics; the model is left unchanged."""
        with attack_mode(self.model) as inner, torch.no_grad():
            images, padding = inner.preprocess(batch)
            running = inner.class_logits(images, padding)
            with _batch_statistics(layers):
                of_batch = inner.class_logits(images, padding)
        predicted = torch.stack([of_batch, running]).argmax(dim=-1).cpu()
        return tuple((100.0 * (predicted == class_targets(batch)).float().mean(dim=1)).tolist())


def _training_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm layers in training mode, which use batch statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


@contextmanager
def _batch_statistics(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let layers normalise with batch statistics and leave their running statistics unchanged."""
    names = ("training", "track_running_stats", "momentum")  # detectron2's synchronised batch norm reads the last alone
    kept = [(layer, [getattr(layer, name) for name in names]) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats, layer.momentum = True, False, 0.0
        yield
    finally:
        for layer, values in kept:
            layer.training, layer.track_running_stats, layer.momentum = values

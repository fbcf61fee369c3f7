"""Finds batch norm that spoils a training: statistics of a single value, or of another network than is attacked."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from part_robust.attacks import attack_mode
from part_robust.modeling.part_classifier import PartClassifier
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


class StatisticsWatch:
    """Compares what batch norm makes of attacked training images in the step and in the attack.

    A training step normalises with the statistics of its batch, attacks and evaluations with the running ones. Every
    `PERIOD` iterations the images of the step are classified both ways: `adv/accuracy_batch_statistics` and
    `adv/accuracy_running_statistics` (percent, of this process) in the event storage. If the first is far above the
    second for `LOOKS` looks together, the step does not learn from the network that is attacked, and a warning says so,
    once (Xie and Yuille, "Intriguing properties of adversarial training at scale", 2020, on the two statistics).
    """

    PERIOD = 20  # in the iterations that detectron2 writes
    LOOKS = 5
    # Percentage points.
    GAP = 30.0

    def __init__(self, model: nn.Module, pieces: int = 1) -> None:
        """Set what is watched.

        Args:
            model: with a class head, also inside DistributedDataParallel.
            pieces: parts of the batch that the step takes one after the other; the first is looked at.
        """
        self.model = model
        self.pieces = pieces
        self.looks: deque[tuple[float, float]] = deque(maxlen=self.LOOKS)
        self.warned = False

    def __call__(self, iteration: int, batch: Sequence[dict]) -> None:
        """Look at a batch, if it is time and a layer takes the batch's statistics. All processes must call this.

        Args:
            iteration: the trainer's.
            batch: the step's, with `image` attacked and `class_id`; the model is in the step's mode.
        """
        layers = [module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.training]
        if (iteration + 1) % self.PERIOD or not layers:
            return
        accuracies = self._accuracies(layers, list(batch[: -(-len(batch) // self.pieces)]))
        self.looks.append(accuracies)
        if has_event_storage():
            for name, value in zip(("batch", "running"), accuracies, strict=True):
                get_event_storage().put_scalar(f"adv/accuracy_{name}_statistics", value)
        step, attack = (sum(values) / len(self.looks) for values in zip(*self.looks, strict=True))
        if self.warned or len(self.looks) < self.LOOKS or step - attack < self.GAP:
            return
        self.warned = True
        logger.warning(
            "of attacked training images %.0f %% are right with batch norm's statistics of the batch, as the training "
            "step sees them, and %.0f %% with the running ones, as attacks and evaluations do: the step learns little "
            "from the network that is attacked. Set SOLVER.BATCH_NORM running (docs/training.md)",
            step,
            attack,
        )

    def _accuracies(self, layers: Sequence[_BatchNorm], batch: list[dict]) -> tuple[float, float]:
        """Percent right with the batch's and with the running statistics; the model is left as it was."""
        with attack_mode(self.model) as inner, torch.no_grad():
            images, padding = inner.preprocess(batch)
            labels = torch.tensor([item["class_id"] for item in batch], device=images.device)
            running = inner.class_logits(images, padding)
            with _batch_statistics(layers):
                of_batch = inner.class_logits(images, padding)
        right = torch.stack([(logits.argmax(dim=1) == labels).float().mean() for logits in (of_batch, running)])
        return tuple((100.0 * right).tolist())


@contextmanager
def _batch_statistics(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Layers normalise with the statistics of what they get, and remember nothing of it."""
    names = ("training", "track_running_stats", "momentum")  # detectron2's synchronised batch norm reads the last alone
    kept = [(layer, [getattr(layer, name) for name in names]) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats, layer.momentum = True, False, 0.0
        yield
    finally:
        for layer, values in kept:
            layer.training, layer.track_running_stats, layer.momentum = values

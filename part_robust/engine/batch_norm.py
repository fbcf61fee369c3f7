"""Finds batch norm that would take statistics of a single value, which torch refuses in the middle of a training."""

from __future__ import annotations

import functools

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from part_robust.modeling.part_classifier import PartClassifier
from part_robust.utils.errors import UserError

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

"""How a record describes the model: its preprocessing, and its origin where it is from elsewhere."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from part_robust.evaluation.plan import PlannedAttacks
from part_robust.modeling.external.read import source_file
from part_robust.utils.errors import UserError
from part_robust.utils.files import file_sha256


def describe_external(cfg: CfgNode) -> str:
    """Return the origin of a model of MODEL.EXTERNAL in a few words, "" for a model of this package."""
    node = cfg.MODEL.EXTERNAL
    return f"{node.KIND} {node.NAME}".strip()


def source_sha256(cfg: CfgNode) -> str:
    """Return the SHA-256 of the module of a callable, "" for other models.

    Modules that it imports are not part of it.
    """
    node = cfg.MODEL.EXTERNAL
    return file_sha256(source_file(node.NAME)) or "" if node.KIND == "callable" else ""


def describe_preprocessing(cfg: CfgNode, model: nn.Module | None = None) -> dict[str, Any]:
    """Return what lies between an image file and the network, and between its output and the class logits.

    The network gets (pixels - `mean`) / `std` with pixels in 0..255; attacks change the pixels before that.

    Args:
        cfg: complete.
        model: built, with its notes; None before that.
    """
    external, data, net = cfg.MODEL.EXTERNAL, cfg.INPUT, getattr(getattr(model, "head", None), "net", None)
    return {
        "size": data.SIZE,
        "transform": data.TEST_TRANSFORM,
        "resize": data.TEST_RESIZE or data.SIZE if data.TEST_TRANSFORM == "center_crop" else data.SIZE,
        "interpolation": data.TEST_INTERPOLATION,
        "channels": external.CHANNELS,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "output": "logarithm of probabilities" if external.PROBABILITIES else "logits",
        "class_indices": list(external.CLASS_INDICES),
        "notes": list(getattr(net, "notes", ())),
    }


def check_gradients(model: nn.Module, attacks: PlannedAttacks) -> None:
    """Check that a model without a gradient is attacked by black boxes alone.

    Args:
        model: that is attacked.
        attacks: of the evaluation.

    Raises:
        UserError: an attack needs a gradient that the model does not have.
    """
    net = getattr(getattr(model, "head", None), "net", None)
    if getattr(net, "differentiable", True):
        return
    names = {name for tier in attacks.tiers for name, attack in tier.attacks.items() if attack.uses_gradient}
    if names:
        raise UserError(
            f"TEST.TIER must hold attacks without gradients alone, got {', '.join(sorted(names))}: the outputs of this "
            "model have no gradient with respect to the images. Save it differentiable, or give TEST.TIER black_box, "
            "whose number is a loose bound"
        )
    if any(attack.uses_gradient for attack in attacks.curve.values()):
        raise UserError("TEST.EPS_CURVE must be () for a model without a gradient, or TEST.EPS_CURVE_ATTACK square")

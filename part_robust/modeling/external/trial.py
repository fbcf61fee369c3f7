"""A few passes through a classifier from elsewhere, to say what is wrong with it before any work.

Letters: N images of (3, S, S); K outputs of the model, C classes of the data set.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.modeling.external.net import ExternalNet
from part_robust.modeling.external.read import last_line
from part_robust.utils.errors import UserError

IMAGES = 4
# Of the outputs' spread: rounding is far below, statistics of the batch far above.
SAME = 1e-3


def try_model(net: ExternalNet, size: int, mean: Tensor, std: Tensor, num_classes: int) -> None:
    """Refuse a model that cannot be evaluated, and note in it what can be evaluated only in part.

    Args:
        net: the model, on its device; `batch`, `differentiable` and `notes` are set.
        size: S.
        mean: (3, 1, 1), RGB, 0..255.
        std: (3, 1, 1), RGB, 0..255.
        num_classes: C.

    Raises:
        UserError: it does not take such images, returns no finite logits, or probabilities; K is not C; an image's
            logits depend on the others of its batch.
    """
    images = (trial_images(size).to(mean.device) - mean) / std
    outputs = _first_outputs(net, images)
    if not bool(torch.isfinite(outputs).all()):
        raise UserError(
            "the model must return finite logits, got NaN or infinity on images of noise: check --mean, "
            "--std and --values"
        )
    _check_number(net, outputs.shape[1], num_classes)
    _check_probabilities(net, outputs)
    _check_batch(net, images, outputs)
    _check_gradient(net, images)


def trial_images(size: int, number: int = IMAGES) -> Tensor:
    """Return images (N, 3, S, S), 0..255: patches and noise, since a network's means of noise alone are all alike."""
    generator = torch.Generator().manual_seed(0)
    patches = F.interpolate(torch.rand(number, 3, 4, 4, generator=generator), size=(size, size))
    return 200 * patches + 55 * torch.rand(number, 3, size, size, generator=generator)


@torch.no_grad()
def _first_outputs(net: ExternalNet, images: Tensor) -> Tensor:
    try:
        return net.outputs(images)
    except UserError as error:
        problem: Exception = error
    except Exception as error:  # graphs and the user's own code raise anything
        problem = error
    if net.batch == (1, 0):
        net.batch = (1, 1)
        try:
            outputs = net.outputs(images)
        except Exception:  # the first problem is said
            net.batch = (1, 0)
        else:
            net.notes.append("the model takes one image at a time: so is it evaluated, which takes longer")
            return outputs
    if isinstance(problem, UserError):
        raise problem
    shape = (len(images), *images.shape[1:])
    raise UserError(
        f"the model must take float32 images {shape} on {images.device}, got {type(problem).__name__}: "
        f"{last_line(problem)}. Give --size the size it takes, --batch the number of images if its graph has a fixed "
        "one, and MODEL.DEVICE the device it was saved for"
    ) from problem


def _check_number(net: ExternalNet, outputs: int, num_classes: int) -> None:
    if len(net.indices):
        if int(net.indices.max()) >= outputs:
            raise UserError(
                f"--classes (MODEL.EXTERNAL.CLASS_INDICES) must name the {outputs} outputs of the model, got output "
                f"{int(net.indices.max())}"
            )
        used = (~net.absent).sum(dim=1)
        dropped = outputs - int(used.sum())
        if dropped:
            net.notes.append(f"{dropped} of the model's {outputs} outputs are no class of the data set: left out")
        if several := int((used > 1).sum()):
            net.notes.append(
                f"classes with several outputs: {several}, up to {int(used.amax())} outputs each. The logit of such a "
                "class is the logarithm of the sum of its outputs' exponentials, as the probability of their union"
            )
    elif outputs != num_classes:
        raise UserError(
            f"the model must have the {num_classes} classes of the data set, got {outputs} outputs. Give --classes a "
            "file with the name of each output, one a line: outputs are found by their names"
        )
    else:
        net.notes.append("output i of the model is taken for class i of the data set (--classes FILE compares names)")


def _check_probabilities(net: ExternalNet, outputs: Tensor) -> None:
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    if inside and bool(((outputs.sum(dim=1) - 1).abs() < 1e-3).all()) and not net.probabilities:
        raise UserError(
            "the model must return logits, got probabilities, whose gradients vanish where it is sure, so that attacks "
            "fail on a model that is not robust. Return what comes before the softmax, or give --probabilities, which "
            "attacks their logarithm"
        )
    if net.probabilities and not inside:
        raise UserError(
            f"--probabilities (MODEL.EXTERNAL.PROBABILITIES) must go with outputs in 0..1, got "
            f"{float(outputs.min()):.3g}..{float(outputs.max()):.3g}: leave it out"
        )


@torch.no_grad()
def _check_batch(net: ExternalNet, images: Tensor, outputs: Tensor) -> None:
    spread = (outputs.amax(dim=1) - outputs.amin(dim=1)).clamp(min=1e-30)

    def change(other: Tensor) -> float:
        return float(((other - outputs[:1]).abs().amax(dim=1) / spread[:1]).max())

    # Random outputs are another problem, which the checks of the evaluation find (C2).
    if change(net.outputs(images)[:1]) > SAME:
        net.notes.append("the model gives an image other logits in every pass: see check C2 of the report")
    elif (beside := change(net.outputs(torch.cat([images[:1], 1.5 * images[2:]]))[:1])) > SAME:
        raise UserError(
            "the model must classify each image by itself, got logits that change with the other images of the batch "
            f"by {beside:.2g} of their spread: save it in eval mode (model.eval()), without statistics of the batch"
        )


def _check_gradient(net: ExternalNet, images: Tensor) -> None:
    images = images[:1].clone().requires_grad_(True)
    reason = "its outputs do not depend on the images: detached, or computed without gradient"
    try:
        with torch.enable_grad():
            logits = net(images)
        gradient = torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] if logits.requires_grad else None
    except Exception as error:  # operators without a derivative
        gradient, reason = None, last_line(error)
    if gradient is None:
        net.differentiable = False
        net.notes.append(f"the model gives no gradient ({reason}): only attacks without gradients can be run on it")

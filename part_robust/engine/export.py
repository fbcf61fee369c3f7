"""A trained model without what its class does not need: no optimizer, no detection branch, no decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from part_robust.config import config_text
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.modeling.counts import with_counts
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.utils.files import replacing, write_text
from part_robust.utils.precision import tf32


@dataclass(frozen=True)
class Exported:
    """Files that `export_classifier` wrote.

    Attributes:
        weights: the checkpoint.
        config: a complete config whose MODEL.WEIGHTS is that checkpoint.
        parameters_before: of the trained model.
        parameters_after: of the exported one.
        parts_dropped: the part segmenter is gone.
    """

    weights: Path
    config: Path
    parameters_before: int
    parameters_after: int
    parts_dropped: bool


def export_classifier(cfg: CfgNode, output: Path) -> Exported:
    """Writes `model.pth` and `config.yaml` to `output`, and checks that they give the same class logits.

    A head that reads the backbone alone (Two-Headed models) needs no part segmenter once it is trained: it is left out.
    A head that reads parts keeps it, and so does a model without a head.

    Args:
        cfg: of the training, with MODEL.WEIGHTS of the trained model; class and part counts that are 0 are read from
            the training set and written out. A head with a part-to-class matrix is still built from that set.
        output: folder, made if it is missing.

    Raises:
        ValueError: MODEL.WEIGHTS is empty.
        CheckpointMismatch: the weights are of another model.
        RuntimeError: the exported model's class logits differ.
    """
    cfg = with_counts(cfg)
    trained = load_trained(cfg)
    exported_cfg = cfg.clone()
    dropped = trained.head is not None and trained.segmenter is not None and not trained.head.needs_parts
    if dropped:
        exported_cfg.MODEL.PART_CLASSIFIER.SEGMENTER = ""
    output.mkdir(parents=True, exist_ok=True)
    exported_cfg.MODEL.WEIGHTS = str(output / "model.pth")
    exported_cfg.OUTPUT_DIR = str(output)
    # Under the names that the smaller model has, so that nothing is silently too much.
    names = set(build_model(exported_cfg).state_dict())
    weights = {name: value for name, value in trained.state_dict().items() if name in names}
    with replacing(output / "model.pth") as path:
        torch.save({"model": weights}, path)
    write_text(output / "config.yaml", config_text(exported_cfg))

    exported = load_trained(exported_cfg)
    if trained.head is not None:
        _assert_same_logits(trained, exported, cfg.INPUT.SIZE)
    return Exported(
        weights=output / "model.pth",
        config=output / "config.yaml",
        parameters_before=_count(trained.parameters()),
        parameters_after=_count(exported.parameters()),
        parts_dropped=dropped,
    )


def load_trained(cfg: CfgNode) -> PartClassifier:
    """The model of MODEL.WEIGHTS, for evaluation.

    Raises:
        ValueError: MODEL.WEIGHTS is empty, or of another model (CheckpointMismatch).
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name the trained model, for example output/run/model_best.pth")
    model = build_model(cfg).eval()
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    return model


def _assert_same_logits(first: PartClassifier, second: PartClassifier, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (255 * torch.rand(2, 3, size, size, generator=generator)).to(first.device)
    with torch.no_grad(), tf32(False):
        difference = float((first.class_logits(images) - second.class_logits(images)).abs().max())
    if not difference <= 1e-5:
        raise RuntimeError(f"the exported model's class logits differ from the trained one's by {difference:.2g}")


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)

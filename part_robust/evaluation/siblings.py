"""Images that attacks made for other models, tried on this one: check C14.

An attack on one model often breaks another that saw the same data. Images that break this one although its own attacks
did not show that these are weaker than they look. Trying them costs one forward pass for each image that is not broken.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks import ThreatModel, ThreatModelViolation, attack_mode
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.evaluated import EvaluatedData
from part_robust.evaluation.record import find_headline, flags_of
from part_robust.evaluation.record_schema import read_record

logger = logging.getLogger(__name__)

RECORD = "robustness.json"
# Radii are written as decimals.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Sibling:
    """Another model's evaluation on the same data that kept its attacked images.

    Attributes:
        name: of its folder.
        checkpoint: SHA-256 of its weights.
        tier: whose images they are, its headline.
        images: folder of them.
    """

    name: str
    checkpoint: str
    tier: str
    images: Path


class SiblingSkipped(ValueError):
    """A sibling's images cannot be tried; says why."""


def sibling_folders(cfg: CfgNode) -> dict[str, Path]:
    """Folders of TEST.CHECKS.SIBLINGS with a finished evaluation, by name.

    Raises:
        FileNotFoundError: a folder that the config names holds none.
    """
    words = [word.strip() for word in cfg.TEST.CHECKS.SIBLINGS.split(",") if word.strip()]
    own = Path(cfg.OUTPUT_DIR).resolve()
    if words == ["auto"]:
        beside = sorted(path.parent for path in own.parent.glob(f"*/{RECORD}"))
        return {folder.name: folder for folder in beside if folder != own}
    for word in words:
        if not (Path(word) / RECORD).is_file():
            raise FileNotFoundError(
                f"TEST.CHECKS.SIBLINGS names {word}, where there is no {RECORD}: evaluate the other model first, with "
                "TEST.TIER and TEST.SAVE_ADVERSARIALS"
            )
    return {word: Path(word) for word in words if Path(word).resolve() != own}


def find_siblings(cfg: CfgNode, dataset: str, threat_model: ThreatModel, checkpoint: str) -> list[Sibling]:
    """The siblings whose images this threat model may allow. Why one is left out is in the log.

    Args:
        cfg: with OUTPUT_DIR and TEST.CHECKS.SIBLINGS.
        dataset: name.
        threat_model: of the evaluation that is checked.
        checkpoint: SHA-256 of the weights that are checked: a model is not a sibling of itself.
    """
    found = []
    # A folder that the user named and that cannot be used is a warning.
    log = logger.info if cfg.TEST.CHECKS.SIBLINGS.strip() == "auto" else logger.warning
    for name, folder in sibling_folders(cfg).items():
        try:
            record = read_record(folder / RECORD)
            sibling = _sibling(name, folder, record, dataset, threat_model)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log("C14: %s is left out: %s", folder, error if isinstance(error, SiblingSkipped) else "no such record")
            continue
        if sibling.checkpoint == checkpoint:
            log("C14: %s is left out: it has the same weights", folder)
            continue
        found.append(sibling)
    return found


def _sibling(name: str, folder: Path, record: Mapping, dataset: str, threat_model: ThreatModel) -> Sibling:
    evaluation = (record.get("evaluation") or {}).get(dataset)
    if evaluation is None:
        raise SiblingSkipped(f"{dataset} was not evaluated with tiers")
    if not evaluation["files"]["adversarials"]:
        raise SiblingSkipped("its attacked images were not kept (TEST.SAVE_ADVERSARIALS)")
    if evaluation["norm"] != threat_model.norm or evaluation["eps"] > threat_model.eps + TOLERANCE:
        raise SiblingSkipped(f"its threat model is {evaluation['norm']}, eps {evaluation['eps']:g}")
    checkpoint = record["checkpoint"]["sha256"]
    if checkpoint is None:
        raise SiblingSkipped("its weights are random")
    images = folder / evaluation["files"]["adversarials"] / evaluation["headline"]
    return Sibling(name, checkpoint, evaluation["headline"], images)


def transfer(data: EvaluatedData, checkpoint: str) -> dict[str, Any] | None:
    """Classify the images that were made for siblings, of the images that the headline's attacks did not break.

    Args:
        data: that was evaluated.
        checkpoint: SHA-256 of the model's weights.

    Returns:
        The record's `transfer`: number `standing`, how many of them any sibling's images `broke`, and each of
        `siblings` with name, weights, tier, `images` that were tried and those it `broke`. None if there are none that
        can be tried, or the headline is none of the class or has a mask, which the siblings' images do not keep to.
    """
    headline = find_headline(data.plan, data.merged)
    flags = flags_of(data.plan, data.merged)
    robust = flags.get(f"robust_{headline.name}") if headline else None
    if headline is None or robust is None or headline.kind == "local":
        return None
    remaining = set(flags["image_id"][robust.astype(bool)].tolist())
    rows, broken = [], set()
    for sibling in find_siblings(data.cfg, data.name, headline.threat_model, checkpoint):
        logger.info("C14: trying the images made for %s", sibling.name)
        try:
            tried, own = _try(data, remaining, headline.threat_model, sibling)
        # Images that another process wrote, or is writing: a check must not end an evaluation.
        except (ThreatModelViolation, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            logger.warning("C14: the images made for %s are left out: %s", sibling.name, error)
            continue
        broken |= own
        rows.append(
            {
                "name": sibling.name,
                "checkpoint_sha256": sibling.checkpoint,
                "tier": sibling.tier,
                "images": tried,
                "broke": len(own),
            }
        )
    return {"standing": len(remaining), "broke": len(broken), "siblings": rows} if rows else None


def _try(
    data: EvaluatedData, remaining: Collection[int], threat_model: ThreatModel, sibling: Sibling
) -> tuple[int, set[int]]:
    """Return how many images were tried, and the ids of those that are misclassified."""
    tried, broken, most = 0, set(), data.cfg.DATALOADER.TEST_BATCH_SIZE
    with attack_mode(data.model) as inner, torch.no_grad():
        for arrays in load_adversarials(sibling.images):
            ids = arrays["image_id"].tolist()
            rows = [row for row, image_id in enumerate(ids) if image_id in remaining]
            for chosen in (rows[i : i + most] for i in range(0, len(rows), most)):
                batch = data.items(ids[row] for row in chosen)
                images, padding = inner.preprocess(batch)
                attacked = torch.from_numpy(arrays["images"][chosen]).to(images.device)
                _same_geometry(attacked, images, padding)
                threat_model.verify(attacked, images)
                predictions = inner.class_logits(attacked, padding).argmax(dim=1).tolist()
                broken |= {
                    item["image_id"] for item, seen in zip(batch, predictions, strict=True) if seen != item["class_id"]
                }
                tried += len(batch)
    return tried, broken


def _same_geometry(attacked: Tensor, images: Tensor, padding: Tensor | None) -> None:
    if attacked.shape != images.shape:
        sizes = " and ".join("x".join(map(str, x.shape[-2:])) for x in (attacked, images))
        raise SiblingSkipped(f"its images and this model's have other sizes, {sizes} pixels")
    if padding is not None and bool(((attacked != images) & padding[:, None]).any()):
        raise SiblingSkipped("the two models' images are padded differently")

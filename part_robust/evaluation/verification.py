"""Saved adversarial images scored once more: by another process, from the files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from part_robust.attacks import ThreatModel, ThreatModelViolation, attack_mode
from part_robust.config import get_part_robust_cfg
from part_robust.data import PartDatasetMapper
from part_robust.evaluation.adversarials import load_adversarials, outputs_to_compare
from part_robust.evaluation.checks import from_record, merge_checks
from part_robust.evaluation.checks.add import set_checks
from part_robust.evaluation.checks.catalogue import CATALOGUE, RecordEvidence
from part_robust.evaluation.record_schema import read_record
from part_robust.evaluation.regions import in_one_region
from part_robust.run_config import complete
from part_robust.utils.errors import UserError
from part_robust.utils.files import file_sha256, read_json, write_json
from part_robust.utils.precision import tf32


@dataclass
class Verification:
    """Findings of the verification of saved images.

    Attributes:
        dataset: of the images.
        tier: of the evaluation.
        right: image id -> whether the class is right; None for models without classes.
        problems: sentences, one for each image or batch that is not as the record says.
    """

    dataset: str
    tier: str
    right: dict[int, bool | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float | None:
        """Percent right among the saved images."""
        known = [right for right in self.right.values() if right is not None]
        return 100.0 * sum(known) / len(known) if known else None


def recorded_config(folder: Path, weights: str = "", needs_images: bool = True) -> tuple[CfgNode, dict]:
    """Config and record of an evaluation, its data sets registered.

    Args:
        folder: its OUTPUT_DIR.
        weights: where the checkpoint is now; "" where it was.
        needs_images: there must be adversarial images in it.

    Raises:
        FileNotFoundError: no record, or no checkpoint.
        ImportError: a module of IMPORTS cannot be imported.
        ValueError: it names no adversarial images, or the checkpoint is another than the one that was evaluated.
    """
    path = folder / "robustness.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    record = read_record(path)
    evaluations = (record.get("evaluation") or {}).values()
    if needs_images and not any((evaluation.get("files") or {}).get("adversarials") for evaluation in evaluations):
        raise ValueError(f"{path} names no adversarial images: evaluate with TEST.TIER and TEST.SAVE_ADVERSARIALS")
    cfg = get_part_robust_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(record["config"]))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} must hold the config of the evaluation, got one that cannot be read") from error
    checkpoint = record.get("checkpoint") or {}
    cfg.MODEL.WEIGHTS = weights or checkpoint.get("path") or ""
    expected = checkpoint.get("sha256")
    if expected is None:
        raise ValueError(f"{path} evaluated random weights (MODEL.WEIGHTS is empty), so it cannot be verified")
    found = file_sha256(cfg.MODEL.WEIGHTS)
    if found != expected:
        what = "does not exist" if found is None else f"has the SHA-256 {found[:16]}..."
        raise ValueError(
            f"checkpoint {cfg.MODEL.WEIGHTS} {what}, the evaluated one has {expected[:16]}...: give it as --weights"
        )
    return complete(cfg), record


def verify(folder: Path, cfg: CfgNode, model: nn.Module, record: dict) -> list[Verification]:
    """Score every saved image in float32 and compare with the saved outputs and the originals.

    Args:
        folder: OUTPUT_DIR of the evaluation.
        cfg: of `recorded_config`.
        model: that `cfg` describes, with the weights it names.
        record: of `recorded_config`.
    """
    with tf32(record.get("precision", {}).get("convolution") == "tf32"):
        return _verify(folder, cfg, model, record)


def _verify(folder: Path, cfg: CfgNode, model: nn.Module, record: dict) -> list[Verification]:
    results = []
    for dataset, evaluation in record["evaluation"].items():
        if not evaluation["files"]["adversarials"]:
            continue
        missing = [key for key in ("headline", "num_images", "tiers", "checks") if evaluation.get(key) is None]
        if missing:
            path = folder / "robustness.json"
            raise UserError(f"{path} must have evaluation.{dataset}.{missing[0]}, got none: evaluate again")
        items = {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset)}
        mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset)
        num_parts = len(MetadataCatalog.get(dataset).thing_classes)
        for tier in evaluation["tiers"]:
            result = Verification(dataset, tier)
            for arrays in load_adversarials(folder / evaluation["files"]["adversarials"] / tier):
                batch = [mapper(items[image_id]) for image_id in arrays["image_id"].tolist() if image_id in items]
                if len(batch) < len(arrays["image_id"]):
                    result.problems.append(f"{len(arrays['image_id']) - len(batch)} images are not in {dataset}")
                    continue
                _score(model, batch, arrays, result, num_parts, evaluation["tiers"][tier])
            if len(result.right) != evaluation["num_images"]:
                number = evaluation["num_images"]
                result.problems.append(f"{len(result.right)} images are saved, {number} were evaluated")
            elif result.accuracy is not None:
                recorded = _recorded_accuracy(cfg, record, dataset, tier)
                if recorded is not None and not math.isclose(recorded, result.accuracy, abs_tol=1e-6):
                    result.problems.append(
                        f"{result.accuracy:.2f} % of the saved images are right, {recorded:.2f} % in the record"
                    )
            results.append(result)
    return results


def _recorded_accuracy(cfg: CfgNode, record: Mapping[str, Any], dataset: str, tier: str) -> float | None:
    """Return the record's class accuracy on exactly the saved images, in percent; None where it has none."""
    if cfg.TEST.SAVE_ADVERSARIALS == "png":
        scored = record["evaluation"][dataset]["tiers"][tier].get("robust_8bit")
    else:
        scored = record["results"].get(dataset, {}).get(f"classification_{tier}")
    return (scored or {}).get("accuracy")


def note_in_record(folder: Path, results: Sequence[Verification]) -> None:
    """Add `rescored`, images and mismatches by data set, to the record.

    C5, the verdict and `unreliable` become what follows from it. `rescored.before` keeps C5 as the evaluation itself
    left it, for the next verification.
    """
    path = folder / "robustness.json"
    record = read_json(path, "evaluate again")
    for dataset, evaluation in record["evaluation"].items():
        own = [result for result in results if result.dataset == dataset]
        if own:
            images, mismatches = (sum(len(x) for x in y) for y in ([r.right for r in own], [r.problems for r in own]))
            known = from_record(evaluation["checks"])
            own_process = next((check.describe() for check in known if check.id == "C5"), None)
            before = (evaluation.get("rescored") or {}).get("before", own_process)
            evaluation["rescored"] = {"images": images, "mismatches": mismatches, "before": before}
            rescored = CATALOGUE["C5"].on_record(RecordEvidence(evaluation, {}, {}))
            fresh = [*rescored, *from_record([before] if before else [])]
            set_checks(dataset, evaluation, merge_checks([c for c in known if c.id != "C5"], fresh))
        if dataset == record["dataset"]:
            record["unreliable"] = not evaluation["reportable"]
    write_json(path, record)


@torch.no_grad()
def _score(
    model: nn.Module,
    batch: list[dict],
    arrays: dict[str, np.ndarray],
    result: Verification,
    num_parts: int,
    tier: Mapping[str, Any],
) -> None:
    """Add a batch to the result; `tier` is that of the record."""
    ids = arrays["image_id"].tolist()
    with attack_mode(model) as inner, torch.no_grad():
        images, padding = inner.preprocess(batch)
        attacked = torch.from_numpy(arrays["images"]).to(images.device)
        if attacked.shape != images.shape:
            result.problems.append(
                f"images {ids[0]}...: shape {tuple(attacked.shape)}, the originals have {tuple(images.shape)}"
            )
            return
        try:
            # Not by the radius that the file itself states.
            ThreatModel(norm=tier["norm"], eps=tier["eps"]).verify(attacked, images)
        except ThreatModelViolation as error:
            result.problems.append(f"images {ids[0]}...: outside the threat model: {error}")
        if padding is not None and ((attacked != images) & padding[:, None]).any():
            result.problems.append(f"images {ids[0]}...: letterbox padding was changed")
        if "regions" in tier:
            label_maps = torch.stack([item["sem_seg"] for item in batch])
            changed = (attacked != images).any(dim=1).cpu()
            inside = in_one_region(changed, label_maps, num_parts, tier["regions"], tier["patch_sides"])
            for row in (~inside).nonzero()[:, 0].tolist():
                result.problems.append(
                    f"image {ids[row]}: changed outside of every single region of tier {result.tier}"
                )
        found = outputs_to_compare(inner.inference(attacked, padding), batch, num_parts)
    predictions = found["prediction"].tolist() if "prediction" in found else [None] * len(ids)
    for image_id, prediction, label in zip(ids, predictions, arrays["label"].tolist(), strict=True):
        result.right[image_id] = None if prediction is None else prediction == label
    labels = [item["class_id"] for item in batch]
    if labels != arrays["label"].tolist():
        result.problems.append(f"images {ids[0]}...: the data set has other labels")
    for name, values in found.items():
        for row in np.flatnonzero(values != arrays[name]):
            result.problems.append(f"image {ids[row]}: {name} is {values[row]}, {arrays[name][row]} when it was saved")

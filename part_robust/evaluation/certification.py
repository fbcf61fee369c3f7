"""Certified accuracy of the smoothed model on a data set: image after image, resumable, every process for its own.

Letters: N images of (3, H, W), RGB, 0..255; C classes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import attack_mode
from part_robust.data.sample import sample_records
from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.breakdown import share
from part_robust.evaluation.certificate_trials import run_trials
from part_robust.evaluation.evaluated import EvaluatedData
from part_robust.evaluation.journal import BatchArrays, Journal
from part_robust.evaluation.named_arrays import CurveArrays, VoteArrays
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.progress import Progress
from part_robust.evaluation.record import holds, image_list_sha256, right
from part_robust.evaluation.smoothing import (
    PIXEL_RANGE,
    Certificates,
    Smoothing,
    certify,
    count_predictions,
    curve_radii,
    votes_seed,
)
from part_robust.utils.errors import UserError
from part_robust.utils.files import replacing
from part_robust.utils.processes import prepare_to_wait, wait_for_all

logger = logging.getLogger(__name__)

# Of an evaluation's identity, what votes depend on; not its attacks.
IDENTITY = ("config", "checkpoint", "weights are those of", "device", "part_robust")


def build_smoothing(cfg: CfgNode) -> Smoothing | None:
    """Return the settings of TEST.SMOOTHING; None where nothing is smoothed.

    Raises:
        UserError: the model has no class head.
    """
    smoothing = Smoothing.from_config(cfg.TEST.SMOOTHING)
    if smoothing is not None and not cfg.MODEL.PART_CLASSIFIER.HEAD:
        raise UserError(
            f"TEST.SMOOTHING.SIGMA must be 0 for a model without a class head, got {smoothing.sigma:g}: the radii are "
            "those of classes"
        )
    return smoothing


def smoothing_identity(smoothing: Smoothing, identity: Mapping[str, str], records: Sequence[dict]) -> dict[str, str]:
    """Return what must be the same for votes to belong together.

    Args:
        smoothing: settings.
        identity: of the evaluation (`evaluation_identity`).
        records: images of the vote.
    """
    settings = {key: value for key, value in smoothing.describe().items() if key != "images"}
    return {
        **{key: identity[key] for key in IDENTITY},
        "images": image_list_sha256([record["image_id"] for record in records]),
        "smoothing": json.dumps(settings, sort_keys=True),
    }


def count_votes(
    smoothing: Smoothing,
    model: nn.Module,
    make_loader: Callable[[Collection[int]], Iterable[list[dict]]],
    num_images: int,
    journal: Journal,
    batch_size: int,
) -> VoteArrays | None:
    """Count the predictions under noise of all images that the journal does not have yet.

    Args:
        smoothing: settings.
        model: part classifier.
        make_loader: ids of images that are done -> batches of the mapper's dicts of this process's other images.
        num_images: of the vote.
        journal: of this vote; only the main process's is read. An image is an entry.
        batch_size: images of a forward pass, at most.

    Returns:
        The votes of all images, ascending image ids, on the main process; None on others.
    """
    prepare_to_wait()
    earlier = journal.batches() if comm.is_main_process() else []
    finished = {int(image_id) for batch in earlier for image_id in VoteArrays.read(batch).image_id}
    done: set[int] = comm.all_gather(finished)[0]
    if done:
        logger.info("Continuing: %d of %d images are done (%s)", len(done), num_images, journal.folder)
    logger.info(
        "Randomised smoothing: sigma %g of 255 levels (%g where pixels are 0..1), %d + %d draws of each of %d images",
        smoothing.sigma,
        smoothing.sigma / PIXEL_RANGE,
        smoothing.selection,
        smoothing.samples,
        num_images,
    )
    progress = Progress(num_images, "", done=len(done), processes=comm.get_world_size(), what="Randomised smoothing")
    own: list[BatchArrays] = []
    try:
        for items in make_loader(done) if len(done) < num_images else ():
            for arrays in _votes_of(smoothing, model, items, batch_size, progress.note):
                journal.write(arrays, VoteArrays.read(arrays).image_id.tolist())
                own.append(arrays)
                progress.update(1)
    except KeyboardInterrupt:
        logger.warning("Stopped; what is done is in %s: the same command with --resume continues", journal.folder)
        raise
    wait_for_all()
    gathered = comm.gather(own, dst=0)
    if not comm.is_main_process():
        return None
    merged = Merged([*earlier, *(batch for part in gathered for batch in part)])
    return VoteArrays(**merged.images)


def _votes_of(
    smoothing: Smoothing, model: nn.Module, items: list[dict], batch_size: int, note: Callable[[str], None]
) -> Iterable[BatchArrays]:
    """Yield the votes of one image after the other, each by one copy from the device."""
    first = range(smoothing.selection)
    others = range(smoothing.selection, smoothing.selection + smoothing.samples)
    with attack_mode(model) as inner:
        images, padding = inner.preprocess(items)
        keys = torch.tensor([item["image_id"] for item in items], device=images.device)
        for row, item in enumerate(items):
            start = time.perf_counter()
            one = slice(row, row + 1)
            own = images[one], keys[one]
            own_padding = None if padding is None else padding[one]
            counts = [
                count_predictions(inner.class_logits, *own, draws, smoothing.sigma, batch_size, own_padding, note=note)
                for draws in (first, others)
            ]
            selection, votes = torch.stack(counts).cpu().numpy()
            yield VoteArrays(
                image_id=np.array([item["image_id"]]),
                label=np.array([item["class_id"]]),
                selection=selection,
                votes=votes,
                seconds=np.array([time.perf_counter() - start]),
            ).write()


def describe_certification(
    smoothing: Smoothing, votes: VoteArrays, certificates: Certificates, plan: Plan, merged: Merged
) -> dict[str, Any]:
    """Return the record's `smoothing` without its trials.

    Args:
        smoothing: settings.
        votes: of all images.
        certificates: of the votes.
        plan: of the evaluation.
        merged: what came out of the attacks.
    """
    rows = np.searchsorted(merged.image.image_id, votes.image_id)
    attacked = {eps: robust[rows] for eps, robust in _right_under_l2(plan, merged).items()}
    sure = certificates.certified == votes.label
    return {
        **smoothing.describe(),
        "num_images": len(votes.image_id),
        "image_list_sha256": image_list_sha256(votes.image_id.tolist()),
        "clean": share(right(merged, "clean")[rows]),
        "accuracy": share(certificates.prediction == votes.label),
        "abstained": int((certificates.prediction < 0).sum()),
        "without_radius": int((certificates.certified < 0).sum()),
        "largest_radius": smoothing.largest_radius,
        "average_radius": float(np.where(sure, certificates.radius, 0.0).mean()),
        "certified": [
            {"eps": eps, "eps_01": eps / PIXEL_RANGE, **share(certificates.holds(votes.label, eps))}
            for eps in curve_radii(smoothing, list(attacked))
        ],
        "attacked": [{"eps": eps, **share(robust)} for eps, robust in attacked.items()],
        "forwards": len(votes.image_id) * (smoothing.selection + smoothing.samples),
        "seconds": float(votes.seconds.sum()),
        "attacked_norms": sorted({attack.threat_model.norm for attack in plan.attacks().values()}),
    }


def _right_under_l2(plan: Plan, merged: Merged) -> dict[float, np.ndarray]:
    """Return by eps bool (N,), whether the class of the model itself is right after all attacks within the L2 radius.

    An image that is wrong at a radius is wrong at every larger one. Empty without attacks under L2.
    """
    found = {
        eps: merged.read(CurveArrays, f"{eps:g}").curve
        for eps, attack in plan.curve.items()
        if attack.threat_model.norm == "l2"
    }
    for tier in plan.tiers:
        if tier.measures_class and tier.kind != "local" and tier.threat_model.norm == "l2":
            eps = tier.threat_model.eps
            found[eps] = found.get(eps, np.True_) & holds(merged, tier)
    curve, still = {}, right(merged, "clean")
    for eps in sorted({0.0, *found}) if found else ():
        still = still & found.get(eps, np.True_)
        curve[eps] = still
    return curve


def certify_dataset(data: EvaluatedData, smoothing: Smoothing, votes: VoteArrays) -> dict[str, Any]:
    """Return the record's `smoothing`, and write the votes beside the record; on the main process alone.

    Args:
        data: that was attacked.
        smoothing: settings.
        votes: of `count_votes`.
    """
    certificates = certify(votes.selection, votes.votes, smoothing)
    record = describe_certification(smoothing, votes, certificates, data.plan, data.merged)
    record["trials"] = _trials(data, smoothing, votes, certificates)
    path = Path(data.cfg.OUTPUT_DIR) / f"smoothing_{data.name}.npz"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{**vars(votes), **vars(certificates)})
    record["file"] = path.name
    at = next(point for point in record["certified"] if point["eps"] == 0)
    logger.info(
        "%s, smoothed: %.1f %% right, %.1f %% certified at some radius, average radius %.1f of 255 levels; abstains on "
        "%d of %d images. This is the smoothed model, not the one that was attacked",
        data.name,
        record["accuracy"]["accuracy"],
        at["accuracy"],
        record["average_radius"],
        record["abstained"],
        record["num_images"],
    )
    return record


def _trials(
    data: EvaluatedData, smoothing: Smoothing, votes: VoteArrays, certificates: Certificates
) -> list[dict[str, Any]]:
    """Run the trials of a fixed sample of the images that have a radius."""
    place = {image_id: row for row, image_id in enumerate(votes.image_id.tolist())}
    known = [record for record in data.records if record["image_id"] in place]
    with_radius = [record for record in known if certificates.radius[place[record["image_id"]]] > 0]
    chosen = sample_records(with_radius, data.cfg.TEST.CHECKS.IMAGES)
    seed, batch_size, entries = votes_seed(votes.votes), data.cfg.DATALOADER.TEST_BATCH_SIZE, []
    if chosen:
        logger.info("Trials of the certified radii on %d images", len(chosen))
        image_ids = [record["image_id"] for record in chosen]
        rows = np.array([place[image_id] for image_id in image_ids])
        with attack_mode(data.model) as inner:
            images, padding = inner.preprocess(data.items(image_ids))
            device = images.device
            entries = run_trials(
                inner.class_logits,
                images,
                torch.from_numpy(certificates.certified[rows]).to(device),
                certificates.counts[rows],
                certificates.radius[rows],
                torch.from_numpy(votes.image_id[rows]).to(device),
                padding,
                smoothing,
                batch_size,
                seed,
            )
    return entries

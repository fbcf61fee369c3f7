"""Restarts of a tier of local attacks: they run on the regions that all attacks before left, whatever the image.

The unit here is a region of an image. A patch stays at the place where the first pass got farthest.

Letters: N images, of C classes; M pairs of an image and a region of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import torch

from part_robust.attacks import Attack
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.merged import Merged, Round
from part_robust.evaluation.named_arrays import RegionArrays, RegionPictureArrays
from part_robust.evaluation.region_results import WorstOfImages
from part_robust.evaluation.regions import chosen_regions
from part_robust.evaluation.tiers import TierResult


def region_results(tier: LocalTier, merged: Merged) -> RegionArrays:
    """Return the results of all pairs after the last restart, by image id, then region."""
    found = merged.together(RegionArrays, tier.name)
    if found is None:
        return RegionArrays(**{name: np.zeros(0, dtype=np.int64) for name in RegionArrays.names()})
    order = np.lexsort((found.region, found.image_id))
    found = RegionArrays(**{name: array[order] for name, array in vars(found).items()})
    later = merged.tried(RegionArrays, tier.name)
    if later is not None:
        place = {pair: row for row, pair in enumerate(_pairs(found))}
        rows = np.array([place[pair] for pair in _pairs(later)])
        broken = later.broken_by >= 0
        found.broken_by[rows[broken]] = later.broken_by[broken]
        np.logical_and.at(found.zero_gradient, rows, later.zero_gradient)
    return found


def region_pictures(tier: LocalTier, merged: Merged) -> RegionPictureArrays | None:
    """Return the pictures of pairs after the last restart; None where there are none."""
    first, later = (find(RegionPictureArrays, tier.name) for find in (merged.together, merged.tried))
    if first is None or later is None:
        return first
    replaced = set(_pairs(later))
    kept = np.array([pair not in replaced for pair in _pairs(first)])
    return RegionPictureArrays(
        **{name: np.concatenate([array[kept], getattr(later, name)]) for name, array in vars(first).items()}
    )


def _pairs(arrays: RegionArrays | RegionPictureArrays) -> list[tuple[int, int]]:
    return list(zip(arrays.image_id.tolist(), arrays.region.tolist(), strict=True))


def with_regions(current: Round, tier: LocalTier, merged: Merged) -> Round | None:
    """Return a restart with the regions that no attack has broken, and their images; None where there are none."""
    found = region_results(tier, merged)
    left = found.attacked & (found.broken_by < 0)
    if not left.any():
        return None
    columns = [array[left].tolist() for array in (found.image_id, found.region, found.top, found.left)]
    ids = np.unique(found.image_id[left])
    broken = merged.image.image_id[~merged.still_right(tier.name)]
    return replace(
        current,
        image_ids=tuple(ids.tolist()),
        regions=tuple(zip(*columns, strict=True)),
        settled=frozenset(np.intersect1d(ids, broken).tolist()),
    )


def restart_regions(
    current: Round,
    tier: LocalTier,
    attacks: Mapping[str, Attack],
    batch: AttackedBatch,
    note: Callable[[str], None],
    sample: Collection[int],
) -> TierResult:
    """Run the attacks of a restart on its regions of a batch's images.

    Args:
        current: the restart.
        tier: whose it is.
        attacks: by the name of their arrays.
        batch: of its images.
        note: callback, receives a progress message before each attack.
        sample: ids of images that may become pictures.

    Returns:
        Results in which images that another region had broken before count as not broken.
    """
    row_of = {image_id: row for row, image_id in enumerate(batch.keys.tolist())}
    own = sorted((row_of[pair[0]], *pair[1:]) for pair in current.regions if pair[0] in row_of)
    groups = chosen_regions(batch.items, batch.num_parts, tier.patch_sides, torch.tensor(own), batch.images.device)
    clean = torch.stack([output["class_logits"] for output in batch.clean])
    worst = WorstOfImages(batch, clean, attacks)
    pairs, pictures = replace(tier, attacks=attacks).attack_regions(batch, groups, clean, worst, note, sample)
    pairs.broken_by[pairs.broken_by >= 0] += current.first
    arrays = pairs.arrays(batch, torch.full(pairs.rows.shape, -1, dtype=torch.int8)).write(tier.name)
    if (found := pictures.arrays(clean, broken_alone=True)) is not None:
        arrays |= found.write(tier.name)
    settled = torch.tensor([image_id in current.settled for image_id in batch.keys.tolist()])
    broken_by = worst.broken_by.masked_fill(settled, -1)
    outputs = batch.outputs(worst.images) if bool((broken_by >= 0).any()) else batch.clean
    return TierResult(worst.images, outputs, broken_by, worst.fooled, {}, {}, arrays)

"""The record's numbers of a tier of local attacks: accuracy by attacked region, and by region that is covered.

Letters: N images; M pairs of an image and a region of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.breakdown import share
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.local_rounds import region_pictures, region_results
from part_robust.evaluation.named_arrays import ClassArrays, RegionPictureArrays
from part_robust.evaluation.regions import region_names, region_numbers
from part_robust.evaluation.rounds import executed_attacks

# Pictures of a report, one for each region as long as there are not more.
PICTURES = 24
# Regions that a warning names.
NAMED = 5


def describe_local(tier: LocalTier, part_names: Sequence[str], merged: Merged) -> dict[str, Any]:
    """Return the record's `local`.

    Of each region: the images that have it (`images`) and those that do not; on the images that have it, accuracy
    `clean`, under attack (`robust`) and with the region `greyed`; accuracy over all images (`all_images`), where images
    without the region count as they are without attack; images broken by each attack; images whose gradient inside the
    region was zero; and, of the object, images that an attack on one part of it broke and its own did not (`missed`).
    What breaks a part breaks the object, which contains it. `worst_part` and `worst` are the same numbers of an
    attacker who may choose one part, or any one region.

    Args:
        tier: of the evaluation.
        part_names: of the data set.
        merged: what came out.
    """
    names, found = region_names(part_names, tier.patch_sides), region_results(tier, merged)
    image = merged.image
    clean = merged.read(ClassArrays, "clean").prediction == image.label
    rows = np.searchsorted(image.image_id, found.image_id)
    attacks = [run.name for run in executed_attacks(tier, merged)]
    attackable, broken, has_part, broken_in_part = np.zeros((4, len(merged)), dtype=bool)
    regions = []
    for region in region_numbers(tier.regions, len(part_names), len(tier.patch_sides)):
        own = found.region == region
        here, lost = rows[own], found.broken_by[own] >= 0
        entry: dict[str, Any] = {"region": names[region], "images": len(here), "without": len(merged) - len(here)}
        if region < len(part_names):
            has_part[here], broken_in_part[here[lost]] = True, True
        elif names[region] == "object":
            entry["missed"] = int((broken_in_part[here] & ~lost).sum())
            lost = lost | broken_in_part[here]
        attackable[here], broken[here[lost]] = True, True
        whole = clean.copy()
        whole[here] &= ~lost
        greyed = found.right_greyed[own]
        entry |= {
            "clean": share(clean[here]),
            "robust": share(clean[here] & ~lost),
            "all_images": share(whole),
            "greyed": share(greyed == 1) if len(here) and greyed[0] >= 0 else None,
            "broken_by": {name: int((found.broken_by[own] == index).sum()) for index, name in enumerate(attacks)},
            "attacked": int(found.attacked[own].sum()),
            "zero_gradient": int(found.zero_gradient[own].sum()),
        }
        regions.append(entry)
    return {
        "tier": tier.name,
        "norm": tier.threat_model.norm,
        "eps": tier.threat_model.eps,
        **tier.describe(),
        "attacks": attacks,
        "table": regions,
        "worst_part": _worst(clean, has_part, broken_in_part) if "parts" in tier.regions else None,
        "worst": _worst(clean, attackable, broken),
    }


def _worst(clean: np.ndarray, attackable: np.ndarray, broken: np.ndarray) -> dict[str, Any]:
    """Return the numbers of an attacker who chooses among regions; all arguments bool (N,)."""
    return {
        "images": int(attackable.sum()),
        "without": int((~attackable).sum()),
        "clean": share(clean[attackable]),
        "robust": share((clean & ~broken)[attackable]),
        "all_images": share(clean & ~broken),
    }


def local_warnings(local: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the numbers of `describe_local`."""
    sentences = []
    empty = [row["region"] for row in local["table"] if not row["images"]]
    if empty:
        some = ", ".join(empty[:NAMED]) + (f" and {len(empty) - NAMED} more" if len(empty) > NAMED else "")
        sentences.append(f"{local['tier']}: no image has {some}, so nothing is known of attacks there")
    if local["worst"]["without"]:
        sentences.append(
            f"{local['tier']}: {local['worst']['without']} images have none of the attacked regions; they count as not "
            "attacked, and that they are right is not evidence of robustness"
        )
    return sentences


def local_arrays(tier: LocalTier, part_names: Sequence[str], merged: Merged) -> dict[str, np.ndarray]:
    """The arrays of local_<dataset>.npz: names, results of all pairs by ascending image id, pictures of some."""
    arrays = {"names": np.array(region_names(part_names, tier.patch_sides)), **vars(region_results(tier, merged))}
    pictures = region_pictures(tier, merged)
    if pictures is not None:
        chosen = _chosen(pictures)
        arrays |= {f"picture_{name}": array[chosen] for name, array in vars(pictures).items()}
    return arrays


def _chosen(pictures: RegionPictureArrays) -> np.ndarray:
    """Rows of one picture of each region, a broken one if there is one, then of second ones, at most PICTURES."""
    order = np.lexsort((pictures.image_id, pictures.after == pictures.label, pictures.region))
    regions = pictures.region[order]
    place = np.arange(len(order)) - np.searchsorted(regions, regions)
    first = [row for turn in (0, 1) for row in order[place == turn]][:PICTURES]
    return np.array(sorted(first, key=lambda row: (pictures.region[row], pictures.image_id[row])), dtype=np.int64)

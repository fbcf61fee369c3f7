"""The local attacks of a report: accuracy by attacked region, and pictures of regions before and after the attack.

Letters: R pictures (3, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from part_robust.evaluation.report.content import Example, Section, Text, make_table
from part_robust.evaluation.report.examples import SMALL, class_name, encode_picture
from part_robust.evaluation.report.records import load_arrays


def local_section(entry: Mapping[str, Any]) -> Section:
    """Return the table of attacked regions, an empty section without tier `local`.

    Args:
        entry: one data set's entry of the record's `evaluation`.
    """
    title, local = "Local attacks", entry.get("local")
    if not local:
        return Section(title)
    rows = [_row(row["region"], row, row.get("greyed")) for row in local["table"] if row["images"]]
    chosen = {"any one part": local["worst_part"], "any one region": local["worst"]}
    rows += [_row(name, row, None) for name, row in chosen.items() if row]
    missing = [row["region"] for row in local["table"] if not row["images"]]
    unlimited = local["norm"] == "linf" and local["eps"] >= 255
    radius = "any value" if unlimited else f"values within {local['eps']:g}/255 in {local['norm']}"
    note = (
        f"The attacker gives the pixels of one region {radius} and leaves all others as they are. Accuracies are those "
        "of the images that have the region; over all images, the others count as they are without attack. Greyed "
        "out: the region is covered with the mean colour, without any attack."
    )
    if local["patch_sides"] and "patch" in local["regions"]:
        places = local["patch_positions"]
        note += (
            f" A patch is tried at {places} place{'s' if places > 1 else ''}, half of them where the gradient is "
            "largest and the others at random: the first attack at each, the others where it got farthest."
        )
    texts = [Text(note, "note")]
    if missing:
        texts.append(Text(f"In no image: {', '.join(missing)}.", "note"))
    return Section(title, texts=texts, tables=[make_table("Accuracy by attacked region", rows)])


def _row(name: str, row: Mapping[str, Any], greyed: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "attacked region": name,
        "images": row["images"],
        "attacked %": row["robust"]["accuracy"],
        "95 % interval": row["robust"]["interval"],
        "clean %": row["clean"]["accuracy"],
        "greyed out %": greyed["accuracy"] if greyed else None,
        "attacked %, all images": row["all_images"]["accuracy"],
        "images without it": row["without"],
    }


def local_examples(entry: Mapping[str, Any], folder: Path) -> Section:
    """Return pictures of the regions, an empty section without any.

    Args:
        entry: one data set's entry of the record's `evaluation`.
        folder: where the file of regions is.
    """
    title, arrays = "Local attacks: examples", load_arrays(folder, (entry.get("files") or {}).get("local"))
    if not len(arrays.get("picture_region", ())):
        return Section(title)
    classes = entry.get("classes") or []
    note = "The attacker may change what is not grey on the left; on the right is the image under attack."
    examples = [_example(arrays, index, classes) for index in range(len(arrays["picture_region"]))]
    return Section(title, texts=[Text(note, "note")], examples=examples)


def _example(arrays: Mapping[str, np.ndarray], index: int, classes: Sequence[str]) -> Example:
    values = {name: arrays[f"picture_{name}"][index] for name in ("region", "image_id", "label", "before", "after")}
    clean, attacked = (np.moveaxis(arrays[f"picture_{name}"][index], 0, 2) for name in ("clean", "attacked"))
    greyed = np.where(arrays["picture_mask"][index][:, :, None], clean, clean // 4 + 96).astype(np.uint8)
    label, before, after = (int(values[name]) for name in ("label", "before", "after"))
    outcome = "held" if after == label else "broken"
    return Example(
        title=f"{arrays['names'][values['region']]}: image {int(values['image_id'])}, {outcome}",
        tone={"held": "good", "broken": "bad"}[outcome],
        pictures=[
            encode_picture(greyed, "may change"),
            encode_picture(attacked, "attacked"),
        ],
        lines=[
            f"true class: {class_name(classes, label)}",
            f"clean: {class_name(classes, before)}",
            f"attacked: {class_name(classes, after)}",
        ],
        enlarged=max(clean.shape[:2]) <= SMALL,
    )

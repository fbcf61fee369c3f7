"""The pictures of a report: each image clean, attacked, and what the model sees in both.

Letters: K images (3, H, W), P parts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from part_robust.evaluation.html_report.blocks import Card, Picture, Sheet
from part_robust.visualize import amplify, overlay_parts, part_colors

# Sides up to this are shown enlarged and stay lossless; larger photographs would make the page heavy.
SMALL = 96
TONES = {"worst": "bad", "median": "", "robust": "good"}
TITLES = {"worst": "broken farthest", "median": "median", "robust": "held"}


def contact_sheet(
    pictures: Mapping[str, np.ndarray], classes: Sequence[str], parts: Sequence[str], eps: float | None
) -> Sheet | None:
    """Draw images before and after an attack, with parts and classes.

    Args:
        pictures: arrays of the pictures file: `clean` (K, 3, H, W), `attacked`, part maps (K, H, W) with -1 where
            absent, `label`, `top3_*`, `kind`.
        classes: C names.
        parts: P names.
        eps: radius that becomes white or black in the picture of the perturbation; None: the largest found.

    Returns:
        None where there are no pictures.
    """
    if not len(pictures.get("clean", ())):
        return None
    clean = np.moveaxis(pictures["clean"], 1, 3)
    attacked = np.moveaxis(pictures["attacked"], 1, 3).astype(np.float32)
    reach = eps or max(float(np.abs(attacked - clean).max()), 1e-6)
    maps = {
        caption: pictures[key]
        for key, caption in (
            ("true_parts", "true parts"),
            ("parts_before", "parts, clean"),
            ("parts_after", "parts, attacked"),
        )
        if key in pictures
    }
    cards, seen = [], set()
    for index in range(len(clean)):
        panels = [
            _picture(clean[index], "clean"),
            _picture(attacked[index].round().clip(0, 255).astype(np.uint8), "attacked"),
            _picture(amplify(attacked[index] - clean[index], reach), f"perturbation x{127.5 / reach:.0f}"),
        ]
        for caption, labels in maps.items():
            if (labels[index] < 0).all():
                continue
            under = attacked[index].round().clip(0, 255).astype(np.uint8) if "attacked" in caption else clean[index]
            # -1 is a pixel without a label, which the overlay stripes.
            labelled = np.where(labels[index] < 0, len(parts) + 1, labels[index]).astype(np.int64)
            panels.append(_picture(overlay_parts(under, labelled, len(parts)), caption))
            seen |= set(np.unique(labelled).tolist())
        kind = str(pictures["kind"][index]) if "kind" in pictures else ""
        title = f"{TITLES.get(kind, kind)}: image {int(pictures['image_id'][index])}"
        lines = [f"true class: {_name(classes, int(pictures['label'][index]))}"] if "label" in pictures else []
        for when, words in (("before", "clean"), ("after", "attacked")):
            if f"top3_labels_{when}" in pictures:
                labels = pictures[f"top3_labels_{when}"][index]
                shares = pictures[f"top3_probabilities_{when}"][index]
                lines.append(f"{words}: {_top(labels, shares, classes)}")
        cards.append(Card(title, TONES.get(kind, ""), panels, lines))
    colors = part_colors(len(parts))
    legend = [("#" + bytes(colors[part]).hex(), parts[part]) for part in sorted(seen) if part < len(parts)]
    note = (
        f"The perturbation is signed: grey is no change, white and black are plus and minus {reach:g} levels. "
        "Parts are drawn over the image; stripes are pixels without a label."
    )
    return Sheet(note, cards, legend)


def _top(labels: np.ndarray, shares: np.ndarray, classes: Sequence[str]) -> str:
    pairs = zip(labels.tolist(), shares.tolist(), strict=True)
    return ", ".join(f"{_name(classes, label)} {100 * share:.0f} %" for label, share in pairs if label >= 0)


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def _picture(image: np.ndarray, caption: str) -> Picture:
    """A data URI of uint8 (H, W, 3)."""
    out = io.BytesIO()
    small = max(image.shape[:2]) <= SMALL
    kind, options = ("PNG", {"optimize": True}) if small else ("JPEG", {"quality": 88})
    Image.fromarray(np.ascontiguousarray(image)).save(out, format=kind, **options)
    return Picture(f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}", caption)

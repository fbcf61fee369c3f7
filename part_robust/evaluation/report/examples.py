"""The example images of a report: each clean, attacked, and with the parts predicted for both.

Letters: K images (3, H, W), P parts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from part_robust.evaluation.report.content import Example, Picture, Section, Text
from part_robust.visualize import amplify, overlay_parts, part_colors

# Sides up to this are shown enlarged and stay lossless; larger photographs would make the page heavy.
SMALL = 96
TONES = {"worst": "bad", "median": "", "robust": "good"}
PART_MAPS = {"true_parts": "true parts", "parts_before": "parts, clean", "parts_after": "parts, attacked"}


def example_section(
    arrays: Mapping[str, np.ndarray], classes: Sequence[str], parts: Sequence[str], eps: float | None, tier: str = ""
) -> Section:
    """Return the section of example images, which is empty without any.

    Args:
        arrays: of the pictures file: `clean` (K, 3, H, W), `attacked`, part maps (K, H, W) with -1 where a pixel has
            no label, `image_id`, `label`, `top3_*`, `kind`.
        classes: C names.
        parts: P names.
        eps: radius that becomes white or black in the picture of the perturbation; None: the largest found.
        tier: whose attacks made the attacked images; "" where it is not known.
    """
    if not len(arrays.get("clean", ())):
        return Section("Example images")
    reach = eps or max(float(np.abs(arrays["attacked"] - arrays["clean"].astype(np.float32)).max()), 1e-6)
    shown = {int(part) for key in PART_MAPS if key in arrays for part in np.unique(arrays[key])}
    colors = part_colors(len(parts))
    by = f"Attacked by {tier}. " if tier else ""
    note = (
        f"{by}The perturbation is signed: grey is not a change, white and black are plus and minus {reach:g} levels. "
        "Parts are drawn over the image; stripes are pixels without a label."
    )
    return Section(
        "Example images",
        texts=[Text(note, "note")],
        legend=[("#" + bytes(colors[part]).hex(), parts[part]) for part in range(len(parts)) if part in shown],
        examples=[_example(arrays, index, classes, len(parts), reach) for index in range(len(arrays["clean"]))],
    )


def _example(
    arrays: Mapping[str, np.ndarray], index: int, classes: Sequence[str], num_parts: int, reach: float
) -> Example:
    """Return one image of the arrays; a perturbation of `reach` levels is white or black."""
    clean = np.moveaxis(arrays["clean"][index], 0, 2)
    attacked = np.moveaxis(arrays["attacked"][index], 0, 2).astype(np.float32)
    visible = attacked.round().clip(0, 255).astype(np.uint8)
    pictures = [
        encode_picture(clean, "clean"),
        encode_picture(visible, "attacked"),
        encode_picture(amplify(attacked - clean, reach), f"perturbation x{_factor(127.5 / reach)}"),
    ]
    for key, caption in PART_MAPS.items():
        # Without any labelled pixel there is nothing to draw.
        if key in arrays and (arrays[key][index] >= 0).any():
            # -1 is a pixel without a label, which the overlay stripes.
            labels = np.where(arrays[key][index] < 0, num_parts + 1, arrays[key][index]).astype(np.int64)
            image = visible if key == "parts_after" else clean
            pictures.append(encode_picture(overlay_parts(image, labels, num_parts), caption))
    kind = str(arrays["kind"][index]) if "kind" in arrays else "example"
    return Example(
        title=f"{kind}: image {int(arrays['image_id'][index])}",
        tone=TONES.get(kind, ""),
        pictures=pictures,
        lines=_lines(arrays, index, classes),
        enlarged=max(clean.shape[:2]) <= SMALL,
    )


def _factor(value: float) -> str:
    return f"{value:.0f}" if value >= 1 else f"{value:.1f}"


def _lines(arrays: Mapping[str, np.ndarray], index: int, classes: Sequence[str]) -> list[str]:
    """Return the true class, and the most probable ones before and after the attack."""
    lines = [f"true class: {class_name(classes, int(arrays['label'][index]))}"] if "label" in arrays else []
    for when, words in (("before", "clean"), ("after", "attacked")):
        if f"top3_labels_{when}" in arrays:
            labels, shares = arrays[f"top3_labels_{when}"][index], arrays[f"top3_probabilities_{when}"][index]
            lines.append(f"{words}: {_top(labels, shares, classes)}")
    return lines


def _top(labels: np.ndarray, shares: np.ndarray, classes: Sequence[str]) -> str:
    pairs = zip(labels.tolist(), shares.tolist(), strict=True)
    return ", ".join(f"{class_name(classes, label)} {100 * share:.0f} %" for label, share in pairs if label >= 0)


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class, or its number where there is no name."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def encode_picture(image: np.ndarray, caption: str) -> Picture:
    """Encode an image, uint8 (H, W, 3)."""
    out = io.BytesIO()
    small = max(image.shape[:2]) <= SMALL
    kind, options = ("PNG", {"optimize": True}) if small else ("JPEG", {"quality": 88})
    Image.fromarray(np.ascontiguousarray(image)).save(out, format=kind, **options)
    return Picture(f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}", caption)

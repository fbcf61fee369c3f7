"""Pictures for people: part masks over images, perturbations, and grids of panels.

Letters: H, W pixels, P parts, D boxes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from part_robust.utils.errors import UserError


@dataclass(frozen=True)
class Panel:
    """One picture of a grid: uint8 (H, W, 3) RGB and a title."""

    image: np.ndarray
    title: str = ""


def part_colors(num_parts: int) -> np.ndarray:
    """uint8 (P, 3): neighbouring labels get distant hues."""
    golden = 0.61803398875
    colors = [colorsys.hsv_to_rgb((0.02 + golden * index) % 1.0, 0.85, 1.0) for index in range(num_parts)]
    return (255 * np.array(colors).reshape(-1, 3)).round().astype(np.uint8)


def overlay_parts(image: np.ndarray, labels: np.ndarray, num_parts: int, strength: float = 0.6) -> np.ndarray:
    """Part labels over an image.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: int (H, W); 0..P-1 parts, P background (shown as it is), more: ignored (shown as grey stripes).
        num_parts: P.
        strength: opacity of the colours, 0..1.

    Returns:
        uint8 (H, W, 3).
    """
    result = image.astype(np.float32)
    is_part = labels < num_parts
    colors = part_colors(num_parts).astype(np.float32)
    result[is_part] = (1 - strength) * result[is_part] + strength * colors[labels[is_part]]
    rows, columns = np.indices(labels.shape)
    stripes = (labels > num_parts) & ((rows + columns) % 8 < 3)
    result[stripes] = 128.0
    return result.round().astype(np.uint8)


def overlay_boxes(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, num_parts: int) -> np.ndarray:
    """Frames of part boxes over an image, the first ones on top.

    Args:
        image: uint8 (H, W, 3) RGB.
        boxes: (D, 4) XYXY, pixels; what lies outside is cut.
        labels: int (D,), 0..P-1.
        num_parts: P.

    Returns:
        uint8 (H, W, 3).
    """
    result = image.copy()
    height, width = image.shape[:2]
    line = max(round(max(height, width) / 112), 1)
    colors = part_colors(num_parts)
    for (x0, y0, x1, y1), label in zip(boxes[::-1].round().astype(int), labels[::-1], strict=True):
        left, right = np.clip((x0, max(x1, x0 + 1)), 0, width)
        top, bottom = np.clip((y0, max(y1, y0 + 1)), 0, height)
        frame = np.zeros((height, width), dtype=bool)
        frame[top:bottom, left:right] = True
        frame[top + line : bottom - line, left + line : right - line] = False
        result[frame] = colors[label]
    return result


def amplify(perturbation: np.ndarray, eps: float) -> np.ndarray:
    """A perturbation (H, W, 3) in 0..255 units as a picture: grey is 0, black -eps, white +eps."""
    return (127.5 + 127.5 * np.clip(perturbation / max(eps, 1e-6), -1, 1)).round().astype(np.uint8)


def legend_patches(labels: Sequence[np.ndarray], part_names: Sequence[str]) -> list[Patch]:
    """Entries for the parts that occur in any of the label maps."""
    colors = part_colors(len(part_names)) / 255.0
    present = sorted({int(value) for label_map in labels for value in np.unique(label_map)})
    return [Patch(color=colors[i], label=part_names[i]) for i in present if i < len(part_names)]


def check_picture(path: str | Path, count: int = 1) -> None:
    """Checks what a tool is to draw, before it computes anything.

    Args:
        path: to write to.
        count: number of images.

    Raises:
        UserError: the ending is not that of a PNG or JPEG, the path is a folder, or there is nothing to draw.
    """
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg") or Path(path).is_dir():
        raise UserError(f"--output must be a file that ends in .png or .jpg, got {path}")
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")


def save_grid(
    rows: Sequence[Sequence[Panel]],
    path: str | Path,
    legend: Sequence[Patch] = (),
    panel_inches: float = 1.7,
) -> Path:
    """Writes a grid of panels as PNG or JPEG, by the ending of `path`."""
    columns = max(len(row) for row in rows)
    titles = sum(max((panel.title.count("\n") + bool(panel.title) for panel in row), default=0) for row in rows)
    height = panel_inches * len(rows) + 0.13 * titles + 0.06 * len(rows)
    height += 0.25 + 0.2 * -(-len(legend) // 5) if legend else 0
    figure = Figure(figsize=(panel_inches * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(row, panels, strict=False):
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(panel.title, fontsize=7)
    if legend:
        figure.legend(handles=list(legend), loc="outside lower center", ncols=5, fontsize=6, frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def save_class_distribution(counts: Mapping[str, Sequence[int]], class_names: Sequence[str], path: str | Path) -> Path:
    """Images per class as one bar chart (thesis Fig. 3.2), the splits' bars stacked, the largest class first.

    Args:
        counts: for each split the number of images of each of the C classes.
        class_names: C names.
        path: PNG or JPEG to write.
    """
    totals = np.sum([list(values) for values in counts.values()], axis=0)
    order = np.argsort(-totals, kind="stable")
    figure = Figure(figsize=(max(4.0, 0.16 * len(class_names) + 1.5), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    bottom = np.zeros(len(class_names))
    for split, values in counts.items():
        heights = np.asarray(values)[order]
        axis.bar(range(len(order)), heights, bottom=bottom, label=f"{split} ({int(np.sum(values)):,})")
        bottom += heights
    axis.set_xticks(range(len(order)), [class_names[i] for i in order], rotation=90, fontsize=6)
    axis.set_xlim(-0.7, len(order) - 0.3)
    axis.set_ylabel("images")
    axis.legend(frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path

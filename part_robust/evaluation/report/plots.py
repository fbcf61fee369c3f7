"""Plots as inline SVG that takes the colours of the page, light or dark.

Text and axes are drawn in two stand-in colours, which become CSS: the page's text colour and its line colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MatplotlibFigure

TEXT, LINE = "#010203", "#040506"
# Readable on white and on near-black.
SERIES = ("#2f7ed8", "#d9622b", "#2e9e6b", "#a05bc8", "#b8860b", "#c2457a")
# Inches; read on a telephone at its own size, on a desk enlarged.
SIZE = (4.4, 2.9)


def eps_curve(points: Sequence[Mapping[str, Any]], headline: float | None = None) -> str:
    """Plot accuracy against eps, with its interval as a band.

    Args:
        points: {eps, accuracy, interval}.
        headline: eps of the threat model, marked by a dotted line.
    """
    figure, axis = _figure()
    points = sorted(points, key=lambda point: point["eps"])
    eps = [point["eps"] for point in points]
    if all(point.get("interval") for point in points):
        low, high = zip(*(point["interval"] for point in points), strict=True)
        axis.fill_between(eps, low, high, color=SERIES[0], alpha=0.25, linewidth=0)
    axis.plot(eps, [point["accuracy"] for point in points], color=SERIES[0], marker="o", markersize=3.5, linewidth=1.6)
    if headline is not None:
        axis.axvline(headline, color=TEXT, linewidth=0.8, linestyle=":")
    axis.set_ylim(-2, 102)
    axis.set_xlabel("eps, levels of 255")
    axis.set_ylabel("accuracy under attack, %")
    return _svg(figure, "eps")


def certified_curve(certified: Sequence[Mapping[str, Any]], attacked: Sequence[Mapping[str, Any]]) -> str:
    """Plot certified accuracy of the smoothed model and accuracy of the attacked model against the L2 radius.

    Between two radii the certified accuracy is drawn as at the larger one, where it is a lower bound, too.

    Args:
        certified: {eps, accuracy, interval}, a lower bound at each radius, with its interval as a band.
        attacked: {eps, accuracy}, of another model; may be empty.
    """
    figure, axis = _figure()
    certified = sorted(certified, key=lambda point: point["eps"])
    # Where nothing is certified any more there is nothing to show.
    end = next((number for number, point in enumerate(certified, start=1) if not point["accuracy"]), None)
    certified = certified[:end]
    eps = [point["eps"] for point in certified]
    if all(point.get("interval") for point in certified):
        low, high = zip(*(point["interval"] for point in certified), strict=True)
        axis.fill_between(eps, low, high, step="pre", color=SERIES[2], alpha=0.25, linewidth=0)
    accuracies = [point["accuracy"] for point in certified]
    label = "smoothed model, certified"
    axis.plot(eps, accuracies, color=SERIES[2], drawstyle="steps-pre", linewidth=1.6, label=label)
    if attacked:
        attacked = sorted(attacked, key=lambda point: point["eps"])
        eps, accuracies = [point["eps"] for point in attacked], [point["accuracy"] for point in attacked]
        axis.plot(eps, accuracies, color=SERIES[0], marker="o", markersize=3.5, linewidth=1.6, label="model, attacked")
    axis.set_ylim(-2, 102)
    axis.set_xlabel("L2 radius, levels of 255")
    axis.set_ylabel("accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7, labelcolor=TEXT)
    return _svg(figure, "certified")


def convergence(curves: Mapping[str, Sequence[float]]) -> str:
    """Plot the mean loss at each step of each attack, whose steps are spread over the whole width."""
    figure, axis = _figure()
    for index, (name, values) in enumerate(curves.items()):
        steps = np.linspace(0, 100, len(values)) if len(values) > 1 else [0]
        color, style = SERIES[index % len(SERIES)], ("-", "--", ":")[index // len(SERIES) % 3]
        axis.plot(steps, values, color=color, linewidth=1.5, label=f"{name} ({len(values)})", linestyle=style)
    axis.set_xlabel("share of the attack's steps, %")
    axis.set_ylabel("mean loss")
    if curves:
        # Below the axes: tiers and a curve over eps easily make ten lines.
        legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7, labelcolor=TEXT)
        for text in legend.get_texts():
            # A name with two dollar signs is not a formula.
            text.set_parse_math(False)
    return _svg(figure, "convergence")


def distances(values: Sequence[float], eps: float | None = None) -> str:
    """Plot a histogram of the distances to the nearest adversarial image, in levels of 255."""
    figure, axis = _figure()
    axis.hist(np.asarray(values, dtype=float), bins=min(30, max(5, len(values) // 5)), color=SERIES[0], alpha=0.85)
    if eps is not None:
        axis.axvline(eps, color=TEXT, linewidth=0.8, linestyle=":")
    axis.set_xlabel("smallest perturbation found, levels of 255")
    axis.set_ylabel("images")
    return _svg(figure, "distances")


def _figure() -> tuple[MatplotlibFigure, Axes]:
    figure = MatplotlibFigure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(LINE)
    axis.tick_params(colors=LINE, labelcolor=TEXT, labelsize=8)
    axis.grid(color=LINE, alpha=0.35, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.xaxis.label.set_color(TEXT)
    axis.yaxis.label.set_color(TEXT)
    axis.xaxis.label.set_fontsize(9)
    axis.yaxis.label.set_fontsize(9)
    return figure, axis


def _svg(figure: MatplotlibFigure, salt: str) -> str:
    """Return the <svg> element alone, scalable, with text as text; the same input gives the same bytes."""
    for axis in figure.axes:
        axis.patch.set_visible(False)
    figure.patch.set_visible(False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Namespaces are implied in HTML; without them the page names no address at all.
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = text.replace("xlink:href", "href")
    # Several plots share one page, and names must not meet.
    text = re.sub(r'\bid="', f'id="{salt}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{salt}-", text)
    return text.replace(TEXT, "currentColor").replace(LINE, "var(--line)").strip()

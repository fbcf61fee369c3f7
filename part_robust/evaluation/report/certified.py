"""The certified accuracy of the smoothed model as a section: proven radii beside what attacks leave of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from part_robust.evaluation.report import plots
from part_robust.evaluation.report.content import Figure, Section, Text, Tile, make_table, to_text


def certified_section(entry: Mapping[str, Any]) -> Section:
    """Return the section of a data set's entry of the record's `evaluation`; empty where nothing was smoothed."""
    title, smoothing = "Certified accuracy of the smoothed model", entry.get("smoothing")
    if not smoothing:
        return Section(title)
    certified, attacked = smoothing.get("certified") or [], smoothing.get("attacked") or []
    accuracies = {point["eps"]: point["accuracy"] for point in attacked}
    rows = [
        {
            "L2 radius, 0..255": f"{point['eps']:.4g}",
            "where pixels are 0..1": f"{point['eps'] / 255:.3f}",
            "certified %": point["accuracy"],
            "95 % interval": point.get("interval"),
            "model under attack %": accuracies.get(point["eps"]),
        }
        for point in certified
    ]
    words = "The line is proven for the smoothed model; the band is the 95 % interval for the choice of images."
    if attacked:
        words += " The line with dots is the unsmoothed model under attack, on the same images."
    figure = Figure(plots.certified_curve(certified, attacked), "Certified accuracy against the L2 radius", words)
    caption = f"Share of {smoothing['num_images']} images that no change of at most this radius makes wrong"
    return Section(
        title,
        texts=[Text(_what_is_certified(smoothing), "warning"), Text(_comparison(smoothing), "note")],
        tiles=_tiles(smoothing),
        figures=[figure] if certified else [],
        tables=[make_table(caption, rows)],
    )


def _what_is_certified(smoothing: Mapping[str, Any]) -> str:
    samples, sigma = f"{smoothing['samples']:,}", smoothing["sigma"]
    noise = f"of sigma {sigma:g} of 255 levels ({sigma / 255:.3g} where pixels are 0..1)"
    return (
        "These numbers certify the smoothed model and not the model that was attacked: it takes the most "
        f"frequent class of {samples} copies of an image with Gaussian noise {noise}. Each radius is wrong with a "
        f"probability of at most {smoothing['alpha']:g}, and {samples} copies certify "
        f"{smoothing['largest_radius']:.4g} levels at most."
    )


def _comparison(smoothing: Mapping[str, Any]) -> str:
    if smoothing.get("attacked"):
        return (
            "The accuracy under attack bounds that of the model from above, the certified accuracy bounds that of the "
            "smoothed model from below. They are bounds of two models, so either line may be the higher one."
        )
    norms = ", ".join(smoothing.get("attacked_norms") or ())
    ran = f"the attacks on the class ran under {norms}" if norms else "no attack ran"
    return (
        f"There is no accuracy under attack by L2 radius: {ran}. A "
        "radius under L2 and one under another norm are not comparable; TEST.NORM l2 and TEST.EPS_CURVE give the curve."
    )


def _tiles(smoothing: Mapping[str, Any]) -> list[Tile]:
    accuracy, clean, images = smoothing["accuracy"], smoothing["clean"], smoothing["num_images"]
    return [
        Tile("smoothed model", _percent(accuracy), f"{accuracy['correct']:,} of {images:,}, no attack"),
        Tile("model itself", _percent(clean), f"{clean['correct']:,} of {images:,}, no attack"),
        Tile("no decision", f"{smoothing['abstained']:,}", f"of {images:,} images"),
        Tile("no radius", f"{smoothing['without_radius']:,}", f"of {images:,} images"),
        Tile("average radius", f"{smoothing['average_radius']:.1f}", "levels of 255, 0 where wrong"),
    ]


def _percent(score: Mapping[str, Any]) -> str:
    return f"{to_text(score['accuracy'])} %"

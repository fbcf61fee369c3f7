"""Part annotations out again, for correction in an annotation tool: plain COCO, COCO results, CVAT's XML.

Letters: h, w image height and width in pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as coco_mask

from part_robust.utils.files import write_text

FORMATS = ("coco", "coco-results", "cvat")


def write_annotations(data: Mapping[str, Any], path: Path, kind: str) -> None:
    """Writes a (validated) part json in another format; `score` of its annotations goes along where there is one.

    Args:
        data: part json.
        path: file to write; whole or not at all.
        kind: "coco" for an instances file, "coco-results" for the list that COCO's tools take as predictions, or "cvat"
            for "CVAT for images 1.1", the class as a tag of the image.

    Raises:
        ValueError: `kind` is none of FORMATS.
    """
    if kind not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "cvat":
        write_text(path, cvat_xml(data))
    else:
        content = coco_instances(data) if kind == "coco" else coco_results(data)
        write_text(path, json.dumps(content) + "\n")


def coco_instances(data: Mapping[str, Any]) -> dict:
    """COCO instances json without the keys that only the part format has; the class becomes the images' `class`."""
    classes = {entry["id"]: entry["name"] for entry in data["classes"]}
    image_keys = ("id", "file_name", "width", "height")
    images = [{key: i[key] for key in image_keys} | {"class": classes[i["class_id"]]} for i in data["images"]]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "score")
    annotations = [
        {"segmentation": [], **{key: a[key] for key in keys if key in a}, "iscrowd": 0} for a in data["annotations"]
    ]
    return {"images": images, "annotations": annotations, "categories": list(data["categories"])}


def coco_results(data: Mapping[str, Any]) -> list[dict]:
    """COCO results: one entry for each part, with its score (1 where it was annotated)."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{key: a[key] for key in keys if key in a} | {"score": a.get("score", 1.0)} for a in data["annotations"]]


def cvat_xml(data: Mapping[str, Any]) -> str:
    """Return "CVAT for images 1.1": polygons, masks and boxes; the class of an image is its tag."""
    classes = {entry["id"]: entry["name"] for entry in data["classes"]}
    parts = {entry["id"]: entry["name"] for entry in data["categories"]}
    by_image: dict[int, list[Mapping]] = defaultdict(list)
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for kind, names in (("tag", classes.values()), ("any", parts.values())):
        for name in names:
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = name
            ElementTree.SubElement(label, "type").text = kind
            ElementTree.SubElement(label, "attributes")
    for number, image in enumerate(data["images"]):
        element = ElementTree.SubElement(
            root,
            "image",
            id=str(number),
            name=image["file_name"],
            width=str(image["width"]),
            height=str(image["height"]),
        )
        ElementTree.SubElement(element, "tag", label=classes[image["class_id"]], source="file")
        for annotation in by_image[image["id"]]:
            _add_shapes(element, annotation, parts[annotation["category_id"]])
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_shapes(image: ElementTree.Element, annotation: Mapping, label: str) -> None:
    shared = {"label": label, "source": "file", "occluded": "0", "z_order": "0"}
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        x, y, width, height = annotation["bbox"]
        sides = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
        ElementTree.SubElement(image, "box", {**shared, **{key: f"{value:.6g}" for key, value in sides.items()}})
    elif isinstance(segmentation, list) and len(segmentation) == 1:
        values = segmentation[0]
        points = ";".join(f"{x:.6g},{y:.6g}" for x, y in zip(values[::2], values[1::2], strict=True))
        ElementTree.SubElement(image, "polygon", {**shared, "points": points})
    else:
        h, w = int(image.get("height", 0)), int(image.get("width", 0))
        ElementTree.SubElement(image, "mask", {**shared, **cvat_mask(segmentation, h, w)})


def cvat_mask(segmentation: Sequence | Mapping, h: int, w: int) -> dict[str, str]:
    """The attributes of CVAT's mask element: the box of the mask, and its runs by rows, background first."""
    if not isinstance(segmentation, Mapping):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
    left, top, width, height = (int(value) for value in coco_mask.toBbox(segmentation))
    pixels = coco_mask.decode(segmentation)[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    if pixels[0]:
        runs.insert(0, 0)
    sides = {"left": left, "top": top, "width": width, "height": height}
    return {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in sides.items()}}

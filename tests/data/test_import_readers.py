"""The tools' own files, in exactly their layouts, with the class inside: right to the pixel, and good for the check."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from part_robust.data.importers.label_studio import bit_mask, brush_mask
from tests.data.coloured import DOOR, WHEEL, H, W, coco, pixels, polygon, save
from tests.data.tool_files import brush, command, data_url, label_studio, line, mask, percent, result, right

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- CVAT 2.x, "CVAT for images 1.1" ---

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>cars</name><size>4</size><mode>annotation</mode><overlap>0</overlap>
      <labels>
        <label><name>car</name><color>#c06060</color><type>tag</type><attributes></attributes></label>
        <label><name>bus</name><color>#c06061</color><type>tag</type><attributes></attributes></label>
        <label><name>door</name><color>#c06062</color><type>any</type><attributes></attributes></label>
        <label><name>wheel</name><color>#c06063</color><type>any</type><attributes></attributes></label>
      </labels>
    </task>
    <dumped>2024-05-01 10:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="a/0.png" width="32" height="24">
    <tag label="car" source="manual"></tag>
    <polygon label="wheel" source="manual" occluded="0" points="4.00,8.00;14.00,8.00;14.00,14.00;4.00,14.00"
      z_order="0">
      <attribute name="dirty">true</attribute>
    </polygon>
    <mask label="door" source="manual" occluded="0" rle="0, 120" left="16" top="4" width="10" height="12" z_order="0">
    </mask>
  </image>
  <image id="1" name="a/1.png" width="32" height="24">
    <tag label="bus" source="manual"></tag>
    <box label="wheel" source="manual" occluded="0" xtl="6.00" ytl="6.00" xbr="12.00" ybr="16.00" z_order="0"
      rotation="90.00"></box>
    <polyline label="door" source="manual" occluded="0" points="1.00,1.00;9.00,9.00" z_order="0"></polyline>
    <ellipse label="door" source="manual" occluded="0" cx="21.00" cy="10.00" rx="5.00" ry="6.00" z_order="0"></ellipse>
  </image>
  <image id="2" name="a/2.png" width="32" height="24"></image>
  <image id="3" name="a/3.png" width="32" height="24">
    <tag label="car" source="manual"></tag>
    <mask label="door" source="manual" occluded="0" rle="0, 5" left="16" top="4" width="10" height="12"
      z_order="0"></mask>
  </image>
</annotations>
"""


def test_cvat_xml(tmp_path, capsys):
    for index in range(4):
        save(tmp_path / "photos" / "a" / f"{index}.png", pixels(index))
    (tmp_path / "annotations.xml").write_text(CVAT)
    arguments = ("cvat", "--file", tmp_path / "annotations.xml", "--images", tmp_path / "photos")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "1 images that neither rule nor table gives a class" in out and "points and lines" in out
    found = result(tmp_path / "out", tmp_path / "photos")
    assert right(found["a/0.png"])
    assert found["a/1.png"]["class"] == "bus" and found["a/1.png"]["wheel"] == (1, 1), "turned about its centre"
    on, share = found["a/1.png"]["door"]
    assert on > 0.98 and share == pytest.approx(np.pi / 4, abs=0.03), "an ellipse inside the door"
    assert found["a/3.png"]["supervision"] == "none", "its only mask is broken"
    names = json.loads((tmp_path / "out/annotations/train.json").read_text())["categories"]
    assert [c["name"] for c in names] == ["door", "wheel"], "tags are not parts"
    (tmp_path / "annotations.xml").write_text(CVAT.replace("<image", "<track").replace("</image", "</track"))
    assert command(*arguments, "--output", tmp_path / "no") == 1
    assert 'export the task as "CVAT for images 1.1"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "subsets, expected",
    [
        (("Train", "Validation", "Test", "train"), {"train": [0, 3], "val": [1], "test": [2]}),
        (("Train", "default", "Test", "Test"), {"train": [0, 1], "test": [2, 3]}),  # to divide: all to the first here
        (("Test", "Test", "Test", "Test"), {"train": [0, 1, 2, 3]}),
    ],
)
def test_subsets_of_a_cvat_project_are_its_splits(tmp_path, subsets, expected):
    text = CVAT
    for index, subset in enumerate(subsets):
        save(tmp_path / "photos" / "a" / f"{index}.png", pixels(index))
        text = text.replace(f'<image id="{index}"', f'<image id="{index}" subset="{subset}" task_id="7"')
    (tmp_path / "annotations.xml").write_text(text)
    arguments = ("cvat", "--file", tmp_path / "annotations.xml", "--images", tmp_path / "photos")
    assert command(*arguments, "--class-from", "always:car", "--output", tmp_path / "out") == 0
    found = {}
    for path in (tmp_path / "out/annotations").iterdir():
        names = [image["file_name"] for image in json.loads(path.read_text())["images"]]
        found[path.stem] = sorted(int(name[2]) for name in names)
    assert found == expected


# --- Label Studio 1.x, JSON ---


def test_bit_masks_are_the_opaque_pixels():
    found = (np.random.default_rng(0).random((H, W)) < 0.4).astype(np.uint8)
    assert np.array_equal(bit_mask(data_url(found), H, W), found)
    with pytest.raises(ValueError, match="the mask is"):
        bit_mask(data_url(found), H, W + 1)
    with pytest.raises(ValueError, match="mode L"):
        bit_mask(data_url(found, mode="L"), H, W)
    for cut in (60, 61, 110):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            bit_mask(data_url(found)[:cut], H, W)


def test_brush_code_is_decoded():
    found = (np.random.default_rng(0).random((H, W)) < 0.4).astype(np.uint8)
    assert np.array_equal(brush_mask(brush(found), H, W), found)
    with pytest.raises(ValueError, match="cut"):
        brush_mask(brush(found)[:-20], H, W)
    with pytest.raises(ValueError, match="values"):
        brush_mask(brush(found), H, W + 1)


def test_label_studio_json(tmp_path, capsys):
    for index in range(4):
        save(tmp_path / "upload" / f"ab-{index}.png", pixels(index))
    points = [[100 * x / W, 100 * y / H] for x, y in zip(polygon(WHEEL)[::2], polygon(WHEEL)[1::2], strict=True)]
    x, y, w, h = WHEEL
    # Turned by 90 degrees about its top left corner, which is then at the right.
    on_its_side = {
        "x": 100 * (x + w) / W,
        "y": 100 * y / H,
        "width": 100 * h / W,
        "height": 100 * w / H,
        "rotation": 90,
    }
    bits = {"imageDataURL": data_url(mask(DOOR))}
    results = [
        [label_studio("polygonlabels", {"points": points, "closed": True}, ["wheel"]),
         label_studio("brushlabels", {"format": "rle", "rle": brush(mask(DOOR))}, ["door"])],
        [label_studio("rectanglelabels", on_its_side, ["wheel"]),
         label_studio("rectanglelabels", percent(DOOR), ["door"]),
         label_studio("keypointlabels", {"x": 1, "y": 1, "width": 1}, ["door"])],
        [label_studio("brushlabels", {"format": "rle", "rle": [1, 2, 3]}, ["door"]),
         label_studio("rectanglelabels", percent(WHEEL), ["wheel"])],
        [label_studio("bitmasklabels", bits, ["door"]), label_studio("rectanglelabels", percent(WHEEL), ["wheel"])],
    ]  # fmt: skip
    tasks = [
        {
            "id": index + 1, "data": {"image": f"/data/upload/1/ab-{index}.png"}, "predictions": [], "project": 1,
            "annotations": [
                {"id": 9, "was_cancelled": True, "result": []},
                {"id": 10, "was_cancelled": False, "result": [
                    {"id": "c", "from_name": "choice", "to_name": "image", "type": "choices", "origin": "manual",
                     "value": {"choices": ["car"]}}, *found]},
            ],
        }
        for index, found in enumerate(results)
    ]  # fmt: skip
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    arguments = ("label-studio", "--file", tmp_path / "project.json", "--images", tmp_path / "upload")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "upload")
    assert right(found["ab-0.png"])
    assert found["ab-1.png"]["door"] == (1, 1)
    assert found["ab-1.png"]["supervision"] == "partial", "nobody knows how far a door reaches that is a point"
    assert min(found["ab-1.png"]["wheel"]) > 0.8
    assert right(found["ab-3.png"])
    assert right(found["ab-2.png"], "partial", ["wheel"]), "a broken stroke is unknown, not background"
    assert "skipped: 1 annotations without any shape" in capsys.readouterr().out


# --- LabelMe 5.x ---


def test_labelme(tmp_path):
    for index in range(3):
        save(tmp_path / "photos" / f"{index}.png", pixels(index))
    buffer = io.BytesIO()
    x, y, w, h = DOOR
    Image.fromarray(np.ones((h, w), dtype=bool)).save(buffer, format="PNG")
    wheel = {"label": "wheel", "group_id": None, "description": "", "flags": {}, "mask": None}
    points = [list(p) for p in zip(polygon(WHEEL)[::2], polygon(WHEEL)[1::2], strict=True)]
    corner = [[WHEEL[0] + WHEEL[2], WHEEL[1] + WHEEL[3]], [WHEEL[0], WHEEL[1]]]
    png = base64.b64encode(buffer.getvalue()).decode()
    door = {**wheel, "label": "door", "points": [[x, y], [x + w - 1, y + h - 1]], "shape_type": "mask", "mask": png}
    shapes = [
        [{**wheel, "points": points, "shape_type": "polygon"}, door],
        [{**wheel, "points": corner, "shape_type": "rectangle"}, {**wheel, "points": [[1, 1]], "shape_type": "point"}],
        [{**wheel, "points": points, "shape_type": "polygon"}, {**door, "mask": "no base64!"}],
    ]
    for index, found in enumerate(shapes):
        data = {
            "version": "5.5.0", "flags": {"bus": False, "car": True}, "shapes": found, "imagePath": f"{index}.png",
            "imageData": None, "imageHeight": H, "imageWidth": W,
        }  # fmt: skip
        (tmp_path / "photos" / f"{index}.json").write_text(json.dumps(data))
    (tmp_path / "photos" / "cut.json").write_text("{")
    assert command("labelme", "--source", tmp_path / "photos", "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "photos")
    assert right(found["0.png"])
    for index in (1, 2):
        assert right(found[f"{index}.png"], "partial", ["wheel"]), (
            "a point and a broken mask are unknown, not background"
        )
    counted = json.loads((tmp_path / "out/report.json").read_text())["skipped"]
    assert {r: e["count"] for r, e in counted.items()} == {"unreadable_annotation": 1, "no_shape": 1, "shape_kind": 1}


# --- Datumaro 1.x ---


def test_datumaro(tmp_path):
    save(tmp_path / "images" / "default" / "0.png", pixels(0))
    save(tmp_path / "images" / "default" / "1.png", pixels(1))
    from part_robust.data.preparation.segmentation import encode

    shared = {"attributes": {"occluded": False}, "group": 0, "z_order": 0}
    labels = [{"name": n, "parent": "", "attributes": ["occluded"]} for n in ("car", "wheel", "door")]
    image = {"size": [H, W]}
    data = {
        "dm_format_version": "1.0", "media_type": 2, "infos": {},
        "categories": {"label": {"labels": labels, "label_groups": [], "attributes": []}, "mask": {"colormap": []}},
        "items": [
            {"id": "0", "attr": {"frame": 0}, "image": {**image, "path": "0.png"}, "annotations": [
                {"id": 0, "type": "label", "label_id": 0, "attributes": {}, "group": 0},
                {"id": 1, "type": "polygon", "label_id": 1, "points": polygon(WHEEL), **shared},
                {"id": 2, "type": "mask", "label_id": 2, "rle": encode(mask(DOOR)), **shared}]},
            {"id": "1", "attr": {"frame": 1}, "image": {**image, "path": "1.png"}, "annotations": [
                {"id": 0, "type": "label", "label_id": 0, "attributes": {}, "group": 0},
                {"id": 1, "type": "bbox", "label_id": 1, "bbox": list(map(float, WHEEL)), **shared},
                {"id": 2, "type": "points", "label_id": 2, "points": [1, 1], **shared},
                {"id": 3, "type": "bbox", "label_id": None, "bbox": [1, 1, 2, 2], **shared}]},
        ],
    }  # fmt: skip
    (tmp_path / "default.json").write_text(json.dumps(data))
    images = tmp_path / "images" / "default"
    arguments = ("datumaro", "--file", tmp_path / "default.json", "--images", images, "--output", tmp_path / "out")
    assert command(*arguments) == 0
    found = result(tmp_path / "out", images)
    assert right(found["0.png"]) and right(found["1.png"], "partial", ["wheel"])


# --- YOLO (Ultralytics 8) ---


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
@pytest.mark.parametrize("names", ["{0: wheel, 1: door}", "[wheel, door]"])
def test_yolo(tmp_path, kind, names, capsys):
    for split in ("train", "val"):
        for index in range(2):
            save(tmp_path / "images" / split / f"car_{index}.png", pixels(10 * len(split) + index))
            label = tmp_path / "labels" / split / f"car_{index}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(line(0, WHEEL, kind) + "\n" + line(1, DOOR, kind) + "\n")
    (tmp_path / "labels/train/car_1.txt").write_text(line(0, WHEEL, kind) + "\n7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    arguments = (
        "yolo",
        "--yaml",
        tmp_path / "data.yaml",
        "--class-from",
        "name:^([a-z]+)_",
        "--output",
        tmp_path / "out",
    )
    assert command(*arguments) == 0
    assert "skipped: 1 annotations of a category" in capsys.readouterr().out
    found = result(tmp_path / "out", tmp_path / "images")
    assert right(found["train/car_0.png"]) and right(found["train/car_1.png"], "partial", ["wheel"])
    assert (tmp_path / "out/annotations/val.json").is_file(), "the splits of the yaml stay"


# --- Roboflow, COCO export of 2026 ---


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        data = coco(tmp_path / "made" / split, 2)
        (tmp_path / split).mkdir()
        root = {"id": 0, "name": "cars", "supercategory": "none"}
        data["categories"] = [root, *({**c, "supercategory": "cars"} for c in data["categories"])]
        for index, image in enumerate(data["images"]):
            name = f"car_{split}{index}_png.rf.0a1b.jpg"
            Image.fromarray(pixels(len(split) * 10 + index)).save(tmp_path / split / name, format="PNG")
            image.update(file_name=name, id=index, license=1, extra={"name": f"car_{index}.png"})
        for annotation in data["annotations"]:
            annotation["image_id"] -= 1
            annotation["bbox"] = [*annotation["bbox"][:2], *map(str, annotation["bbox"][2:])]
        data["annotations"][0]["segmentation"] = []
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(data))
    arguments = ("roboflow", "--source", tmp_path, "--class-from", "name:^([a-z]+)_", "--output", tmp_path / "out")
    assert command(*arguments) == 0
    found = result(tmp_path / "out", tmp_path)
    assert len(found) == 2 and all(right(entry) for entry in found.values())
    names = [c["name"] for c in json.loads((tmp_path / "out/annotations/val.json").read_text())["categories"]]
    assert names == ["door", "wheel"], "the root category is not a part"

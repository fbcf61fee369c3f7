"""What the tools' own files hold besides drawn parts: several annotators, results of one region, lists, copies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from part_robust.cli import import_parts
from part_robust.data.part_json import load_part_json
from tests.commands import exit_code
from tests.data.coloured import DOOR, WHEEL, H, W, coco, pixels, polygon, save
from tests.data.tool_files import command, counted, label_studio, line, percent, result, right

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BY_NAME = ("--class-from", "name:([a-z]+)[^/]*$")


# --- CVAT 2.x ---


def test_cvat_points_lines_and_several_tags(tmp_path):
    drawn = "".join(
        f'<polygon label="{name}" points="{";".join(f"{x},{y}" for x, y in zip(o[::2], o[1::2], strict=True))}"/>'
        for name, o in (("wheel", polygon(WHEEL)), ("door", polygon(DOOR)))
    )
    marks = {
        "polyline": '<polyline label="door" points="1,1;9,9"/>',
        "skeleton": '<skeleton label="door"><points label="a" points="3,3"/></skeleton>',
        "cuboid": '<cuboid label="wheel" xtl1="1" ytl1="1" xbr1="5" ybr1="5"/>',
        "landmark": '<points label="mirror" points="2,2"/>',  # nobody draws a mirror: it is not a part
        "tags": '<tag label="bus"/>',
    }
    labels = "".join(f"<label><name>{n}</name><type>{t}</type></label>" for n, t in (
        ("car", "tag"), ("bus", "tag"), ("truck", "tag"), ("wheel", "any"), ("door", "any")))  # fmt: skip
    images = "".join(
        f'<image id="{i}" name="{name}.png" width="{W}" height="{H}"><tag label="car"/>{drawn}{mark}</image>'
        for i, (name, mark) in enumerate(marks.items())
    )
    (tmp_path / "a.xml").write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    )
    for index, name in enumerate(marks):
        save(tmp_path / "photos" / f"{name}.png", pixels(index))
    arguments = ("cvat", "--file", tmp_path / "a.xml", "--images", tmp_path / "photos", "--class-parts", "training")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "photos")
    lost = ("polyline", "skeleton", "cuboid")
    assert all(right(found[f"{name}.png"], "partial" if name in lost else "full") for name in marks)
    assert counted(tmp_path / "out") == {"shape_kind": 4, "several_classes": 1, "image_with_lost_parts": 3}
    names = [c["name"] for c in json.loads((tmp_path / "out/annotations/train.json").read_text())["categories"]]
    assert names == ["wheel", "door"], "a class that no image has is not a part"


def test_broken_values_are_counted_or_named(tmp_path, capsys):
    """Runs that would fill the memory, sizes of no picture, an image without a name, an encoding that nobody knows."""
    mask = '<mask label="door" rle="{}" left="0" top="0" width="{}" height="1"/>'
    polygon_of_wheel = '<polygon label="wheel" points="4,8;14,8;14,14;4,14"/>'
    head = "<?xml version='1.0' encoding='{}'?><annotations><version>1.1</version>"
    image = f'<image id="0" name="{{}}" width="{W}" height="{H}"><tag label="car"/>{polygon_of_wheel}{{}}</image>'
    save(tmp_path / "photos" / "0.png", pixels(0))

    def run(text: str) -> int:
        (tmp_path / "a.xml").write_text(f"{text}</annotations>")
        images = tmp_path / "photos"
        return command(
            "cvat", "--file", tmp_path / "a.xml", "--images", images, "--output", tmp_path / "out", "--force"
        )

    broken = mask.format("99999999999", 1) + mask.format("0,90000000000", 90000000000) + mask.format("-1,2", 1)
    assert run(head.format("utf-8") + image.format("0.png", broken)) == 0
    assert right(result(tmp_path / "out", tmp_path / "photos")["0.png"], "partial", ["wheel"])
    assert counted(tmp_path / "out")["no_shape"] == 3
    nameless = '<polygon points="1,1;3,1;3,3"/>'
    assert run(head.format("utf-8") + image.format("0.png", nameless)) == 0
    assert right(result(tmp_path / "out", tmp_path / "photos")["0.png"], "partial", ["wheel"])
    assert counted(tmp_path / "out")["no_label"] == 1
    capsys.readouterr()
    assert run(head.format("utf-8") + image.format("", "")) == 1 and "1 of 1 images" in capsys.readouterr().err
    assert run(head.format("klingon") + image.format("0.png", "")) == 1 and "not valid XML" in capsys.readouterr().err


# --- Label Studio 1.x ---


def test_label_studio_regions_and_annotators(tmp_path):
    wheel = label_studio("rectanglelabels", percent(WHEEL), ["wheel"])
    door = {**label_studio("rectanglelabels", percent(DOOR), ["door"]), "id": "y"}
    car = {"id": "c", "from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["car"]}}

    def annotation(*results: dict, **more) -> dict:
        return {"id": 1, "was_cancelled": False, "ground_truth": False, "result": [car, *results], **more}

    outline = {**wheel, "type": "rectangle", "value": percent(WHEEL)}
    of_region = {**door, "type": "choices", "from_name": "state", "value": {**percent(DOOR), "choices": ["broken"]}}
    annotations = {
        "people": [annotation(), annotation(wheel, door, ground_truth=True)],
        "separate": [annotation(outline, label_studio("labels", percent(WHEEL), ["wheel"]), door)],
        "region": [annotation(of_region, wheel, door)],
        "twice": [annotation(wheel, label_studio("rectanglelabels", percent(WHEEL), ["tyre"]), door)],
        "nameless": [annotation(wheel, {**outline, "id": "z", "value": percent((1, 1, 3, 3))}, door)],
        "turned": [annotation(wheel, {**door, "image_rotation": 90})],
        "code": [annotation(wheel, label_studio("brushlabels", {"rle": [-1, 2]}, ["door"]))],
        "classes": [annotation({**car, "value": {"choices": ["car", "bus"]}}, wheel, door)],
    }
    tasks = []
    for index, (name, found) in enumerate(annotations.items()):
        save(tmp_path / "photos" / f"{name}.png", pixels(index))
        data = {"shop": "a text about it", "picture": f"/data/upload/3/0123abcd-{name}.png"}
        tasks.append({"id": index, "data": data, "annotations": found})
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    arguments = ("label-studio", "--file", tmp_path / "tasks.json", "--images", tmp_path / "photos")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "photos")
    for name in annotations:
        parts = ["wheel"] if name in ("turned", "code") else ["wheel", "door"]
        lost = name in ("nameless", "turned", "code")
        assert right(found[f"{name}.png"], "partial" if lost else "full", parts), name
    assert counted(tmp_path / "out") == {
        "further_annotations": 1, "no_label": 1, "turned_view": 1, "no_shape": 1, "file_name_repaired": 8,
        "several_labels": 1, "several_classes": 1, "image_with_lost_parts": 3, "box_only": 14,
    }  # fmt: skip
    output = (*arguments, "--output", tmp_path / "states", "--class-from", "attribute:state")
    assert command(*output) == 0
    assert set(result(tmp_path / "states", tmp_path / "photos")) == {"region.png"}


def test_label_studio_json_min_is_refused(tmp_path, capsys):
    save(tmp_path / "0.png", pixels(0))
    (tmp_path / "min.json").write_text(json.dumps([{"image": "0.png", "label": [percent(WHEEL)], "id": 1}]))
    arguments = ("label-studio", "--file", tmp_path / "min.json", "--images", tmp_path, "--output", tmp_path / "out")
    assert command(*arguments) == 1
    assert 'export the project as "JSON", not as "JSON-MIN"' in capsys.readouterr().err


# --- LabelMe 5.x and 6, X-AnyLabeling ---


def test_labelme_shapes(tmp_path):
    def corners(box) -> list[list[float]]:
        return [list(point) for point in zip(polygon(box)[::2], polygon(box)[1::2], strict=True)]

    shapes = {
        "oriented": [("wheel", "oriented_rectangle", corners(WHEEL)), ("door", "rotation", corners(DOOR))],
        "four": [("wheel", "polygon", corners(WHEEL)), ("door", "rectangle", corners(DOOR))],
        "strip": [("wheel", "polygon", corners(WHEEL)), ("door", "polygon", corners(DOOR)),
                  ("door", "linestrip", [[1, 1], [2, 2], [3, 1]])],
        "three": [("wheel", "polygon", corners(WHEEL)), ("door", "rectangle", corners(DOOR)[:3])],
    }  # fmt: skip
    for index, (name, found) in enumerate(shapes.items()):
        save(tmp_path / "photos" / "car" / f"{name}.png", pixels(index))
        data = {
            "version": "5.8.1", "flags": {}, "imagePath": f"..\\car\\{name}.png", "imageData": "iVBORw0KGgo=",
            "imageHeight": H, "imageWidth": W,
            "shapes": [{"label": n, "shape_type": kind, "points": points} for n, kind, points in found],
        }  # fmt: skip
        (tmp_path / "photos" / "json").mkdir(exist_ok=True)
        (tmp_path / "photos" / "json" / f"{name}.json").write_text(json.dumps(data))
    assert command("labelme", "--source", tmp_path / "photos", "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "photos")
    assert right(found["car/oriented.png"]) and right(found["car/four.png"])
    assert right(found["car/strip.png"], "partial") and right(found["car/three.png"], "partial", ["wheel"])


# --- Datumaro 1.x ---


def test_datumaro_ellipses_captions_and_rotation(tmp_path):
    x, y, w, h = WHEEL
    on_its_side = [x + w / 2 - h / 2, y + h / 2 - w / 2, h, w]
    left, top, width, height = DOOR
    annotations = [
        {"id": 0, "type": "caption", "caption": "a car"},
        {"id": 1, "type": "label", "label_id": 0},
        {"id": 2, "type": "bbox", "label_id": 1, "bbox": on_its_side, "attributes": {"rotation": 90.0}},
        {"id": 3, "type": "ellipse", "label_id": 2, "points": [left, top, left + width, top + height]},
    ]
    items = [
        {"id": "0", "image": {"path": "0.png", "size": [H, W]}, "annotations": annotations},
        {"id": "1", "image": {"path": "1.png"},
         "annotations": [*annotations[:3], {"type": "ellipse", "label_id": 2, "points": [1]}, "odd"]},
    ]  # fmt: skip
    names = [{"name": name} for name in ("car", "wheel", "door")]
    (tmp_path / "a.json").write_text(json.dumps({"categories": {"label": {"labels": names}}, "items": items}))
    for index in range(2):
        save(tmp_path / "photos" / f"{index}.png", pixels(index))
    arguments = ("datumaro", "--file", tmp_path / "a.json", "--images", tmp_path / "photos")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "photos")
    assert right(found["0.png"], parts=["wheel"]) and right(found["1.png"], "partial", ["wheel"])
    on, share = found["0.png"]["door"]
    assert on > 0.98 and share == pytest.approx(np.pi / 4, abs=0.03)


# --- YOLO (Ultralytics 8), as CVAT 2 and Roboflow write it ---


def yolo(folder: Path, split: str, count: int, kind: str = "segmentation", end: str = "") -> None:
    for index in range(count):
        save(folder / "images" / split / f"car_{index}.png", pixels(100 * len(split) + index))
        label = folder / "labels" / split / f"car_{index}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{line(0, WHEEL, kind)}{end}\n{line(1, DOOR, kind)}{end}\n")


@pytest.mark.parametrize(
    ("kind", "end", "more"),
    [
        ("segmentation", "", ""),
        ("segmentation", " 3", ""),
        ("detection", " 3", ""),
        ("detection", " 0.1 0.1 2 0.2 0.2 2", "kpt_shape: [2, 3]"),
    ],
)
def test_yolo_lists_tracks_and_poses(tmp_path, kind, end, more):
    """Lists of images, with "data/" in front as older versions write it; numbers of tracks; boxes with key points."""
    yolo(tmp_path, "train", 2, kind, end)
    yolo(tmp_path, "val", 1, kind, end)
    (tmp_path / "train.txt").write_text("images/train/car_0.png\n./images/train/car_1.png\n")
    (tmp_path / "val.txt").write_text("data/images/val/car_0.png\n")
    (tmp_path / "data.yaml").write_text(
        f"path: ./\ntrain: train.txt\nval: val.txt\nnames: {{'0': wheel, '1': door}}\n{more}"
    )
    arguments = ("yolo", "--yaml", tmp_path / "data.yaml", *BY_NAME, "--output", tmp_path / "out")
    assert command(*arguments) == 0
    found = result(tmp_path / "out", tmp_path / "images")
    assert set(found) == {"train/car_0.png", "train/car_1.png"} and all(map(right, found.values()))
    assert len(json.loads((tmp_path / "out/annotations/val.json").read_text())["images"]) == 1


def test_yolo_lists_of_folders(tmp_path, capsys):
    yolo(tmp_path, "a", 1)
    yolo(tmp_path, "more", 1)
    yaml = tmp_path / "data.yaml"
    yaml.write_text("train: [images/a, images/more]\nnames: [wheel, door]\n")
    arguments = ("yolo", "--yaml", yaml, *BY_NAME, "--output")
    assert command(*arguments, tmp_path / "out") == 0
    assert set(result(tmp_path / "out", tmp_path / "images")) == {"a/car_0.png", "more/car_0.png"}
    for text, sentence in (
        ("train: images/a\nval: images/a", "is in the splits train and val"),
        ("train: images/a\nval: missing.txt", "missing.txt does not exist"),
        ("train: list.txt", "1 of 1 images"),
        ("train: labels/a", "train has no image"),
    ):
        (tmp_path / "list.txt").write_text("images/a/car_9.png\n")
        yaml.write_text(f"{text}\nnames: [wheel, door]\n")
        assert command(*arguments, tmp_path / "no") == 1
        assert sentence in capsys.readouterr().err
    (tmp_path / "labels/a/car_0.txt").write_bytes("0 0.5 0.5 0.1 0.1 é".encode("latin-1"))
    yaml.write_text("train: images/a\nnames: [wheel, door]\n")
    assert command(*arguments, tmp_path / "no") == 1 and "is not text in UTF-8" in capsys.readouterr().err


# --- Roboflow: augmented copies of one picture ---


def roboflow(folder: Path, split: str, originals: int, copies: int, seed: int) -> None:
    data = coco(folder / "made" / split, originals * copies)
    for index, image in enumerate(data["images"]):
        image["file_name"] = f"car_{index // copies}_png.rf.{seed + index:032x}.jpg"
        save(folder / split / "tmp.png", pixels(seed + index))
        (folder / split / "tmp.png").rename(folder / split / image["file_name"])
    (folder / split / "_annotations.coco.json").write_text(json.dumps(data))


def test_augmented_copies_are_never_divided(tmp_path, capsys):
    roboflow(tmp_path / "one", "train", 12, 3, 0)
    arguments = ("roboflow", *BY_NAME, "--workers", "1", "--source")
    shares = ("--split-fractions", "0.5", "0.25", "0.25")

    def run(source: Path, out: Path) -> int:
        return exit_code(import_parts.main, [*map(str, (*arguments, source, "--output", out)), *shares])

    assert run(tmp_path / "one", tmp_path / "out") == 0
    where: dict[str, set] = {}
    for split in ("train", "val", "test"):
        for image in json.loads((tmp_path / f"out/annotations/{split}.json").read_text())["images"]:
            where.setdefault(image["file_name"].split(".rf.")[0], set()).add(split)
    assert len(where) == 12 and all(len(splits) == 1 for splits in where.values())
    assert set.union(*where.values()) == {"train", "val", "test"}
    roboflow(tmp_path / "one", "valid", 2, 1, 500)  # of the same two pictures
    assert run(tmp_path / "one", tmp_path / "given") == 0
    assert "2 images made of one picture in two given splits" in capsys.readouterr().out


def test_augmented_copies_in_yolo_folders_are_never_divided(tmp_path):
    yolo(tmp_path, "train", 12)
    for folder in ("images", "labels"):
        for path in sorted((tmp_path / folder / "train").iterdir()):
            number = int(path.stem.split("_")[1])
            path.rename(path.with_name(f"car_{number // 3}_png.rf.{number:032x}{path.suffix}"))
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [wheel, door]\n")
    arguments = ("yolo", "--yaml", tmp_path / "data.yaml", *BY_NAME, "--workers", "1", "--output", tmp_path / "out")
    assert exit_code(import_parts.main, [*map(str, arguments), "--split-fractions", "0.5", "0.25", "0.25"]) == 0
    groups = [
        {i["file_name"].split(".rf.")[0] for i in json.loads(path.read_text())["images"]}
        for path in (tmp_path / "out" / "annotations").glob("*.json")
    ]
    assert len(groups) > 1 and sum(map(len, groups)) == len(set.union(*groups)) == 4


def test_copies_are_where_the_json_says(tmp_path):
    yolo(tmp_path / "made", "car", 2)
    (tmp_path / "made" / "data.yaml").write_text("train: images/car\nnames: [wheel, door]\n")
    arguments = ("yolo", "--yaml", tmp_path / "made" / "data.yaml", *BY_NAME, "--copy-images")
    assert command(*arguments, "--output", tmp_path / "out") == 0
    (tmp_path / "made").rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "moved")
    records, _ = load_part_json(tmp_path / "moved" / "annotations" / "train.json")
    assert {Path(record["file_name"]).parent for record in records} == {tmp_path / "moved" / "images"}

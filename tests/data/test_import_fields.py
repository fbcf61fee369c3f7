"""What annotation tools really write: right to the pixel by every importer, or refused in one sentence."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image

from part_robust.data.part_json import read_part_json
from tests.data.coloured import (
    COMMANDS,
    DOOR,
    WHEEL,
    H,
    W,
    all_right,
    coco,
    imported,
    pixels,
    polygon,
    report,
    run,
    save,
)
from tests.data.paco_fixture import uncompressed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
both = pytest.mark.parametrize("command", COMMANDS)


def square(box) -> np.ndarray:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    return mask


# --- what comes out right ---


def text_ids(data):
    for key, fields in (("images", ["id"]), ("annotations", ["id", "image_id", "category_id"]), ("categories", ["id"])):
        for entry in data[key]:
            entry.update({field: str(entry[field]) for field in fields})


def text_numbers(data):
    for image in data["images"]:
        image.update(width=str(image["width"]), height=f"{image['height']}.0")
    for annotation in data["annotations"]:
        annotation.update(bbox=[*annotation["bbox"][:2], *map(str, annotation["bbox"][2:])], iscrowd="0")
        del annotation["segmentation"]


def text_polygons(data):
    for annotation in data["annotations"]:
        annotation["segmentation"] = [list(map(str, annotation["segmentation"][0]))]


def roboflow_root(data):
    data["categories"] = [{"id": 0, "name": "car-parts", "supercategory": "none"}, *data["categories"]]
    for category in data["categories"][1:]:
        category["supercategory"] = "car-parts"


def background(data):
    data["categories"].append({"id": 9, "name": "__background__"})
    rectangle = {"bbox": [0, 0, W, H], "segmentation": [polygon((0, 0, W, H))], "iscrowd": 0}
    data["annotations"] += [{"id": 90 + i, "image_id": i + 1, "category_id": 9, **rectangle} for i in range(3)]


def lists_of_runs(data):
    for annotation, box in zip(data["annotations"], (WHEEL, DOOR) * 3, strict=True):
        annotation.update(segmentation=uncompressed(square(box)), iscrowd=1)


def points(data):
    for annotation in data["annotations"]:
        values = annotation["segmentation"][0]
        annotation["segmentation"] = [[list(pair) for pair in zip(values[::2], values[1::2], strict=True)]]


def wrong_sizes(value):
    def change(data):
        data["images"][0].update(width=value, height=value)

    return change


def segmentation(value):
    def change(data):
        for annotation in data["annotations"]:
            annotation["segmentation"] = value

    return change


def reversed_ids(data):
    for annotation in data["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    data["categories"] = [dict(c, id=3 - c["id"]) for c in data["categories"]]
    data["annotations"].reverse()


def listed_twice(data):
    data["images"] += [dict(image, id=image["id"] + 10) for image in data["images"]]


RIGHT = {
    "ids as text": text_ids, "numbers as text": text_numbers, "polygons as text": text_polygons,
    "Roboflow's root": roboflow_root, "background": background, "lists of runs": lists_of_runs, "points": points,
    "bare polygon": lambda d: [a.update(segmentation=a["segmentation"][0]) for a in d["annotations"]],
    "empty beside a box": segmentation([]), "null beside a box": segmentation(None),
    "odd length": segmentation([[1, 2, 3]]),
    "2 points": segmentation([[1, 2, 3, 4]]), "one of 2 points, too": lambda d: [
        a["segmentation"].append([1, 1, 2, 2]) for a in d["annotations"]
    ],
    "size missing": lambda d: [image.pop("width") for image in d["images"]],
    "size 0": wrong_sizes(0), "size null": wrong_sizes(None), "size in a list": wrong_sizes([W]),
    "size NaN": wrong_sizes(float("nan")), "size text": wrong_sizes("wide"),
    "other order of ids": reversed_ids, "images twice": listed_twice,
    "box text": lambda d: [a.update(bbox="text") for a in d["annotations"]],
    "box NaN": lambda d: [a.update(bbox=[float("nan")] * 4) for a in d["annotations"]],
    "box of 3": lambda d: [a.update(bbox=[1, 2, 3]) for a in d["annotations"]],
    "box of points": lambda d: [a.update(bbox=[[1, 2], [3, 4]]) for a in d["annotations"]],
    "box of negative width": lambda d: [a.update(bbox=[9, 9, -5, 8]) for a in d["annotations"]],
    "info null": lambda d: d.update(info=None), "info text": lambda d: d.update(info="x"),
    "info list": lambda d: d.update(info=[1]),
    "area wrong": lambda d: [a.update(area=1) for a in d["annotations"]],
}  # fmt: skip


@both
@pytest.mark.parametrize("case", RIGHT)
def test_right_to_the_pixel(tmp_path, command, case):
    data = coco(tmp_path)
    RIGHT[case](data)
    assert run(command, tmp_path, data) == 0
    assert all_right(tmp_path, command)
    assert {entry["supervision"] for entry in imported(tmp_path, command).values()} == {"full"}
    names = {c["name"] for c in read_part_json(tmp_path / f"out_{command}/annotations/train.json")["categories"]}
    assert names == {"wheel", "door"}


@both
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, command, encoding):
    assert run(command, tmp_path, coco(tmp_path), encoding=encoding) == 0 and all_right(tmp_path, command)


def turned(data, size):
    """Everything drawn on the picture that a viewer shows, H wide and W high."""
    boxes = ((4, 8, 10, 6), (8, 16, 10, 12))
    for image in data["images"]:
        image.update(width=size[0], height=size[1])
    for annotation, box in zip(data["annotations"], boxes * 3, strict=True):
        annotation.update(bbox=list(map(float, box)), segmentation=[polygon(box)])
    return boxes


@both
@pytest.mark.parametrize("size", [(H, W), (W, H)], ids=["upright size", "stored size"])
def test_camera_rotation(tmp_path, command, size):
    """Tools draw on the upright picture, and some write the stored size beside it."""
    data = coco(tmp_path)
    wheel, door = turned(data, size)
    for index, image in enumerate(data["images"]):
        image["file_name"] = f"{index}.jpg"
        save(tmp_path / "photos" / f"{index}.jpg", pixels(index, wheel, door, (H, W)), orientation=6)
    assert run(command, tmp_path, data) == 0
    found = imported(tmp_path, command)
    assert min(value for entry in found.values() for name in ("wheel", "door") for value in entry[name]) > 0.9
    assert report(tmp_path, command).get("turned_size", 0) == (3 if size == (W, H) else 0)


@both
def test_16_bit_pictures_are_no_duplicates(tmp_path, command):
    data = coco(tmp_path)
    for index in range(3):
        deep = np.random.default_rng(index).integers(256, 65536, (H, W)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / "photos" / f"{index}.png")
    assert run(command, tmp_path, data) == 0
    assert "duplicate_content" not in report(tmp_path, command)
    Image.fromarray(np.ones((H, W), dtype=np.float32)).save(tmp_path / "photos" / "0.tif")
    data["images"][0]["file_name"] = "0.tif"
    assert run(command, tmp_path, data) == 0
    assert report(tmp_path, command)["unreadable_image"] == 1, "as the check of a part json"


@both
@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("images/ab-0.png", r"images\ab-0.png"),
        ("0.png", r"..\..\label-studio\media\upload\4\0.png"),
        ("photos/0.png", "/data/local-files/?d=photos/0.png"),
        ("my shot.png", "my%20shot.png"),
        ("0.png", "https://host/files/0.png?x=1"),
        ("0.png", "C:\\Users\\me\\0.png"),
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png")),
        ("0.png", "0.png "),
        ("0.PNG", "0.png"),
        ("sub/0.png", "./sub//0.png"),
    ],
)
def test_file_names(tmp_path, command, on_disk, written):
    data = coco(tmp_path)
    (tmp_path / "photos" / "0.png").rename(tmp_path / "photos" / "moved")
    (tmp_path / "photos" / on_disk).parent.mkdir(exist_ok=True)
    (tmp_path / "photos" / "moved").rename(tmp_path / "photos" / on_disk)
    data["images"][0]["file_name"] = written
    assert run(command, tmp_path, data) == 0 and all_right(tmp_path, command)
    assert on_disk in imported(tmp_path, command)


@both
def test_turned_rectangle(tmp_path, command):
    data = coco(tmp_path, 1)
    for annotation in data["annotations"]:
        annotation.update(segmentation=[], attributes={"rotation": 90.0 if annotation["category_id"] == 1 else 0.0})
    assert run(command, tmp_path, data) == 0 and report(tmp_path, command)["turned_box"] == 1
    x, y, w, h = WHEEL
    wheel = read_part_json(tmp_path / f"out_{command}/annotations/train.json")["annotations"]
    box = next(a["bbox"] for a in wheel if "segmentation" in a)
    assert box == pytest.approx([x + (w - h) / 2, y + (h - w) / 2, h, w]), "about its centre"


# --- what is lost, and said ---


def far_outside(annotation):
    annotation.update(segmentation=[polygon((4, 8, 2e8, 6))], bbox=[4, 8, 2e8, 6])


LOST = {
    "far_outside": far_outside,
    "zero_area": lambda a: a.update(segmentation=[[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]]),
    "unknown_category": lambda a: a.update(category_id=77),
    "degenerate_box": lambda a: a.update(segmentation=[], bbox=[]),
}


@both
@pytest.mark.parametrize("reason", LOST)
def test_a_lost_part_is_not_background(tmp_path, command, reason, capsys):
    data = coco(tmp_path)
    LOST[reason](data["annotations"][0])
    assert run(command, tmp_path, data) == 0
    found = imported(tmp_path, command)
    assert [found[f"{i}.png"]["supervision"] for i in range(3)] == ["partial", "full", "full"]
    assert "wheel" not in found["0.png"] and found["0.png"]["door"] == (1, 1)
    assert report(tmp_path, command)[reason] == 1
    assert "skipped: 1 annotations" in capsys.readouterr().out, "on screen"


@both
def test_huge_picture_is_counted(tmp_path, command, monkeypatch):
    data = coco(tmp_path)
    save(tmp_path / "photos" / "0.png", pixels(0, size=(60 * W, H)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H)
    assert run(command, tmp_path, data) == 0 and report(tmp_path, command)["unreadable_image"] == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("orientation", "square"), [(2, False), (3, False), (4, False), (6, True), (6, False)])
def test_a_rotation_that_keeps_the_size_is_not_guessed(tmp_path, command, orientation, square, capsys):
    data, size = coco(tmp_path), (W, W if square else H)
    tags = Image.Exif()
    tags[274] = orientation
    Image.fromarray(pixels(0, size=size)).save(tmp_path / "photos" / "0.png", exif=tags)
    data["images"][0].update(height=size[1])
    assert run(command, tmp_path, data) == 0
    skipped = orientation != 6 or square
    assert all_right(tmp_path, command, 2 if skipped else 3)
    assert report(tmp_path, command).get("ambiguous_rotation", 0) == skipped
    data["images"], data["annotations"] = data["images"][:1], data["annotations"][:2]
    capsys.readouterr()
    assert run(command, tmp_path, data, "--force") == skipped
    assert ("save the images as a viewer shows them" in capsys.readouterr().err) == skipped

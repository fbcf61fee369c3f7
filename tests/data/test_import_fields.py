"""What annotation tools really write: right to the pixel by every importer, or refused in one sentence."""

from __future__ import annotations

import json
import os
import re
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


# --- what is refused ---


def normalised(data):
    for annotation in data["annotations"]:
        annotation["segmentation"] = [[v / W for v in annotation["segmentation"][0]]]
        annotation["bbox"] = [v / W for v in annotation["bbox"]]


def corners(data):
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
        del annotation["segmentation"]


def resized(data):
    for image in data["images"]:
        image.update(width=2 * W, height=2 * H)


REFUSED = {
    "normalised": (normalised, "look normalised"),
    "corners": (corners, r"\[left, top, right, bottom\]"),
    "resized": (resized, "size_mismatch: 3"),
    "no part left": (lambda d: [a.update(category_id=None) for a in d["annotations"]], "unknown_category: 6"),
    "one id, two files": (lambda d: d["images"][1].update(id=1), "image id 1 is both 0.png and 1.png"),
    "one id, two parts": (lambda d: d["categories"][1].update(id=1), "category id 1 is both 'wheel' and 'door'"),
    "name null": (lambda d: d["categories"][0].update(name=None), "has the name None"),
    "name empty": (lambda d: d["categories"][0].update(name=""), "has the name ''"),
    "id null": (lambda d: d["categories"][0].update(id=None), "has the id None"),
    "id list": (lambda d: d["images"][0].update(id=[1]), r"has the id \[1\]"),
    "file missing": (lambda d: d["images"][0].update(file_name="no.png"), "are not in --image-root .*no.png"),
    "annotations text": (lambda d: d.update(annotations=["x"]), "no list of objects 'annotations'"),
    "two names, one file": (lambda d: d["images"][1].update(file_name="/x/0.png"), "are both the file 0.png"),
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(tmp_path, command, case, capsys):
    change, sentence = REFUSED[case]
    data = coco(tmp_path)
    change(data)
    assert run(command, tmp_path, data) == 1
    printed = capsys.readouterr().err.strip()
    assert "Traceback" not in printed and len(printed.splitlines()[-1:]) == 1
    assert re.search(sentence, printed), printed
    assert not (tmp_path / f"out_{command}").exists(), "nothing is written"


@both
@pytest.mark.parametrize(
    ("class_from", "sentence"),
    [
        ("supercategory", "none of the parts of 3 images has a supercategory"),
        ("folder", "all 3 images lie in the folder 'images', which names no class"),
        ("tag", "no_class: 3"),
        ("name:(", "no regular expression"),
        ("name:^(x)", "finds nothing in 3 of 3 file names"),
        ("star", "--class-from must be folder, tag, supercategory"),
        ("attribute:make", "no_class: 3"),
    ],
)
def test_class_sources_say_what_is_missing(tmp_path, command, class_from, sentence, capsys):
    data = coco(tmp_path)
    (tmp_path / "photos" / "images").mkdir()
    for image in data["images"]:
        name = image["file_name"]
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / "images" / name)
        image["file_name"] = f"images/{name}"
    for category in data["categories"]:
        category["supercategory"] = ""
    assert run(command, tmp_path, data, class_from=class_from) == 1
    assert sentence in capsys.readouterr().err


@both
def test_class_from_the_file_name(tmp_path, command):
    assert run(command, tmp_path, coco(tmp_path), class_from=r"name:^(\d)") == 0
    assert {entry["class"] for entry in imported(tmp_path, command).values()} == {"0", "1", "2"}


@both
@pytest.mark.parametrize(
    ("rows", "encoding", "sentence"),
    [
        ("0.png,car\n0.png,bike", "utf-8", "0.png is both 'car' and 'bike'"),
        ("0.png,voitur\xe9", "latin-1", "classes.csv is not written in UTF-8"),
        ("0.png,car\n1.png", "utf-8", "line 3: file_name and class must not be empty"),
        ("0.png,car", "utf-8", "has no row for 2 of 3 images"),
    ],
)
def test_broken_class_tables(tmp_path, command, rows, encoding, sentence, capsys):
    (tmp_path / "classes.csv").write_bytes(f"file_name,class\n{rows}\n".encode(encoding))
    assert run(command, tmp_path, coco(tmp_path), class_from=f"csv:{tmp_path / 'classes.csv'}") == 1
    assert sentence in capsys.readouterr().err


@both
def test_bare_names_in_a_table_must_be_unique(tmp_path, command, capsys):
    data = coco(tmp_path, 2)
    for index, image in enumerate(data["images"]):
        (tmp_path / "photos" / f"d{index}").mkdir()
        (tmp_path / "photos" / f"{index}.png").rename(tmp_path / "photos" / f"d{index}" / "a.png")
        image["file_name"] = f"d{index}/a.png"
    (tmp_path / "classes.csv").write_text("file_name,class\na.png,car\n")
    assert run(command, tmp_path, data, class_from=f"csv:{tmp_path / 'classes.csv'}") == 1
    assert "is that of several images" in capsys.readouterr().err


# --- splits that do not leak ---


@both
def test_other_fractions_leave_no_old_split(tmp_path, command, capsys):
    data = coco(tmp_path, 12)
    divided = ("--split-fractions", "0.4", "0.3", "0.3")
    assert run(command, tmp_path, data, *divided) == 0
    folder = tmp_path / f"out_{command}" / "annotations"
    before = sorted(path.name for path in folder.iterdir())
    assert "train.json" in before and len(before) > 1
    assert run(command, tmp_path, data) == 1, "its old splits hold images of the new train"
    assert "is a split of an earlier import" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    assert run(command, tmp_path, data, "--force") == 0
    assert [path.name for path in folder.iterdir()] == ["train.json"]


@both
def test_old_flags_mean_the_new_ones(tmp_path, command):
    data = coco(tmp_path)
    assert run(command, tmp_path, data, "--ratios", "1", "0", "0", "--restart") == 0 and all_right(tmp_path, command)


@both
def test_more_workers_write_the_same_bytes(tmp_path, command, monkeypatch):
    monkeypatch.setattr("part_robust.data.importers.samples._PER_WORKER", 1)
    data = coco(tmp_path)
    assert run(command, tmp_path, data) == 0
    first = (tmp_path / f"out_{command}/annotations/train.json").read_bytes()
    assert run(command, tmp_path, data, "--workers", "2", "--force") == 0
    assert (tmp_path / f"out_{command}/annotations/train.json").read_bytes() == first


def test_an_interrupted_import_is_marked(tmp_path, monkeypatch):
    data = coco(tmp_path, 12)
    divided = ("--split-fractions", "0.4", "0.3", "0.3")
    assert run("coco", tmp_path, data, *divided) == 0
    real, calls = os.replace, []

    def killed(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr("part_robust.data.importers.output.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run("coco", tmp_path, data, *divided, "--seed", "5")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was left unfinished"):
        read_part_json(tmp_path / "out_coco/annotations/train.json")
    assert run("coco", tmp_path, data, *divided, "--seed", "5") == 0
    hashes = {
        json.loads(path.read_text())["info"]["part_robust"]["config_hash"]
        for path in (tmp_path / "out_coco/annotations").glob("*.json")
    }
    assert len(hashes) == 1

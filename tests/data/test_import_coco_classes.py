"""The class of an imported image from a table, a folder or a rule, and the parts a class owns."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.data.importers.class_rule import read_class_rule
from part_robust.data.importers.classes import CsvClasses, class_from_folder
from part_robust.data.importers.items import Item, Source
from part_robust.data.importers.report import ImportCounts
from tests.data.coco_source import (
    CAR_PART_NAMES,
    CAR_RULE,
    annotation,
    one_class,
    read,
    run,
    write_csv,
    write_source,
)

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- classes ---


def test_csv(tmp_path):
    source = write_source(tmp_path, ["a.png", "b.png"], [annotation(1), annotation(2, 2)])
    tally = ImportCounts()
    table = CsvClasses(write_csv(tmp_path, {"a.png": "lamp", "b.png": "desk", "z.png": "desk"}), tally)
    report = run(source, tmp_path / "out", table, tally)
    data = read(tmp_path / "out")
    assert [c["name"] for c in data["classes"]] == ["desk", "lamp"]
    assert [image["class_id"] for image in data["images"]] == [2, 1]
    assert report["noted"]["table_row_without_image"] == {"count": 1, "examples": ["z.png"]}
    assert report["images"] == {"train": {"desk": 1, "lamp": 1}}
    assert report["classes"] == {"desk": ["base"], "lamp": ["base"]}


def test_csv_without_a_row(tmp_path):
    source = write_source(tmp_path, ["a.png", "b.png"], [annotation(1), annotation(2, 2)])
    path = write_csv(tmp_path, {"a.png": "lamp"})
    with pytest.raises(ValueError, match=r"classes\.csv has no row for 1 of 2 images, first: b\.png"):
        run(source, tmp_path / "out", CsvClasses(path, ImportCounts()))
    tally = ImportCounts()
    report = run(source, tmp_path / "out", CsvClasses(path, tally, skip_unclassed=True), tally)
    assert report["skipped"]["no_class"] == {"count": 1, "examples": ["b.png (base)"]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,class\na,b\n", "must have the columns file_name and class"),
        ("", "must have the columns"),
        ("file_name,class\na.png,x\na.png,y\n", "a.png is both 'x' and 'y'"),
        ("file_name,class\na.png,\n", "line 2: file_name and class must not be empty"),
        ("file_name,class,class\na.png,x,y\n", "has the column class twice"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        CsvClasses(tmp_path / "c.csv", ImportCounts())


def test_tables_are_asked_before_images_are_decoded(tmp_path, monkeypatch):
    source = write_source(tmp_path, ["a.png"], [annotation(1)])
    monkeypatch.setattr("part_robust.data.importers.samples.read_picture", lambda path: pytest.fail())
    with pytest.raises(ValueError, match="have no folder"):
        run(source, tmp_path / "out", class_from_folder)
    with pytest.raises(ValueError, match="no row"):
        run(source, tmp_path / "out", CsvClasses(write_csv(tmp_path, {}), ImportCounts()))


def test_folder(tmp_path):
    source = write_source(tmp_path, ["in/desk/a.png", "lamp/a.png"], [annotation(1), annotation(2, 2)])
    run(source, tmp_path / "out", class_from_folder, class_names=("lamp", "desk", "sign"))
    data = read(tmp_path / "out")
    assert [c["name"] for c in data["classes"]] == ["lamp", "desk", "sign"]
    assert [image["class_id"] for image in data["images"]] == [2, 1]
    flat = write_source(tmp_path, ["lamp/a.png", "b.png"], [])
    with pytest.raises(ValueError, match=r"--class-from folder: 1 of 2 file names have no folder, first: b\.png"):
        run(flat, tmp_path / "out2", class_from_folder)


def test_unknown_class(tmp_path):
    source = write_source(tmp_path, ["desk/a.png", "lamp/b.png"], [annotation(1)])
    with pytest.raises(ValueError, match=r"unknown class 'lamp' of lamp/b\.png: the classes are desk, sign"):
        run(source, tmp_path / "out", class_from_folder, class_names=("desk", "sign"))


def with_parts(names) -> Item:
    return Item("a", parts=[{"part": name} for name in names])


RULE = """
groups: {top: &top [shade, bulb]}
rules:
  - {class: complete, all_of: [base, *top]}
  - {class: top, any_of: *top, none_of: base}
  - {class: most, at_least: {count: 2, of: [base, shade, bulb]}}
unmatched: %s
"""


@pytest.mark.parametrize(
    "parts, expected",
    [
        ({"base", "shade", "bulb"}, "complete"),
        ({"shade"}, "top"),
        ({"shade", "bulb"}, "top"),
        ({"base", "bulb"}, "most"),
        ({"base"}, None),
        (set(), None),
    ],
)
def test_rule(tmp_path, parts, expected):
    (tmp_path / "r.yaml").write_text(RULE % "skip")
    rule = read_class_rule(tmp_path / "r.yaml")
    assert rule([with_parts(parts)]) == [expected]
    assert rule.class_names == ["complete", "top", "most"]
    (tmp_path / "r.yaml").write_text(RULE % "other")
    rule = read_class_rule(tmp_path / "r.yaml")
    assert rule([with_parts(parts)]) == [expected or "other"]
    assert rule.class_names == ["complete", "top", "most", "other"]


def test_rule_on_a_file(tmp_path):
    source = write_source(tmp_path, ["a.png", "b.png", "c.png"], [annotation(1), annotation(2, 2, 2), annotation(3, 3)])
    (tmp_path / "r.json").write_text(
        json.dumps({"rules": [{"class": "dark", "all_of": ["base"]}], "unmatched": "error"})
    )
    with pytest.raises(ValueError, match=r"no clause holds for 1 of 3 images, first: b\.png"):
        run(source, tmp_path / "out", read_class_rule(tmp_path / "r.json"))
    (tmp_path / "r.json").write_text(
        json.dumps({"rules": [{"class": "dark", "all_of": ["base"]}], "unmatched": "skip"})
    )
    report = run(source, tmp_path / "out", read_class_rule(tmp_path / "r.json"))
    assert report["skipped"]["no_class"] == {"count": 1, "examples": ["b.png (shade)"]}
    assert [image["file_name"] for image in read(tmp_path / "out")["images"]] == ["a.png", "c.png"]


def test_rule_that_names_unknown_parts(tmp_path):
    source = write_source(tmp_path, ["a.png"], [annotation(1)])
    (tmp_path / "r.yaml").write_text(RULE % "skip")
    with pytest.raises(
        ValueError, match=r"r\.yaml names parts that the json does not have: bulb\. It has: base, shade"
    ):
        run(source, tmp_path / "out", read_class_rule(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("rules: []\nunmatched: skip", "must have a list `rules`"),
        ("rules: [{class: a, any_of: [x]}]", "must say `unmatched`"),
        ("rules: [{class: a, one_of: [x]}]\nunmatched: skip", r"rules\[0\]: unknown keys one_of"),
        ("rules: [{any_of: [x]}]\nunmatched: skip", r"rules\[0\] must have a `class`"),
        ("rules: [{class: a}]\nunmatched: skip", r"rules\[0\] has no condition"),
        ("rules: [{class: a, any_of: {x: 1}}]\nunmatched: skip", "any_of must be a list of part names"),
        ("rules: [{class: a, at_least: {count: 2}}]\nunmatched: skip", "at_least must be"),
        ("rule: 1\nrules: [{class: a, any_of: [x]}]\nunmatched: skip", "unknown keys rule"),
        ("{[", "not valid yaml"),
    ],
)
def test_broken_rule(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_rule(tmp_path / "r.yaml")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_class_rule(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "parts, view",
    [
        ("front_bumper front_glass front_left_light front_right_light hood wheel", "front"),
        ("front_bumper front_left_light front_right_light", "front"),
        ("back_bumper back_glass back_left_light back_right_light tailgate", "back"),
        ("back_bumper trunk", "back"),
        ("front_left_door back_left_door front_left_light back_left_light wheel", "left"),
        ("front_left_door front_bumper back_bumper front_left_light back_left_light", "left"),
        ("front_left_door front_left_light back_left_light back_glass", "left"),
        ("front_left_door front_glass hood front_left_light", "front_left"),
        ("front_left_door front_left_light front_right_light front_bumper", "front_left"),
        ("back_left_door back_left_light back_right_light trunk", "back_left"),
        ("back_left_door back_glass back_bumper front_left_light", "back_left"),
        ("back_left_door back_glass", "back_left"),
        ("front_left_door front_right_door front_glass hood", None),
        ("wheel", None),
        ("", None),
    ],
)
def test_car_view(parts, view):
    assert read_class_rule(CAR_RULE)([with_parts(parts.split())]) == [view]


CAR_VIEW = read_class_rule(CAR_RULE)


@settings(deadline=None)
@given(st.sets(st.sampled_from(CAR_PART_NAMES)))
def test_car_view_of_the_mirrored_car(parts):
    def mirrored(name):
        return name.replace("left", "#").replace("right", "left").replace("#", "right")

    (view,) = CAR_VIEW([with_parts(parts)])
    assert CAR_VIEW([with_parts(map(mirrored, parts))]) == [mirrored(view) if view else None]


def test_car_rule_names_the_parts_of_car_parts():
    rule = read_class_rule(CAR_RULE)
    rule.check_parts(CAR_PART_NAMES)
    views = {"front", "back", "left", "right", "front_left", "front_right", "back_left", "back_right"}
    assert set(rule.class_names) == views and rule.unmatched == "skip"


# --- which parts a class owns ---


@pytest.fixture
def two_classes(tmp_path):
    """lamp: base in all 4 images, shade in 1; desk: shade in both."""
    names = [f"lamp/{i}.png" for i in range(4)] + ["desk/4.png", "desk/5.png"]
    raw = [annotation(i + 1, i + 1) for i in range(4)] + [annotation(i, i, 2) for i in (5, 6)]
    return write_source(tmp_path, names, [*raw, annotation(7, 1, 2)])


def test_class_parts(two_classes, tmp_path):
    def parts(**fields):
        return run(two_classes, tmp_path / "out", class_from_folder, force=True, **fields)["classes"]

    assert parts() == {"desk": ["shade"], "lamp": ["base", "shade"]}
    assert parts(class_part_share=0.25) == {"desk": ["shade"], "lamp": ["base", "shade"]}
    assert parts(class_part_share=0.26) == {"desk": ["shade"], "lamp": ["base"]}
    (tmp_path / "parts.yaml").write_text("lamp: [shade]\ndesk: []\n")
    assert parts(class_parts=str(tmp_path / "parts.yaml")) == {"lamp": ["shade"], "desk": []}
    classes = read(tmp_path / "out")["classes"]
    assert [c["part_category_ids"] for c in classes] == [[2], []] and classes[0]["name"] == "lamp"


def test_class_parts_come_from_training_images_only(two_classes, tmp_path):
    data = json.loads(two_classes.json_file.read_text())
    other = tmp_path / "test.json"
    other.write_text(json.dumps(data | {"images": data["images"][:1], "annotations": data["annotations"]}))
    data["images"], data["annotations"] = data["images"][1:], data["annotations"]
    two_classes.json_file.write_text(json.dumps(data))
    train = Source(two_classes.json_file, two_classes.image_root, "train")
    test = Source(other, two_classes.image_root, "test")
    assert run([train, test], tmp_path / "out", class_from_folder)["classes"] == {"desk": ["shade"], "lamp": ["base"]}


def test_class_parts_from_the_supercategory(tmp_path):
    categories = [
        {"id": 1, "name": "base", "supercategory": "lamp"},
        {"id": 2, "name": "shade", "supercategory": "lamp"},
        {"id": 3, "name": "leg", "supercategory": "desk"},
    ]
    source = write_source(tmp_path, ["desk/a.png", "lamp/b.png"], [annotation(1, 1, 1)], categories)
    report = run(source, tmp_path / "out", class_from_folder)
    assert report["classes"] == {"desk": ["leg"], "lamp": ["base", "shade"]}
    trained = run(source, tmp_path / "out2", class_from_folder, class_parts="training")
    assert trained["classes"] == {"desk": ["base"], "lamp": []}
    with pytest.raises(ValueError, match="supercategory of 'leg' is 'desk', which is none of the classes lamp"):
        run(source, tmp_path / "out3", one_class, class_parts="supercategory")


@pytest.mark.parametrize(
    "text, message",
    [
        ("lamp: [foot]\ndesk: []", "class 'lamp' has unknown parts: foot"),
        ("- lamp", "must map each class"),
        ("lamp: [base]", "unknown class 'desk'"),
    ],
)
def test_broken_class_parts(two_classes, tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        run(two_classes, tmp_path / "out", class_from_folder, class_parts=str(tmp_path / "p.yaml"))

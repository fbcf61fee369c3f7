"""Every rule of the part json: broken one at a time, many at once, and any json at all."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from part_robust.data.mask_validation import run_lengths
from part_robust.data.validation import violations
from tests.toy import SIZE, encode, toy_json

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GOOD, _ = toy_json(4)
LAMP, SIGN = "images[0] (id 1)", "images[2] (id 3)"
SHADE, BASE, BOARD = (f"annotations[{i}] (id {i + 1})" for i in range(3))
GONE = object()


def name_case(value):
    return "gone" if value is GONE else str(value)[:30]


FULL_RLE = GOOD["annotations"][0]["segmentation"]
RLE_RULE = "must be a compressed RLE {size: [height, width], counts: string}"
SUPERVISION_RULE = "part_supervision must be one of ('full', 'partial', 'none'), is"
BOX_RULE = "bbox must be four finite numbers [x, y, width, height] in pixels, is"
NO_CLASS = "has no class: give class_id, or class_name, or a file_name that begins with the class's folder"
POLYGON = [4.0, 4.0, 12.0, 4.0, 12.0, 12.0]


def changed(*changes: tuple) -> dict:
    """The toy json with values replaced; a change is the path of keys and then the value, or GONE."""
    data = copy.deepcopy(GOOD)
    for *path, last, value in changes:
        entry = data
        for key in path:
            entry = entry[key]
        if value is GONE:
            del entry[last]
        else:
            entry[last] = value
    return data


def image(key, value, index=0):
    return ("images", index, key, value)


def annotation(key, value, index=0):
    return ("annotations", index, key, value)


def without_class_ids(**names):
    """Changes that replace every class_id by what `names` says of image 0, 1, ... (file_name or class_name)."""
    (key, values), *_ = names.items()
    return [change for i, v in enumerate(values) for change in (image("class_id", GONE, i), image(key, v, i))]


LAMPS = ("lamp", "plain", "sign", "lamp")
FOLDERS = [f"{name}/{i}.png" for i, name in enumerate(LAMPS)]
NO_CLASSES = ("classes", GONE)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [("info", GONE), ("licenses", GONE)],
        [image("part_supervision", GONE)],
        [image("part_supervision", "partial")],
        [image("ignore_segmentation", GONE)],
        [image("ignore_segmentation", None)],
        [image("ignore_segmentation", encode(np.zeros((SIZE, SIZE))))],
        [image("source", None)],
        [image("source", {"crop_xyxy": None})],
        [image("source", {"crop_xyxy": [3, 5, 3 + SIZE, 5 + SIZE]})],
        [annotation("segmentation", GONE)],
        [annotation("segmentation", [POLYGON, [0, 0, 3, 0, 3, 3, 0, 3]]), annotation("bbox", [0, 0, 12, 12])],
        [annotation("segmentation", [[-5, 4, 12, 4, 12, SIZE + 5]]), annotation("bbox", [0, 4, 12, SIZE - 4])],
        [annotation("bbox", [2.5, 5.5, 10, 8])],
        [image("id", 2**63 - 1, 3)],
        [annotation("is_target", 0)],
        [annotation("is_target", 1)],
        [annotation("iscrowd", GONE)],
        [annotation("id", 10**30)],
        [annotation("area", 64)],
        [annotation("bbox", [0, 0, SIZE, SIZE]), annotation("segmentation", encode(np.ones((SIZE, SIZE))))],
        [annotation("bbox", [-0.5, -0.5, SIZE + 1, SIZE + 1]), annotation("segmentation", GONE)],
        [("classes", 0, "part_category_ids", [1, 2, 3])],
        without_class_ids(class_name=LAMPS),
        without_class_ids(file_name=FOLDERS),
        [NO_CLASSES, *(image("class_id", 1, i) for i in range(4))],
        [NO_CLASSES, *without_class_ids(class_name=("lamp", "lamp", "sign", "sign"))],
        [("annotations", []), ("categories", []), *(("classes", i, "part_category_ids", []) for i in range(3))],
    ],
)
def test_good_files(changes):
    assert list(violations(changed(*changes))) == []


ID_RULE = "id must be an integer from 1 on, is {} (COCO tools misread 0)"
NAME_RULE = "file_name must be a non-empty string, is"
UNFILLED = "has counts that do not fill its 32 x 32 pixels: encode it again"
CROP_RULE = "source.crop_xyxy must be four integers, is"
POLYGON_RULE = "must be a polygon [x, y, x, y, ...] of 3 or more points"
AREA_RULE = "area must be a positive number of pixels, is"
IMAGE_ID_RULE = "image_id {} is not the id of any image"
EMPTY_SEGMENTATION = "segmentation is empty: leave the key out where there is only a box"
NO_CLASS_ID = "class_id {} is not the id of any entry of `classes`"

# key, its broken value, and what follows the location
IMAGE_CASES = [
    ("file_name", GONE, f"{NAME_RULE} None"),
    ("file_name", "", f"{NAME_RULE} ''"),
    ("file_name", 7, f"{NAME_RULE} 7"),
    ("width", 0, "width must be a positive integer, is 0"),
    ("width", 32.0, "width must be a positive integer, is 32.0"),
    ("width", True, "width must be a positive integer, is True"),
    ("height", GONE, "height must be a positive integer, is None"),
    ("height", math.nan, "height must be a positive integer, is nan"),
    ("class_id", 4, NO_CLASS_ID.format(4)),
    ("class_id", True, NO_CLASS_ID.format(True)),
    ("class_id", None, NO_CLASS_ID.format(None)),
    ("class_id", [1], NO_CLASS_ID.format([1])),
    ("class_id", GONE, NO_CLASS),
    ("part_supervision", "some", f"{SUPERVISION_RULE} 'some'"),
    ("part_supervision", None, f"{SUPERVISION_RULE} None"),
    ("part_supervision", ["full"], f"{SUPERVISION_RULE} ['full']"),
    ("ignore_segmentation", [POLYGON], f"ignore_segmentation {RLE_RULE}"),
    (
        "ignore_segmentation",
        encode(np.zeros((SIZE, SIZE + 1))),
        "ignore_segmentation has size [32, 33], the image is [32, 32]",
    ),
    ("ignore_segmentation", {"size": [SIZE, SIZE], "counts": "P"}, f"ignore_segmentation {UNFILLED}"),
    ("source", [1], "source must be a json object, is [1]"),
    ("source", {"crop_xyxy": 5}, f"{CROP_RULE} 5"),
    ("source", {"crop_xyxy": [0, 0, 32.0, 32]}, f"{CROP_RULE} [0, 0, 32.0, 32]"),
    ("source", {"crop_xyxy": [False, 0, 32, 32]}, f"{CROP_RULE} [False, 0, 32, 32]"),
    ("source", {"crop_xyxy": [0, 32, 32]}, f"{CROP_RULE} [0, 32, 32]"),
    ("source", {"crop_xyxy": [-1, 0, 31, 32]}, "source.crop_xyxy [-1, 0, 31, 32] leaves the source image: clip it"),
    (
        "source",
        {"crop_xyxy": [10, 10, 32, 32]},
        "source.crop_xyxy [10, 10, 32, 32] does not have the image's width and height",
    ),
]

ANNOTATION_CASES = [
    ("image_id", 9, IMAGE_ID_RULE.format(9)),
    ("image_id", "1", IMAGE_ID_RULE.format("'1'")),
    ("image_id", 1.0, IMAGE_ID_RULE.format(1.0)),
    ("image_id", True, IMAGE_ID_RULE.format(True)),
    ("image_id", [1], IMAGE_ID_RULE.format([1])),
    ("image_id", GONE, IMAGE_ID_RULE.format(None)),
    ("category_id", 4, "category_id 4 is not the id of any category"),
    ("category_id", True, "category_id True is not the id of any category"),
    ("category_id", "2", "category_id '2' is not the id of any category"),
    ("iscrowd", 1, "iscrowd must be 0: put regions that count nowhere into the image's ignore_segmentation"),
    ("is_target", 2, "is_target must be 0 or 1, is 2"),
    ("is_target", "yes", "is_target must be 0 or 1, is 'yes'"),
    ("is_target", True, "is_target must be 0 or 1, is True"),
    ("area", 0, f"{AREA_RULE} 0"),
    ("area", math.nan, f"{AREA_RULE} nan"),
    ("area", GONE, f"{AREA_RULE} None"),
    ("area", True, f"{AREA_RULE} True"),
    ("area", 10**400, f"{AREA_RULE} {10**400}"),
    ("bbox", GONE, f"{BOX_RULE} None"),
    ("bbox", [1, 2, 3], f"{BOX_RULE} [1, 2, 3]"),
    ("bbox", ["1", 2, 3, 4], f"{BOX_RULE} ['1', 2, 3, 4]"),
    ("bbox", [True, 2, 3, 4], f"{BOX_RULE} [True, 2, 3, 4]"),
    ("bbox", [math.nan, 2, 3, 4], f"{BOX_RULE} [nan, 2, 3, 4]"),
    ("bbox", [0, 2, math.inf, 4], f"{BOX_RULE} [0, 2, inf, 4]"),
    ("bbox", [0, 2, 10**400, 4], f"{BOX_RULE} [0, 2, {10**400}, 4]"),
    ("bbox", [4, 4, 0, 8], "bbox [4, 4, 0, 8] must have positive width and height"),
    ("bbox", [-1, 4, 8, 8], "bbox [-1, 4, 8, 8] leaves the image of 32 x 32 pixels: clip it"),
    ("bbox", [4, 4, 8, 28.6], "bbox [4, 4, 8, 28.6] leaves the image of 32 x 32 pixels: clip it"),
    ("segmentation", [], EMPTY_SEGMENTATION),
    ("segmentation", None, EMPTY_SEGMENTATION),
    ("segmentation", [POLYGON, [1, 1, 5, 5]], f"segmentation[1] {POLYGON_RULE}"),
    ("segmentation", [[*POLYGON, 1]], f"segmentation[0] {POLYGON_RULE}"),
    ("segmentation", [1], f"segmentation[0] {POLYGON_RULE}"),
    ("segmentation", [[[1, 1]] * 6], f"segmentation[0] {POLYGON_RULE}"),
    ("segmentation", [[math.nan, *POLYGON[1:]]], f"segmentation[0] {POLYGON_RULE}"),
    (
        "segmentation",
        [[400, 4, 480, 4, 480, 12]],
        "segmentation[0] reaches far outside the image of 32 x 32 pixels: clip it",
    ),
    ("segmentation", {"size": [SIZE, SIZE], "counts": [0, 1024]}, f"segmentation {RLE_RULE}"),
    ("segmentation", {"counts": FULL_RLE["counts"]}, "segmentation has size None, the image is [32, 32]"),
    ("segmentation", {**FULL_RLE, "size": [32.0, 32]}, "segmentation has size [32.0, 32], the image is [32, 32]"),
    ("segmentation", {**encode(np.ones((SIZE, 40))), "size": [SIZE, SIZE]}, f"segmentation {UNFILLED}"),
    ("segmentation", {**encode(np.ones((SIZE, 20))), "size": [SIZE, SIZE]}, f"segmentation {UNFILLED}"),
    *(  # counts that stop inside a number, none, of other characters, of too many bits
        ("segmentation", {"size": [SIZE, SIZE], "counts": counts}, f"segmentation {UNFILLED}")
        for counts in ("P", "", "\ud800\x00", "P" * 20 + "0")
    ),
    ("segmentation", encode(np.zeros((SIZE, SIZE))), "segmentation has no pixel: leave the annotation out"),
]

OTHER_CASES = {
    "folder of no class": ([image("class_id", GONE), image("file_name", "lamb/1.png")], [f"{LAMP}: {NO_CLASS}"]),
    "class_name of no class": (
        [image("class_id", GONE), image("class_name", "lamb")],
        [f"{LAMP}: class_name 'lamb' is not the name of any entry of `classes`"],
    ),
    "image id twice": ([image("id", 1, 1)], ["images[1]: id 1 is already used by images[0]"]),
    "image no object": ([("images", 1, ["2.png"])], ["images[1]: must be a json object, is list"]),
    "annotation id twice": ([annotation("id", 2)], ["annotations[1]: id 2 is already used by annotations[0]"]),
    "annotation no object": ([("annotations", 0, None)], ["annotations[0]: must be a json object, is NoneType"]),
    "parts where there are none": (
        [image("part_supervision", "none", 2)],
        [f"{BOARD}: belongs to image 3 whose part_supervision is 'none'"],
    ),
    "category id a bool": (
        [("categories", 0, "id", True)],
        [
            f"categories[0]: {ID_RULE.format(True)}",
            "classes[0]: part_category_ids [1] are not category ids",
            f"{BASE}: category_id 1 is not the id of any category",
        ],
    ),
    "categories out of order": (
        [("categories", GOOD["categories"][::-1])],
        ["categories: must be sorted by id, the index of a part is its rank"],
    ),
    "category name twice": (
        [("categories", 1, "name", "lamp:base")],
        ["categories[1]: name 'lamp:base' is already used by categories[0]"],
    ),
    "category without name": (
        [("categories", 1, "name", GONE)],
        ["categories[1]: name must be a non-empty string, is None"],
    ),
    "category no object": (
        [("categories", 1, "lamp:shade")],
        [
            "categories[1]: must be a json object, is str",
            "classes[0]: part_category_ids [2] are not category ids",
            f"{SHADE}: category_id 2 is not the id of any category",
        ],
    ),
    "class id twice": (
        [("classes", 1, "id", 3), image("class_id", 3, 1)],
        ["classes[2]: id 3 is already used by classes[1]"],
    ),
    "class name twice": ([("classes", 1, "name", "lamp")], ["classes[1]: name 'lamp' is already used by classes[0]"]),
    # Broken classes are one sentence, not one more for each image.
    "class without name": ([("classes", 1, "name", "")], ["classes[1]: name must be a non-empty string, is ''"]),
    "class with half a character": (
        [("classes", 1, "name", "\ud800")],
        ["classes[1]: name must be text that can be written as UTF-8, is '\\ud800'"],
    ),
    "classes empty": ([("classes", [])], ["classes: must be a list with at least one {id, name, part_category_ids}"]),
    "class no object": ([("classes", 1, "plain")], ["classes[1]: must be a json object, is str"]),
    "class without parts list": (
        [("classes", 1, "part_category_ids", GONE)],
        ["classes[1]: part_category_ids must be a list (may be empty), is None"],
    ),
    "class of unknown parts": (
        [("classes", 1, "part_category_ids", [1, 9, "sign:board", True])],
        ["classes[1]: part_category_ids [9, 'sign:board', True] are not category ids"],
    ),
    "class of a part twice": (
        [("classes", 2, "part_category_ids", [3, 3])],
        ["classes[2]: part_category_ids [3, 3] name a category twice"],
    ),
    "classes cannot be derived": (
        [NO_CLASSES, ("categories", 2, {"id": 3, "name": "board"})],
        [
            "classes: cannot be derived from the categories: the json has no `classes` and category 'board' names "
            'no object: add `classes`, or a `supercategory`, or call it "object:part"'
        ],
    ),
    "no class nor category": (
        [NO_CLASSES, ("categories", []), ("annotations", [])],
        ["classes: must be given where there are no categories"],
    ),
    "no derived class of that id": ([NO_CLASSES], [f"{SIGN}: {NO_CLASS_ID.format(3)}"]),
    "no images": ([("images", []), ("annotations", [])], ["images: is empty"]),
    "no lists": (
        [("images", GONE), ("annotations", {}), ("categories", None)],
        ["the file: must have the lists images, annotations, categories"],
    ),
    "one list missing": ([("annotations", GONE)], ["the file: must have the lists annotations"]),
}


@pytest.mark.parametrize(("key", "value", "text"), IMAGE_CASES, ids=name_case)
def test_one_broken_rule_of_images(key, value, text):
    assert list(violations(changed(image(key, value)))) == [f"{LAMP}: {text}"]


@pytest.mark.parametrize(("key", "value", "text"), ANNOTATION_CASES, ids=name_case)
def test_one_broken_rule_of_annotations(key, value, text):
    assert list(violations(changed(annotation(key, value)))) == [f"{SHADE}: {text}"]


@pytest.mark.parametrize("entries", ["images", "annotations", "classes"])
@pytest.mark.parametrize("value", [0, -1, True, "2", 1.0, None, GONE])
def test_ids_are_integers_from_one(entries, value):
    # Of image and class 2 no other entry speaks.
    found = list(violations(changed((entries, 1, "id", value), image("class_id", 1, 1))))
    assert found == [f"{entries}[1]: {ID_RULE.format(repr(None if value is GONE else value))}"]


@pytest.mark.parametrize(("changes", "expected"), OTHER_CASES.values(), ids=OTHER_CASES)
def test_one_broken_rule(changes, expected):
    assert list(violations(changed(*changes))) == expected


AGREEMENT = "disagrees with the segmentation, whose box is {}: correct one of them"


@pytest.mark.parametrize(
    "segmentation, box, expected",
    [
        (FULL_RLE, [0, 0, SIZE, SIZE], f"bbox [0, 0, 32, 32] {AGREEMENT.format([4.0, 4.0, 8.0, 8.0])}"),
        (FULL_RLE, [4, 4, 11, 8], f"bbox [4, 4, 11, 8] {AGREEMENT.format([4.0, 4.0, 8.0, 8.0])}"),
        ([POLYGON], [20, 20, 8, 8], f"bbox [20, 20, 8, 8] {AGREEMENT.format([5.0, 4.0, 7.0, 7.0])}"),
        ([[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]], [4, 4, 1, 1], "segmentation covers no pixel of the image"),
        ([[-9, 4, -5, 4, -5, 9]], [0, 4, 4, 5], "segmentation covers no pixel of the image"),
        # A spike too thin for a pixel does not make the box of the pixels wrong.
        ([[4, 4, 12, 4, 12, 12, 4, 12, 4, 8.1, 0.5, 8, 4, 7.9]], [4, 4, 8, 8], None),
        ([[0.5, 0.1, 0.9, 0.1, 0.9, 0.8]], [0.5, 0.1, 0.4, 0.7], "segmentation covers no pixel of the image"),
    ],
)
def test_box_and_mask_belong_together(segmentation, box, expected):
    found = list(violations(changed(annotation("segmentation", segmentation), annotation("bbox", box))))
    assert len(found) == (expected is not None)
    assert expected is None or found[0].startswith(f"{SHADE}: {expected}")


def test_normalised_coordinates_are_no_pixels():
    boxes = [annotation("bbox", [0.1, 0.2, 0.5, 0.4], i) for i in range(len(GOOD["annotations"]))]
    masks = [annotation("segmentation", GONE, i) for i in range(len(GOOD["annotations"]))]
    (found,) = violations(changed(*boxes, *masks))
    assert "lie between 0 and 1, so they look normalised" in found


def test_image_ids_fit_a_tensor():
    data = changed(image("id", 2**63, 3))
    assert f"images[3]: id must be below 2**63, is {2**63}" in list(violations(data))


@pytest.mark.parametrize("data", [None, 3, "x", [], [GOOD]])
def test_no_object_at_all(data):
    assert list(violations(data)) == ["the file: must be a json object with images, annotations and categories"]


def test_many_at_once_are_all_named():
    changes = [
        annotation("iscrowd", 1),
        annotation("area", -1),
        image("width", 0, 1),
        image("class_id", 4),
        image("part_supervision", "all"),
        ("categories", 1, "name", "lamp:base"),
        ("classes", 2, "part_category_ids", [3, 3]),
    ]
    assert list(violations(changed(*changes))) == [
        *OTHER_CASES["category name twice"][1],
        *OTHER_CASES["class of a part twice"][1],
        f"{LAMP}: {SUPERVISION_RULE} 'all'",
        f"{LAMP}: {NO_CLASS_ID.format(4)}",
        "images[1] (id 2): width must be a positive integer, is 0",
        f"{SHADE}: iscrowd must be 0: put regions that count nowhere into the image's ignore_segmentation",
        f"{SHADE}: {AREA_RULE} -1",
    ]


def test_the_other_side_of_a_broken_image_is_not_blamed():
    """A wrong height is said once, not again for every mask and box of the image."""
    data = changed(image("height", "32"), image("source", {"crop_xyxy": [0, 0, 9, 9]}))
    assert list(violations(data)) == [f"{LAMP}: height must be a positive integer, is '32'"]


# --- RLE ---


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.001, 0.05, 0.5, 0.999, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_run_lengths_are_those_of_the_mask(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = run_lengths(encode(mask)["counts"])
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.T.ravel())


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_run_lengths_of_any_accepted_string_are_those_pycocotools_reads(runs):
    size = [sum(runs) or 1, 1]
    rle = coco_mask.frPyObjects({"size": size, "counts": runs if sum(runs) else [1]}, *size)
    assert run_lengths(rle["counts"].decode()).tolist() == (runs if sum(runs) else [1])


# --- any json ---

NUMBERS = st.one_of(
    st.booleans(), st.integers(-3, 40), st.integers(), st.floats(), st.sampled_from([10**400, -(10**400)])
)
WORDS = st.one_of(
    st.text(max_size=5), st.sampled_from(["lamp", "full", "none", "lamp:base", "1", "PP0", FULL_RLE["counts"]])
)
KEYS = sorted({key for part in ("images", "annotations", "categories", "classes") for e in GOOD[part] for key in e})
KEYS += ["images", "annotations", "categories", "classes", "source", "crop_xyxy", "size", "counts", "is_target"]
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(JSON, st.data())
def test_never_raises_on_any_json(value, data):
    """Any json by itself; as the lists of a file; and in the place of any value of a good file."""
    assert all(isinstance(text, str) for text in violations(value))
    lists = {key: value if isinstance(value, list) else [value] for key in ("images", "annotations", "categories")}
    assert all(isinstance(text, str) for text in violations({**lists, "classes": value}))

    good = copy.deepcopy(GOOD)
    if data.draw(st.booleans(), label="derive the classes"):
        del good["classes"]
    entry = good
    while True:
        keys = list(entry) if isinstance(entry, dict) else list(range(len(entry)))
        key = data.draw(st.sampled_from(keys), label="key")
        if not isinstance(entry[key], (dict, list)) or not entry[key] or data.draw(st.booleans(), label="replace"):
            break
        entry = entry[key]
    entry[key] = value
    assert all(isinstance(text, str) for text in violations(good))

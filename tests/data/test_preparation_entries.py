"""Published annotation files that are broken: one sentence with the file and the entry."""

from __future__ import annotations

import json

import pytest

from part_robust.data.preparation.entries import read_entries
from part_robust.data.preparation.paco_source import read_paco_file
from part_robust.data.preparation.report import PreparationCounts

REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


def paco() -> dict:
    return {
        "images": [{"id": 1, "file_name": "train2017/1.jpg", "width": 64, "height": 48}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": []},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "segmentation": [], "obj_ann_id": 1},
        ],
        "categories": [
            {"id": 1, "name": "cup", "supercategory": "OBJECT"},
            {"id": 2, "name": "cup:rim", "supercategory": "PART"},
        ],
    }


CHANGES = {
    "width null": (lambda d: d["images"][0].update(width=None), "has no 'width'"),
    "width 0": (lambda d: d["images"][0].update(width=0), "has the width 0: it must be a number from 1 on"),
    "no category id": (lambda d: d["categories"][0].pop("id"), r"categories\[0\] has no 'id'"),
    "image id a list": (lambda d: d["images"][0].update(id=[1]), r"id is \[1\]: it must be a whole number"),
    "no category": (lambda d: d["annotations"][1].pop("category_id"), "annotation|lacks what PACO's files have"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_broken_entries_are_named(tmp_path, case):
    change, sentence = CHANGES[case]
    data = paco()
    change(data)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(data))
    for read in (lambda: read_entries(path, REQUIRED), lambda: read_paco_file(path, "lvis", "train", masks=True)):
        with pytest.raises(ValueError, match=sentence) as error:
            read()
        assert str(path) in str(error.value)


def test_ids_as_text_web_addresses_and_byte_order_marks(tmp_path):
    data = paco()
    data["images"][0].update(id="1", coco_url="http://images.cocodataset.org/train2017/1.jpg")
    del data["images"][0]["file_name"]
    for annotation in data["annotations"]:
        annotation["image_id"] = "1"
    (tmp_path / "train.json").write_text(json.dumps(data), encoding="utf-8-sig")
    found = read_paco_file(tmp_path / "train.json", "lvis", "train", masks=True)
    assert found.images[1].file_name == "train2017/1.jpg"
    assert [len(entry.parts) for entry in found.objects[1]] == [1]


def test_parts_of_no_object_are_refused(tmp_path):
    data = paco()
    del data["annotations"][1]["obj_ann_id"]
    (tmp_path / "train.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="none of 1 parts belongs to an object"):
        read_paco_file(tmp_path / "train.json", "lvis", "train", masks=True, tally=PreparationCounts())

"""Names and the part-to-class matrix, read from the json or derived from the spelling of its parts."""

from __future__ import annotations

import numpy as np
import pytest

from part_robust.data.taxonomy import PartTaxonomy, bare_part_name, derive_classes, object_of_part, taxonomy_from_json


def categories(*names: str, supercategory: str = "") -> list[dict]:
    return [{"id": i, "name": name, "supercategory": supercategory} for i, name in enumerate(names, 1)]


def test_matrix_with_a_shared_part_and_a_class_without_parts():
    taxonomy = taxonomy_from_json(
        {
            "categories": [{"id": i, "name": name} for i, name in ((3, "wheel"), (7, "handlebar"), (20, "door"))],
            "classes": [
                {"id": 2, "name": "car", "part_category_ids": [20, 3]},
                {"id": 4, "name": "napkin", "part_category_ids": []},
                {"id": 5, "name": "bicycle", "part_category_ids": [3, 7]},
            ],
        }
    )
    assert taxonomy.class_names == ("car", "napkin", "bicycle")
    assert taxonomy.part_names == ("wheel", "handlebar", "door")
    assert taxonomy.part_ids == (3, 7, 20)
    assert taxonomy.class_parts == ((0, 2), (), (0, 1))
    assert (taxonomy.num_classes, taxonomy.num_parts) == (3, 3)
    assert taxonomy.classes_without_parts == ("napkin",)
    matrix = taxonomy.part_to_class
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_index_is_the_rank_of_the_id_whatever_the_order_of_the_file():
    data = {
        "categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "z"}],
        "classes": [{"id": 8, "name": "second", "part_category_ids": [9]}, {"id": 1, "name": "first"}],
    }
    taxonomy = taxonomy_from_json(data)
    assert taxonomy.part_names == ("z", "b")
    assert taxonomy.class_names == ("first", "second")
    assert taxonomy.class_parts == ((), (1,))
    assert taxonomy == taxonomy_from_json({key: entries[::-1] for key, entries in data.items()})


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ({"name": "bottle:cap"}, "bottle"),
        ({"name": "bottle:cap", "supercategory": ""}, "bottle"),
        ({"name": "bottle:cap", "supercategory": None}, "bottle"),
        ({"name": "bottle:cap", "supercategory": "container"}, "container"),
        ({"name": "clock:hand:tip"}, "clock"),
        ({"name": "cap", "supercategory": "bottle"}, "bottle"),
        ({"name": "cap"}, None),
    ],
)
def test_object_of_a_part(category, expected):
    assert object_of_part(category) == expected


@pytest.mark.parametrize(("name", "bare"), [("bottle:cap", "cap"), ("cap", "cap"), ("clock:hand:tip", "hand:tip")])
def test_bare_part_name(name, bare):
    assert bare_part_name(name) == bare


def test_classes_derived_from_supercategory_or_spelling_are_sorted_by_name():
    derived = derive_classes(
        [*categories("sign:board", "lamp:shade", "lamp:base"), {"id": 9, "name": "x", "supercategory": "a"}]
    )
    assert derived == [
        {"id": 1, "name": "a", "part_category_ids": [9]},
        {"id": 2, "name": "lamp", "part_category_ids": [2, 3]},
        {"id": 3, "name": "sign", "part_category_ids": [1]},
    ]


def test_a_part_of_no_object_is_named():
    with pytest.raises(ValueError, match="category 'board' names no object: add `classes`, or a `supercategory`"):
        derive_classes(categories("lamp:base", "board"))


@pytest.mark.parametrize(("num_parts", "ignore"), [(1, 255), (254, 255), (255, 65535), (456, 65535)])
def test_ignore_label_is_never_a_part_nor_background(num_parts, ignore):
    names = tuple(f"part{i}" for i in range(num_parts))
    taxonomy = PartTaxonomy(class_names=("thing",), part_names=names, class_parts=(tuple(range(num_parts)),))
    assert taxonomy.ignore_label == ignore
    assert taxonomy.ignore_label > num_parts  # label of the background


def test_a_file_without_parts_has_a_matrix_of_no_rows():
    taxonomy = taxonomy_from_json({"categories": [], "classes": [{"id": 1, "name": "a", "part_category_ids": []}]})
    assert taxonomy.part_to_class.shape == (0, 1)

"""Reading a part json: order, indices, classes by id, name or folder, and one clear sentence about what is wrong."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.data import PartDatasetMapper
from part_robust.data.check import main
from part_robust.data.part_json import load_part_json, parse_json, read_part_json
from tests.toy import SIZE, toy_json, write_toy

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


PAGE = Path(__file__).parents[2] / "docs" / "data_format.md"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def toy(tmp_path) -> tuple[dict, Path, Path]:
    """The toy json as a value to change, where to write it, and the image root."""
    path, root = write_toy(tmp_path)
    return json.loads(path.read_text()), path, root


def load(data: dict, path: Path, root: Path) -> list[dict]:
    path.write_text(json.dumps(data))
    return load_part_json(path, root)[0]


# --- records ---


def test_records_say_what_the_json_says(toy):
    data, path, root = toy
    records, taxonomy = load_part_json(path, root)
    assert len(records) == 12
    assert taxonomy.class_names == ("lamp", "plain", "sign")
    for record, image in zip(records, data["images"], strict=True):
        own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        assert record["file_name"] == os.path.join(root, image["file_name"])
        assert (record["height"], record["width"], record["image_id"]) == (SIZE, SIZE, image["id"])
        assert record["class_id"] == image["class_id"] - 1
        assert record["part_supervision"] == image["part_supervision"]
        assert record.get("ignore_segmentation") == image.get("ignore_segmentation")
        assert "crop_xyxy" not in record
        assert record["annotations"] == [
            {
                "id": a["id"],
                "bbox": a["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": a["category_id"] - 1,
                "area": a["area"],
                "iscrowd": 0,
                "is_target": 1,
                "segmentation": a["segmentation"],
            }
            for a in own
        ]
    assert {record["part_supervision"] for record in records} == {"full", "partial", "none"}


def test_images_without_parts_are_kept(toy):
    records, _ = load_part_json(*toy[1:])
    assert [r["image_id"] for r in records if not r["annotations"]] == [2, 4, 5, 8, 11]


def test_order_does_not_depend_on_the_files(toy):
    data, path, root = toy
    expected = load(data, path, root)
    assert [record["image_id"] for record in expected] == list(range(1, 13))
    shuffled = copy.deepcopy(data)
    generator = np.random.default_rng(0)
    for key in ("images", "annotations", "classes"):
        generator.shuffle(shuffled[key])
    assert shuffled["images"] != data["images"]
    assert load(shuffled, path, root) == expected


def test_ids_with_gaps_become_ranks(toy):
    data, path, root = toy
    expected = load(data, path, root)
    for entry in [*data["categories"], *data["classes"]]:
        entry["id"] *= 100
    for entry in data["classes"]:
        entry["part_category_ids"] = [100 * i for i in entry["part_category_ids"]]
    for entry in data["images"]:
        entry["class_id"] *= 100
    for entry in data["annotations"]:
        entry["category_id"] *= 100
    assert load(data, path, root) == expected


def test_optional_keys(toy):
    data, path, root = toy
    del data["images"][0]["part_supervision"]
    data["images"][0]["ignore_segmentation"] = None
    data["images"][2]["source"] = {"crop_xyxy": [1, 2, 1 + SIZE, 2 + SIZE]}
    data["images"][4]["source"] = {"dataset": "mine"}
    del data["annotations"][0]["segmentation"]
    del data["annotations"][0]["iscrowd"]
    data["annotations"][0]["is_target"] = 0
    records = load(data, path, root)
    assert records[0]["part_supervision"] == "full"
    assert "ignore_segmentation" not in records[0]
    assert records[2]["crop_xyxy"] == [1, 2, 1 + SIZE, 2 + SIZE]
    assert "crop_xyxy" not in records[4]
    first, second = records[0]["annotations"]
    assert "segmentation" not in first and "segmentation" in second
    assert (first["iscrowd"], first["is_target"], second["is_target"]) == (0, 0, 1)


# --- classes ---


def test_class_by_name_or_folder_is_that_by_id(toy):
    data, path, root = toy
    expected = [record["class_id"] for record in load(data, path, root)]
    names = {c["id"]: c["name"] for c in data["classes"]}
    by_name, by_folder = copy.deepcopy(data), copy.deepcopy(data)
    for image in by_name["images"]:
        image["class_name"] = names[image.pop("class_id")]
    assert [record["class_id"] for record in load(by_name, path, root)] == expected
    for image in by_folder["images"]:
        folder = names[image.pop("class_id")]
        (root / folder).mkdir(exist_ok=True)
        (root / image["file_name"]).rename(root / folder / image["file_name"])
        image["file_name"] = f"{folder}/{image['file_name']}"
    assert [record["class_id"] for record in load(by_folder, path, root)] == expected


def test_class_id_goes_before_class_name_before_folder(toy):
    data, path, root = toy
    (root / "sign").mkdir()
    for index in range(3):
        (root / f"{index + 1}.png").rename(root / f"sign/{index + 1}.png")
        data["images"][index]["file_name"] = f"sign/{index + 1}.png"
    data["images"][0].update(class_id=1, class_name="plain")
    data["images"][1].update(class_name="plain")
    del data["images"][1]["class_id"], data["images"][2]["class_id"]
    assert [record["class_id"] for record in load(data, path, root)[:3]] == [0, 1, 2]


@pytest.mark.parametrize("spelling", ["supercategory", "object:part"])
def test_classes_are_derived(toy, spelling):
    data, path, root = toy
    del data["classes"]
    data["images"] = [image for image in data["images"] if image["class_id"] != 2]
    for image in data["images"]:
        image["class_name"] = {1: "lamp", 3: "sign"}[image.pop("class_id")]
    for category in data["categories"]:
        if spelling == "object:part":
            del category["supercategory"]
        else:
            category["name"] = category["name"].split(":")[1]
    path.write_text(json.dumps(data))
    records, taxonomy = load_part_json(path, root)
    assert taxonomy.class_names == ("lamp", "sign")
    assert taxonomy.class_parts == ((0, 1), (2,))
    assert [record["class_id"] for record in records] == [0, 1] * 4


# --- what is wrong ---


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotation file .*/no\.json does not exist"):
        load_part_json(tmp_path / "no.json", tmp_path)
    with pytest.raises(ValueError, match="must be an annotation file, got a folder"):
        read_part_json(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b"[" + b"9" * 5000 + b"]"],
    ids=["empty", "cut", "no text", "too deep", "number too long"],
)
def test_not_json(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not valid json: "):
        read_part_json(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_encoding_of_json(tmp_path, encoding):
    data, _ = toy_json()
    data["classes"][0]["name"] = "Lämpchen"
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding=encoding)
    assert parse_json(path) == data


def test_broken_rules_are_named_with_the_way_to_all_of_them(toy):
    data, path, root = toy
    data["images"][0]["width"] = 0
    with pytest.raises(ValueError) as info:
        load(data, path, root)
    assert str(info.value) == (
        f"{path} breaks the part format: images[0] (id 1): width must be a positive integer, is 0. "
        f"All of it: python -m part_robust.data.check {path}"
    )
    for image in data["images"][:5]:
        image["class_id"] = 7
    with pytest.raises(ValueError, match=r"images\[1\] \(id 2\): class_id 7 .*; and more\. All of it") as info:
        load(data, path, root)
    assert "images[2]" not in str(info.value)


def test_missing_images_are_named(toy):
    data, path, root = toy
    for name in ("3.png", "5.png", "6.png", "7.png"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError) as info:
        load_part_json(path, root)
    shown = ", ".join(str(root / name) for name in ("3.png", "5.png", "6.png"))
    assert str(info.value) == (
        f"4 of 12 images of {path} do not exist, first: {shown}. "
        "Is image_root the folder that the json's file_name is relative to?"
    )
    with pytest.raises(FileNotFoundError, match="12 of 12 images"):
        load_part_json(path, root / "nowhere")


def test_file_names_may_be_absolute(toy):
    data, path, root = toy
    for image in data["images"]:
        image["file_name"] = str(root / image["file_name"])
    assert load(data, path, Path("/nowhere"))[0]["file_name"] == str(root / "1.png")


# --- stock COCO tools read the same file ---


def test_stock_detectron2_loader_reads_the_same_parts(toy):
    _, path, root = toy
    ours, _ = load_part_json(path, root)
    theirs = load_coco_json(str(path), str(root), "stock")
    MetadataCatalog.remove("stock")
    assert len(theirs) == len(ours) == 12
    for our, their in zip(ours, theirs, strict=True):
        for key in ("file_name", "height", "width", "image_id"):
            assert our[key] == their[key]
        for mine, stock in zip(our["annotations"], their["annotations"], strict=True):
            assert {key: mine[key] for key in stock} == stock
        assert "class_id" not in their


def test_pycocotools_gives_a_perfect_score_to_the_truth(toy, capsys):
    data, path, _ = toy
    coco = COCO(str(path))
    assert sorted(coco.getImgIds()) == list(range(1, 13))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [c["name"] for c in data["categories"]]
    truth = [{**a, "score": 1.0} for a in data["annotations"]]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(truth)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)
    capsys.readouterr()


# --- docs/data_format.md ---


@pytest.fixture
def documented(tmp_path) -> tuple[Path, Path]:
    """The page's example as written, and image files for it."""
    path = tmp_path / "example.json"
    path.write_text(code_blocks("json")[0])
    for image in json.loads(path.read_text())["images"]:
        file = tmp_path / image["file_name"]
        file.parent.mkdir(exist_ok=True)
        left, top, right, bottom = image.get("source", {}).get("crop_xyxy", [0, 0, image["width"], image["height"]])
        Image.new("RGB", (right, bottom), (left, top, 0)).save(file)
    return path, tmp_path


def test_documented_example_is_good(documented, capsys):
    path, root = documented
    assert main([str(path), "--image-root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "3 images, 2 classes, 2 parts, 3 part annotations (1 with a box only)",
        "part_supervision: full 1, none 1, partial 1",
        "classes without parts: napkin",
    ]
    assert len(COCO(str(path)).getAnnIds()) == 3
    capsys.readouterr()


def test_documented_example_gives_the_label_maps_it_describes(documented):
    records, taxonomy = load_part_json(*documented)
    assert [record["class_id"] for record in records] == [0, 0, 1]
    masks, boxes = (
        PartDatasetMapper(augmentations=[], num_parts=2, ignore_label=taxonomy.ignore_label, masks_from=masks_from)
        for masks_from in ("masks", "boxes")
    )
    expected = np.full((60, 40), 2)
    expected[12:56, 12:28], expected[4:12, 16:24], expected[50:, 30:] = 0, 1, 255
    assert np.array_equal(masks(records[0])["sem_seg"], expected)
    assert np.array_equal(boxes(records[0])["sem_seg"], expected)
    # The second image has a box only, and is a window of its file.
    with pytest.raises(ValueError, match="annotation 3 has only a box"):
        masks(records[1])
    result = boxes(records[1])
    assert result["image"].shape == (3, 48, 32)
    expected = np.full((48, 32), 255)
    expected[2:9, 10:20] = 1
    assert np.array_equal(result["sem_seg"], expected)
    assert (masks(records[2])["sem_seg"] == 255).all()


def test_documented_snippet_makes_the_example_s_rle():
    scope: dict = {}
    exec(next(block for block in code_blocks("python") if "coco_mask" in block), scope)
    assert scope["segmentation"] == json.loads(code_blocks("json")[0])["annotations"][1]["segmentation"]

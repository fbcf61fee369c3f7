"""Import of foreign COCO part files: every trap is mended and counted; the command line; real photographs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from part_robust.data.check import check_images
from part_robust.data.importers.classes import class_from_folder
from part_robust.data.importers.report import REASONS
from part_robust.data.part_json import load_part_json
from part_robust.data.validation import violations
from tests.data.coco_source import (
    CAR_PART_NAMES,
    CAR_RULE,
    ROOT,
    SQUARE,
    H,
    W,
    annotation,
    counted,
    many,
    picture,
    read,
    run,
    write_csv,
    write_source,
)

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


CAR_PARTS = ROOT.parent / "shared" / "data" / "car_parts"

# --- traps ---


def rle_of(rows: slice, columns: slice) -> dict:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[rows, columns] = 1
    return coco_mask.encode(np.asfortranarray(mask))


def list_counts(rows: slice, columns: slice) -> dict:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[rows, columns] = 1
    flat, counts, value = mask.ravel(order="F"), [], 0
    while len(flat):
        run_length = int(np.argmax(flat != value)) if (flat != value).any() else len(flat)
        counts.append(run_length)
        flat, value = flat[run_length:], 1 - value
    return {"size": [H, W], "counts": counts}


TEXT_RLE = {"size": [H, W], "counts": rle_of(slice(2, 5), slice(1, 9))["counts"].decode()}
# (annotation fields, expected counts, expected part or None where it is dropped)
SQUARE_PART = {"bbox": [2, 3, 6, 6], "area": 36}
TRAPS = {
    "good": ({}, {}, SQUARE_PART),
    "id 0": ({"id": 0}, {"annotation_id": 1}, SQUARE_PART),
    "id text": ({"id": "a7"}, {"annotation_id": 1}, SQUARE_PART),
    "2-point polygon": (
        {"segmentation": [[1, 1, 5, 5], SQUARE]},
        {"bad_polygon": 1},
        SQUARE_PART | {"segmentation": [SQUARE]},
    ),
    "3 points, 2 distinct": (
        {"segmentation": [[1, 1, 5, 5, 1, 1]]},
        {"bad_polygon": 1, "empty_segmentation": 1, "box_only": 1},
        SQUARE_PART,
    ),
    "odd polygon": ({"segmentation": [[*SQUARE, 4], SQUARE]}, {"bad_polygon": 1}, SQUARE_PART),
    "flat polygon": ({"segmentation": SQUARE}, {"flat_polygon": 1}, SQUARE_PART | {"segmentation": [SQUARE]}),
    "empty": ({"segmentation": []}, {"empty_segmentation": 1, "box_only": 1}, SQUARE_PART),
    "null": ({"segmentation": None}, {"empty_segmentation": 1, "box_only": 1}, SQUARE_PART),
    "empty, box outside in part": (
        {"segmentation": [], "bbox": [-4, 10, 10, 30]},
        {"empty_segmentation": 1, "box_only": 1, "box_clipped": 1},
        {"bbox": [0, 10, 6, 6], "area": 36},
    ),
    "empty, box outside": (
        {"segmentation": [], "bbox": [W, 0, 5, 5]},
        {"empty_segmentation": 1, "degenerate_box": 1},
        None,
    ),
    "empty, no box": ({"segmentation": [], "bbox": []}, {"empty_segmentation": 1, "degenerate_box": 1}, None),
    "empty, flat box": (
        {"segmentation": [], "bbox": [1, 1, 0, 4]},
        {"empty_segmentation": 1, "degenerate_box": 1},
        None,
    ),
    "box missing": ({"bbox": None}, {"box_replaced": 1}, SQUARE_PART),
    "box wrong": ({"bbox": [0, 0, 4, 4]}, {"box_replaced": 1}, SQUARE_PART),
    "box rounded": ({"bbox": [1.2, 2.5, 7.4, 7]}, {}, SQUARE_PART),
    "polygon outside in part": (
        {"segmentation": [[-6, 3, 4, 3, 4, 9, -6, 9]], "bbox": [-6, 3, 10, 6]},
        {"box_clipped": 1},
        {"bbox": [0, 3, 4, 6], "area": 24},
    ),
    "polygon outside": (
        {"segmentation": [[-9, 3, -2, 3, -2, 9, -9, 9]], "bbox": [-9, 3, 7, 6]},
        {"zero_area": 1},
        None,
    ),
    "area 0": ({"area": 0}, {}, SQUARE_PART),
    "compressed RLE": ({"segmentation": TEXT_RLE, "bbox": [1, 2, 8, 3]}, {}, {"bbox": [1, 2, 8, 3], "area": 24}),
    "list RLE": (
        {"segmentation": list_counts(slice(2, 5), slice(1, 9)), "bbox": [1, 2, 8, 3]},
        {"rle_list_counts": 1},
        {"bbox": [1, 2, 8, 3], "area": 24, "segmentation": TEXT_RLE},
    ),
    "list RLE too short": (
        {"segmentation": {"size": [H, W], "counts": [5, 5]}},
        {"rle_unusable": 1, "box_only": 1},
        SQUARE_PART,
    ),
    "RLE of another size": (
        {"segmentation": {**TEXT_RLE, "size": [W, H]}},
        {"rle_unusable": 1, "box_only": 1},
        SQUARE_PART,
    ),
    "compressed RLE, cut": (
        {"segmentation": {**TEXT_RLE, "counts": TEXT_RLE["counts"][:-2]}},
        {"rle_unusable": 1, "box_only": 1},
        SQUARE_PART,
    ),
    "compressed RLE, no RLE": (
        {"segmentation": {**TEXT_RLE, "counts": "\u20ac~"}},
        {"rle_unusable": 1, "box_only": 1},
        SQUARE_PART,
    ),
    "compressed RLE, no pixel": (
        {"segmentation": list_counts(slice(0, 0), slice(0, 0))},
        {"rle_list_counts": 1, "zero_area": 1},
        None,
    ),
    "RLE without counts": ({"segmentation": {"size": [H, W]}}, {"rle_unusable": 1, "box_only": 1}, SQUARE_PART),
    "crowd": ({"iscrowd": 1}, {"crowd_to_part": 1}, SQUARE_PART),
    "unknown image": ({"image_id": 77}, {"unknown_image": 1}, None),
    "unknown category": ({"category_id": 77}, {"unknown_category": 1}, None),
    "background": ({"category_id": 9}, {"background_annotation": 1}, None),
}
CATEGORIES = [
    {"id": 9, "name": "_background_"},
    {"id": 2, "name": "shade"},
    {"id": 1, "name": "base", "supercategory": ""},
]


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap, tmp_path):
    fields, expected, part = TRAPS[trap]
    source = write_source(tmp_path, ["a.png"], [annotation(5, category_id=2), {**annotation(1), **fields}], CATEGORIES)
    report = run(source, tmp_path / "out")
    data = read(tmp_path / "out")
    assert not list(violations(data)) and not check_images(data, tmp_path / "photos")
    lost = part is None and trap not in ("unknown image", "background")
    assert counted(report) == {"background_category": 1, **expected} | (
        {} if part else {"category_without_annotations": 1}
    ) | ({"image_with_lost_parts": 1} if lost else {})
    assert data["images"][0]["part_supervision"] == ("partial" if lost else "full"), "a lost part is not background"
    found = [a for a in data["annotations"] if a["category_id"] == 1]
    if part is None:
        assert not found
        return
    (found,) = found
    assert {key: found[key] for key in part} == part and found["iscrowd"] == 0
    assert ("segmentation" not in found) == ("box_only" in expected)
    assert COCO(str(tmp_path / "out/annotations/train.json")).loadAnns(found["id"])[0]["area"] == part["area"]


def test_all_traps_in_one_file(tmp_path):
    """Together they are counted as alone; ids come out unique, categories sorted, the report says the same."""
    # Alone they may look like the good one; together that would be a duplicate.
    together = {trap: rest for trap, rest in TRAPS.items() if trap not in ("good", "area 0", "id text")}
    raw = [annotation(100 + i) | fields for i, (fields, _, _) in enumerate(together.values())]
    source = write_source(tmp_path, ["a.png"], raw, CATEGORIES)
    report = run(source, tmp_path / "out")
    total: dict[str, int] = {"background_category": 1, "category_without_annotations": 1, "image_with_lost_parts": 1}
    for _, expected, _ in together.values():
        for reason, count in expected.items():
            total[reason] = total.get(reason, 0) + count
    assert counted(report) == total
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert counted(written) == total
    text = (tmp_path / "out/report.md").read_text()
    assert all(f"**{count}** {REASONS[reason][1]} (`{reason}`)" in text for reason, count in total.items())
    data = read(tmp_path / "out")
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    assert [c["name"] for c in data["categories"]] == ["base", "shade"]


def test_duplicates(tmp_path):
    raw = [annotation(3), annotation(3, category_id=2), annotation(4), annotation(5, image_id=3, bbox=[2, 3, 6, 6.5])]
    source = write_source(tmp_path, ["a.png", "b.png"], raw)
    data = json.loads(source.json_file.read_text())
    data["images"].append({"id": 3, "file_name": "a.png", "width": W, "height": H})
    data["categories"].append({"id": 7, "name": "base"})
    data["annotations"].append(annotation(6, image_id=2, category_id=7))
    source.json_file.write_text(json.dumps(data))
    report = run(source, tmp_path / "out")
    assert counted(report) == {
        "duplicate_annotation_id": 1,
        "duplicate_annotation": 1,
        "duplicate_image_entry": 1,
        "duplicate_category": 1,
    }
    result = read(tmp_path / "out")
    assert [(a["image_id"], a["category_id"]) for a in result["annotations"]] == [(1, 1), (1, 2), (1, 1), (2, 1)]


def test_crowd_may_be_ignored(tmp_path):
    raw = [annotation(1), annotation(2, category_id=2, iscrowd=1, segmentation=TEXT_RLE)]
    run(write_source(tmp_path, ["a.png"], raw), tmp_path / "out", crowd="ignore")
    data = read(tmp_path / "out")
    assert data["images"][0]["ignore_segmentation"] == TEXT_RLE
    assert len(data["annotations"]) == 1 and not list(violations(data))


@pytest.mark.parametrize("unannotated", ["none", "full"])
def test_images_without_parts_are_kept(tmp_path, unannotated):
    report = run(write_source(tmp_path, ["a.png", "b.png"], [annotation(1)]), tmp_path / "o", unannotated=unannotated)
    data = read(tmp_path / "o")
    assert [image["part_supervision"] for image in data["images"]] == ["full", unannotated]
    assert counted(report) == {"image_without_parts": 1, "category_without_annotations": 1}


@pytest.mark.parametrize(
    "size, exif, expected, reason",
    [
        ({}, 1, (W, H), None),
        ({"width": 0, "height": None}, 1, (W, H), "image_size_added"),
        ({"width": 0, "height": 0}, 6, (H, W), "image_size_added"),
        ({"width": H, "height": W}, 6, (H, W), None),  # annotated as a viewer shows it
        ({"width": W, "height": H}, 6, (W, H), None),  # annotated as it is stored
        ({"width": H, "height": W}, 1, None, "size_mismatch"),
        ({"width": W + 1, "height": H}, 1, None, "size_mismatch"),
    ],
)
def test_sizes_and_exif(tmp_path, size, exif, expected, reason):
    picture(tmp_path / "photos/b.jpg", 7, exif=exif)
    source = write_source(tmp_path, ["a.png", "b.jpg"], [annotation(1), annotation(2, 2)], sizes={"b.jpg": size})
    report = run(source, tmp_path / "out")
    data = read(tmp_path / "out")
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in data["images"]}
    assert sizes.get("b.jpg") == expected
    assert (counted(report).get(reason, 0) == 1) if reason else True
    assert counted(report).get("exif_orientation", 0) == (exif == 6)
    load_part_json(tmp_path / "out/annotations/train.json", tmp_path / "photos")


def test_unreadable_and_missing_images(tmp_path):
    source = write_source(tmp_path, ["a.png", "b.png", "c.png"], [annotation(i, i) for i in (1, 2, 3)])
    whole = (tmp_path / "photos/b.png").read_bytes()
    (tmp_path / "photos/b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/c.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 images .*parts\.json are not in --image-root .*c\.png.*--skip-m"
    ):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before everything is read"
    report = run(source, tmp_path / "out", skip_missing=True)
    assert report["skipped"]["unreadable_image"]["count"] == report["skipped"]["missing_image"]["count"] == 1
    assert [image["file_name"] for image in read(tmp_path / "out")["images"]] == ["a.png"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("annotations"), "no list of objects 'annotations'"),
        (lambda d: d["images"][0].pop("file_name"), r"images\[0\] has no 'file_name'"),
        (lambda d: d["images"].append(d["images"][0] | {"file_name": "z.png"}), "image id 1 is both"),
        (lambda d: d["categories"].append({"id": 1, "name": "foot"}), "category id 1 is both"),
        (lambda d: d["images"][0].update(file_name=None), r"images\[0\] has the file_name None"),
        (lambda d: d["images"][0].update(id=[1]), r"images\[0\] \(a\.png\) has the id \[1\]"),
        (lambda d: d["categories"].append({"id": None, "name": "foot"}), r"categories\[2\] has the id None"),
        (lambda d: d["categories"].append({"id": 3, "name": " "}), r"categories\[2\] \(id 3\) has the name ' '"),
        (lambda d: d.update(categories=[{"id": 1, "name": "background"}]), "no category that could be a part"),
    ],
)
def test_broken_json_is_named(tmp_path, change, message):
    source = write_source(tmp_path, ["a.png"], [annotation(1)])
    data = json.loads(source.json_file.read_text())
    change(data)
    source.json_file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        run(source, tmp_path / "out")
    assert "parts.json" in str(error.value) and not (tmp_path / "out").exists()


def test_back_slashes(tmp_path):
    source = write_source(tmp_path, ["x/a.png"], [annotation(1)])
    source.json_file.write_text(source.json_file.read_text().replace("x/a.png", r"x\\a.png"))
    assert counted(run(source, tmp_path / "out"))["backslash_in_file_name"] == 1
    assert read(tmp_path / "out")["images"][0]["file_name"] == "x/a.png"


# --- command line ---


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("import_coco_command", ROOT / "datasets" / "import_coco.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line(command, tmp_path, capsys):
    source = many(tmp_path)
    common = ["--json", str(source.json_file), "--image-root", str(source.image_root), "--output", str(tmp_path / "o")]
    command.main([*common, "--class-from", "folder"])
    out = capsys.readouterr().out
    assert "train: 32 images (desk 8, lamp 24), 32 parts" in out and "report:" in out
    assert sorted(p.stem for p in (tmp_path / "o/annotations").iterdir()) == ["test", "train", "val"]
    path = write_csv(tmp_path, {"lamp/01.png": "lamp"})
    with pytest.raises(SystemExit, match="has no row for 39 of 40 images"):
        command.main([*common, "--class-csv", str(path)])
    with pytest.raises(SystemExit, match="a/b"):
        command.main([*common, "--class-from", "folder", "--split", "a/b"])
    for wrong in (["--class-from", "folder", "--split", "a", "b"], []):
        with pytest.raises(SystemExit):
            command.main([*common, *wrong])
    command.main([*common, "--class-csv", str(path), "--skip-unclassed", "--split", "val", "--force"])
    assert "skipped: 39 images that neither rule nor table gives a class" in capsys.readouterr().out


def test_inputs_are_not_changed(tmp_path):
    source = many(tmp_path, 8)
    text = source.json_file.read_text()
    run(source, tmp_path / "out", class_from_folder)
    assert source.json_file.read_text() == text


# --- real photographs ---


@pytest.mark.skipif(not CAR_PARTS.is_dir(), reason="needs the Car Parts photographs beside the repository")
def test_car_parts(command, tmp_path, capsys):
    """The command of docs/import_coco.md and the numbers it states."""
    arguments = [
        *("--json", CAR_PARTS / "trainingset/annotations.json", CAR_PARTS / "testset/annotations.json"),
        *("--image-root", CAR_PARTS / "trainingset/JPEGImages", CAR_PARTS / "testset/JPEGImages"),
        *("--split", "fractions", "test", "--split-fractions", "0.85", "0.15", "0", "--group-by", "near"),
        *("--class-rule", CAR_RULE, "--class-part-share", "0.1", "--output", tmp_path / "out"),
    ]
    command.main([str(argument) for argument in arguments])
    report = json.loads((tmp_path / "out/report.json").read_text())
    views = ["front", "back", "front_left", "back_left", "left", "front_right", "back_right", "right"]
    assert report["images"] == {
        "train": dict(zip(views, [95, 43, 54, 18, 39, 35, 20, 33], strict=True)),
        "val": dict(zip(views, [17, 8, 9, 3, 7, 6, 4, 6], strict=True)),
        "test": dict(zip(views, [19, 7, 25, 6, 4, 30, 5, 3], strict=True)),
    }
    assert counted(report) == {
        "no_class": 4,
        "background_category": 2,
        "near_duplicate": 3,
        "shape_unlike_training": 79,
    }
    for split in ("train", "val", "test"):
        data = read(tmp_path / "out", split)
        assert not list(violations(data))
        assert [category["name"] for category in data["categories"]] == CAR_PART_NAMES
    assert not check_images(read(tmp_path / "out", "val"), CAR_PARTS)
    # Looked at: one photograph of each view.
    seen = {
        "train100": "front", "train105": "back", "train298": "left", "train67": "right",
        "train338": "front_left", "train262": "front_right", "train233": "back_left", "train182": "back_right",
    }  # fmt: skip
    for split in ("train", "val"):
        data = read(tmp_path / "out", split)
        names = {c["id"]: c["name"] for c in data["classes"]}
        for image in data["images"]:
            stem = Path(image["file_name"]).stem
            assert seen.pop(stem, names[image["class_id"]]) == names[image["class_id"]], stem
    assert not seen

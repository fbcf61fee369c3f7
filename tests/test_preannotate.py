"""Annotations out again: for correction in CVAT and as plain COCO, and a model's predictions to begin from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from part_robust.cli import export_annotations, import_parts, preannotate
from part_robust.data.export import cvat_mask
from part_robust.data.importers.cvat_xml import read_cvat_xml
from part_robust.data.importers.report import ImportCounts
from part_robust.data.preparation.segmentation import encode
from part_robust.engine import preannotation
from tests.data.coloured import DOOR, WHEEL, H, W, all_right, coco, measured, polygon, run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def drawn(data):
    """One image with polygons, one with two polygons to a part and a run-length code, one with boxes."""
    x, y, w, h = WHEEL
    halves = [polygon((x, y, w // 2, h)), polygon((x + w // 2, y, w - w // 2, h))]
    data["annotations"][2]["segmentation"] = halves
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[DOOR[1] : DOOR[1] + DOOR[3], DOOR[0] : DOOR[0] + DOOR[2]] = 1
    data["annotations"][3]["segmentation"] = encode(mask)
    data["annotations"][4]["segmentation"] = data["annotations"][5]["segmentation"] = []
    return data


@pytest.mark.parametrize("command", ["coco", "cvat"])
def test_out_to_cvat_and_in_again(tmp_path, command):
    assert run(command, tmp_path, drawn(coco(tmp_path)), class_from=r"name:^(\d)") == 0
    assert all_right(tmp_path, command)
    part_json = tmp_path / f"out_{command}/annotations/train.json"
    xml = tmp_path / "annotations.xml"
    assert export_annotations.main([str(part_json), "--format", "cvat", "--output", str(xml)]) == 0
    arguments = ["cvat", "--file", str(xml), "--images", str(tmp_path / "photos"), "--output", str(tmp_path / "again")]
    assert import_parts.main([*arguments, "--ratios", "1", "0", "0", "--workers", "1"]) == 0
    again = measured(tmp_path / "again/annotations/train.json", (tmp_path / "photos").resolve())
    assert again == measured(part_json, (tmp_path / "photos").resolve())
    assert sorted(entry["class"] for entry in again.values()) == ["0", "1", "2"], "the tags"


def test_cvat_mask_begins_with_background():
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[3, 5:9] = mask[4, 6:8] = 1
    assert cvat_mask(encode(mask), H, W) == {
        "rle": "0, 4, 1, 2, 1",
        "left": "5",
        "top": "3",
        "width": "4",
        "height": "2",
    }


def test_out_to_coco(tmp_path, capsys):
    assert run("coco", tmp_path, drawn(coco(tmp_path))) == 0
    part_json = tmp_path / "out_coco/annotations/train.json"
    assert export_annotations.main([str(part_json), "--format", "coco", "--output", str(tmp_path / "plain.json")]) == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert {image["class"] for image in plain["images"]} == {"car"}
    assert {key for a in plain["annotations"] for key in a} >= {"segmentation", "bbox", "area", "iscrowd"}
    assert run("coco", tmp_path, plain, "--force") == 0 and all_right(tmp_path, "coco")
    with pytest.raises(SystemExit, match="does not exist"):
        export_annotations.main([str(tmp_path / "no.json"), "--output", str(tmp_path / "x")])


@pytest.mark.parametrize("transform", ["center_crop", "stretch"])
@pytest.mark.parametrize("model", ["deeplab_two_headed", "dino_two_headed"])
def test_predictions_are_coco_results(a_run, photos, tmp_path, monkeypatch, model, transform):
    """COCO's own tool reads them; boxes lie in the files, also of images that are not square. No image is cropped."""
    shown, make = [], preannotation.Demo
    monkeypatch.setattr(
        preannotation, "Demo", lambda cfg, score: shown.append(cfg.INPUT.TEST_TRANSFORM) or make(cfg, score)
    )
    out, folder = tmp_path / "parts.json", a_run(model, "INPUT.TEST_TRANSFORM", transform)
    arguments = [str(photos), "--run", str(folder), "--min-score", "0", "--output", str(out)]
    assert preannotate.main([*arguments, "--format", "coco-results"]) == 0
    assert shown == [transform.replace("center_crop", "letterbox")]
    truth = COCO(str(out.with_suffix(".images.json")))
    results = json.loads(out.read_text())
    assert results and {image["file_name"] for image in truth.imgs.values()} == {"tall.jpg", "wide.png", "clear.PNG"}
    found = truth.loadRes(str(out))
    for annotation in found.anns.values():
        image = truth.imgs[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert x >= 0 and y >= 0 and x + w <= image["width"] + 1e-3 and y + h <= image["height"] + 1e-3
        assert annotation["category_id"] in truth.cats and 0 <= annotation["score"] <= 1
        if model == "deeplab_two_headed":
            assert annotation["segmentation"]["size"] == [image["height"], image["width"]]


def test_predictions_for_cvat(a_run, photos, tmp_path, capsys):
    run_folder = a_run("deeplab_two_headed")
    out = tmp_path / "parts.xml"
    arguments = [str(photos), "--run", str(run_folder), "--min-score", "0", "--format", "cvat", "--output", str(out)]
    assert preannotate.main(arguments) == 0
    contents = read_cvat_xml(out, ImportCounts())
    assert len(contents.items) == 3 and all(item.label for item in contents.items)
    (photos / "cut.png").write_bytes(b"no image")
    assert preannotate.main(arguments) == 1, "one image is missing"
    with pytest.raises(SystemExit, match=r"nowhere.config\.yaml does not exist"):
        preannotate.main([str(photos), "--run", str(tmp_path / "nowhere"), "--output", str(out)])


def test_models_without_parts_are_refused(a_run, photos, tmp_path):
    arguments = [str(photos), "--run", str(a_run("resnet")), "--output", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit, match="finds no parts to annotate"):
        preannotate.main(arguments)

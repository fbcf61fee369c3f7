"""Imports from other tools and layouts: drawn files in their formats, defects included."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from part_robust.data import PartDatasetMapper
from part_robust.data import check as checker
from part_robust.data.part_json import load_part_json
from tests.commands import exit_code
from tests.data.paco_fixture import uncompressed

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

H, W, COUNT = 16, 20, 30
SCRIPT = Path(__file__).parents[2] / "datasets" / "import_parts.py"


def command(*arguments: object) -> int:
    spec = importlib.util.spec_from_file_location("import_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return exit_code(module.main, [str(argument) for argument in arguments])


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (H, W, 3)).astype(np.uint8)).save(path)


def square(left: int, top: int = 4, side: int = 5) -> np.ndarray:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def outline(left: int, top: int = 4, side: int = 5) -> list[float]:
    return [float(v) for v in (left, top, left + side, top, left + side, top + side, left, top + side)]


def result(output: Path, images: Path, capsys) -> dict:
    """Everything that was imported, by file name: (split, image, {part name: box}, label map)."""
    found = {}
    for split in ("train", "val", "test"):
        path = output / "annotations" / f"{split}.json"
        assert checker.main([str(path), "--image-root", str(images)]) == 0, capsys.readouterr().out
        data = json.loads(path.read_text())
        records, taxonomy = load_part_json(path)
        mapper = PartDatasetMapper(
            augmentations=[], num_parts=taxonomy.num_parts, ignore_label=taxonomy.ignore_label, masks_from="boxes"
        )
        names = {c["id"]: c["name"] for c in data["categories"]}
        for image, record in zip(data["images"], records, strict=True):
            parts = {
                names[a["category_id"]]: tuple(a["bbox"]) for a in data["annotations"] if a["image_id"] == image["id"]
            }
            image["class"] = taxonomy.class_names[record["class_id"]]
            found[image["file_name"]] = (split, image, parts, mapper(record)["sem_seg"].numpy())
    return found


def counted(output: Path) -> dict[str, int]:
    report = json.loads((output / "report.json").read_text())["counted"]
    return {reason: entry["count"] for part in report.values() for reason, entry in part.items()}


# --- CVAT ---


@pytest.fixture
def cvat(tmp_path) -> Path:
    categories = [
        {"id": 1, "name": "wheel", "supercategory": "car"},
        {"id": 2, "name": "door", "supercategory": "car"},
        {"id": 3, "name": "wheel", "supercategory": "bike"},
    ]
    images, annotations = [], []
    for index in range(COUNT):
        name = f"shoot{index // 3}/img_{index}.png"
        picture(tmp_path / "photos" / name, index)
        images.append({"id": index + 1, "file_name": name, "width": W, "height": H})
        is_car = index % 2 == 0
        shapes = [(1, [outline(2)], 0), (2, uncompressed(square(10)), 1)] if is_car else [(3, [outline(2)], 0)]
        for category, segmentation, crowd in shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": index + 1, "category_id": category, "iscrowd": crowd,
                    "segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": 1,
                    "attributes": {"occluded": False, "make": "vw" if is_car else "bmx", "old": index == 0},
                }
            )  # fmt: skip
    annotations.append({"id": 999, "image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": []})
    annotations.append({"id": 998, "image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1], "segmentation": []})
    (tmp_path / "cvat.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return tmp_path


def test_cvat(cvat, capsys):
    output = cvat / "out"
    arguments = ("cvat", "--json", cvat / "cvat.json", "--images", cvat / "photos", "--output", output)
    assert command(*arguments, "--workers", 1, "--group-by", r"(shoot\d+)/") == 0
    found = result(output, cvat / "photos", capsys)
    assert len(found) == COUNT
    split, image, parts, _ = found["shoot0/img_0.png"]
    assert image["class"] == "car" and image["part_supervision"] == "partial", "an annotation of no category is lost"
    assert parts == {"car:wheel": (2.0, 4.0, 5.0, 5.0), "door": (10.0, 4.0, 5.0, 5.0)}, "a drawn mask is not a crowd"
    assert found["shoot0/img_1.png"][2] == {"bike:wheel": (2.0, 4.0, 5.0, 5.0)}
    splits = {}
    for name, (split, *_) in found.items():
        splits.setdefault(name.split("/")[0], set()).add(split)
    assert all(len(where) == 1 for where in splits.values()), "a shoot stays together"
    defects = {"unknown_image": 1, "unknown_category": 1, "image_with_lost_parts": 1, "box_replaced": 45}
    assert counted(output) == defects | {"crowd_to_part": 15, "rle_list_counts": 15}


def test_cvat_class_from_an_attribute(cvat, capsys):
    output = cvat / "out"
    arguments = ("cvat", "--json", cvat / "cvat.json", "--images", cvat / "photos", "--output", output)
    assert command(*arguments, "--workers", 1, "--class-from", "attribute:make") == 0
    found = result(output, cvat / "photos", capsys)
    assert {entry[1]["class"] for entry in found.values()} == {"vw", "bmx"}
    data = json.loads((output / "annotations" / "train.json").read_text())
    parts = {c["name"]: c["part_category_ids"] for c in data["classes"]}
    assert parts == {"bmx": [1], "vw": [2, 3]}
    assert command(*arguments, "--class-from", "attribute:old", "--restart", "--workers", 1, "--ratios", 1, 0, 0) == 0
    assert counted(output)["no_class"] == COUNT - 1
    assert command(*arguments, "--class-from", "star") == 1
    assert "class-from must be" in capsys.readouterr().err


# --- Label Studio ---


def test_label_studio(tmp_path, capsys):
    images, annotations = [], []
    for index in range(COUNT):
        picture(tmp_path / "export" / "images" / f"{index}.png", index)
        images.append({"id": index, "file_name": f"images\\{index}.png", "width": W, "height": H})
        rectangle = index % 2 == 0
        annotations.append(
            {
                "id": index, "image_id": index, "category_id": 0, "ignore": 0, "iscrowd": 0, "area": 25,
                "segmentation": [] if rectangle else [outline(3)], "bbox": [3, 4, 5, 5],
            }
        )  # fmt: skip
    annotations.append({"id": COUNT, "image_id": 0, "category_id": 0, "segmentation": [], "bbox": []})
    data = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "lid"}]}
    (tmp_path / "result.json").write_text(json.dumps(data))
    rows = [f"{index}.png,{'pot' if index % 3 else 'box'}" for index in range(COUNT - 1)]
    (tmp_path / "classes.csv").write_text("\n".join(["file_name,class", *rows]))
    output = tmp_path / "out"
    arguments = ("label-studio", "--json", tmp_path / "result.json", "--images", tmp_path / "export")
    csv = f"csv:{tmp_path / 'classes.csv'}"
    assert command(*arguments, "--class-from", csv, "--output", output, "--workers", 1) == 1
    assert "has no row for 1 of 30 images" in capsys.readouterr().err
    assert command(*arguments, "--class-from", csv, "--output", output, "--workers", 1, "--skip-unclassed") == 0
    found = result(output, tmp_path / "export", capsys)
    assert len(found) == COUNT - 1
    for reason, count in {"no_class": 1, "degenerate_box": 1, "image_with_lost_parts": 1, "box_only": 15}.items():
        assert counted(output)[reason] == count
    for index in range(COUNT - 1):
        _, image, parts, labels = found[f"images/{index}.png"]
        assert image["class"] == ("pot" if index % 3 else "box") and parts == {"lid": (3.0, 4.0, 5.0, 5.0)}
        assert ((labels == 0) == (square(3) > 0)).all()
    data = json.loads((output / "annotations" / "train.json").read_text())
    assert {"segmentation" in a for a in data["annotations"]} == {True, False}, "rectangles are boxes only"


# --- folders ---


@pytest.mark.parametrize("kind", ["labels", "palette", "colours"])
def test_folders(tmp_path, capsys, kind):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    for index in range(COUNT):
        class_name = ("bird", "fish")[index % 2]
        picture(tmp_path / "images" / class_name / f"{index}.png", index)
        if index == 2:
            continue
        labels = square(2) + 2 * square(10) if index % 2 else square(2)
        labels[0, 0] = 3
        path = tmp_path / "masks" / class_name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "colours":
            Image.fromarray(colours[labels]).save(path)
        else:
            image = Image.fromarray(labels)
            if kind == "palette":
                image.putpalette(colours.ravel().tolist())
            image.save(path)
    names = "red,green,blue,name\n200,0,0,head\n0,200,0,tail" if kind == "colours" else "label,name\n1,head\n2,tail"
    (tmp_path / "names.csv").write_text(names)
    output = tmp_path / "out"
    arguments = ("folders", "--source", tmp_path, "--names", tmp_path / "names.csv", "--output", output)
    assert command(*arguments, "--workers", 1) == 0
    found = result(output, tmp_path / "images", capsys)
    assert len(found) == COUNT
    assert found["bird/0.png"][2] == {"head": (2.0, 4.0, 5.0, 5.0)}
    assert found["fish/1.png"][2] == {"head": (2.0, 4.0, 5.0, 5.0), "tail": (10.0, 4.0, 5.0, 5.0)}
    assert found["bird/2.png"][1]["part_supervision"] == "none"
    assert counted(output)["no_mask"] == 1
    assert counted(output).get("unknown_label", 0) == (0 if kind == "colours" else COUNT - 1)
    data = json.loads((output / "annotations" / "train.json").read_text())
    assert {c["name"]: c["part_category_ids"] for c in data["classes"]} == {"bird": [1], "fish": [1, 2]}
    assert [c["supercategory"] for c in data["categories"]] == ["shared", "fish"]
    (tmp_path / "names.csv").write_text("number,part\n1,head")
    assert command(*arguments, "--workers", 1) == 1
    assert "must have the columns" in capsys.readouterr().err


# --- Pascal-Part ---


def mat_object(name: str, mask: np.ndarray, parts: list[tuple[str, np.ndarray]]) -> dict:
    entries = np.empty(len(parts), dtype=object)
    for index, (part, pixels) in enumerate(parts):
        entries[index] = {"part_name": part, "mask": pixels}
    return {"class": name, "class_ind": 1.0, "mask": mask, "parts": entries if len(parts) else np.zeros((0, 0))}


def test_pascal_part(tmp_path, capsys):
    (tmp_path / "Annotations_Part").mkdir()
    for index in range(COUNT):
        stem = f"2008_{index:06d}"
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg", index)
        bird = mat_object("bird", square(2, side=8), [("beak", square(2)), ("lwing", square(5, top=9, side=2))])
        objects = [bird]
        if index % 2:
            big = mat_object("car", square(8, top=2, side=12), [("wheel_1", square(9)), ("wheel_2", square(14))])
            objects.append(big)
        if index == 0:
            objects = [mat_object("bottle", square(1), [])]
        array = np.empty(len(objects), dtype=object)
        array[:] = objects
        savemat(tmp_path / "Annotations_Part" / f"{stem}.mat", {"anno": {"imname": stem, "objects": array}})
    (tmp_path / "Annotations_Part" / "broken.mat").write_bytes(b"no matrix")
    output = tmp_path / "out"
    arguments = ("pascal-part", "--source", tmp_path, "--output", output, "--classes", "bird", "car")
    assert command(*arguments, "--workers", 1) == 0
    images = tmp_path / "JPEGImages"
    found = result(output, images, capsys)
    assert len(found) == COUNT - 1
    assert counted(output) == {"unreadable_annotation": 1, "class_not_wanted": 1}
    assert found["2008_000002.jpg"][1]["class"] == "bird"
    assert found["2008_000002.jpg"][2] == {"bird:beak": (2.0, 4.0, 5.0, 5.0), "bird:lwing": (5.0, 9.0, 2.0, 2.0)}
    assert found["2008_000001.jpg"][1]["class"] == "car", "the largest object"
    data = json.loads((output / "annotations" / "train.json").read_text())
    assert [c["name"] for c in data["categories"]] == ["bird:beak", "bird:lwing", "car:wheel"]
    assert {c["name"]: c["part_category_ids"] for c in data["classes"]} == {"bird": [1, 2], "car": [3]}
    cars = {i["id"] for i in data["images"] if data["classes"][i["class_id"] - 1]["name"] == "car"}
    wheels = [a for a in data["annotations"] if a["category_id"] == 3]
    assert {a["image_id"] for a in wheels} == cars and len(wheels) == 2 * len(cars)
    beaks = [a["is_target"] for a in data["annotations"] if a["category_id"] == 1 and a["image_id"] in cars]
    assert beaks and not any(beaks), "a neighbour's parts"
    assert command("pascal-part", "--source", tmp_path / "nowhere", "--output", output) == 1
    assert "trainval.tar.gz" in capsys.readouterr().err


# --- PartImageNet++ ---


def test_part_imagenet_pp(tmp_path, capsys):
    (tmp_path / "json").mkdir()
    for wnid, parts in (("n01440764", ["head", "fin"]), ("n02084071", ["head"])):
        images, annotations = [], []
        for index in range(COUNT):
            picture(tmp_path / "train" / wnid / f"{wnid}_{index}.JPEG", index + len(parts) * COUNT)
            images.append({"id": index, "file_name": f"{wnid}_{index}.JPEG", "width": W, "height": H})
            for k in range(len(parts)):
                annotations.append(
                    {"id": len(annotations), "image_id": index, "category_id": k, "segmentation": [outline(2 + 8 * k)]}
                )
        categories = [{"id": k, "name": part, "supercategory": ""} for k, part in enumerate(parts)]
        data = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "json" / f"{wnid}.json").write_text(json.dumps(data))
    output = tmp_path / "out"
    arguments = ("part-imagenet-pp", "--source", tmp_path, "--images", tmp_path / "train", "--output", output)
    assert command(*arguments, "--workers", 1) == 0
    found = result(output, tmp_path / "train", capsys)
    assert len(found) == 2 * COUNT and counted(output) == {}
    _, image, parts, _ = found["n01440764/n01440764_3.JPEG"]
    assert image["class"] == "n01440764"
    assert parts == {"n01440764:head": (2.0, 4.0, 5.0, 5.0), "n01440764:fin": (10.0, 4.0, 5.0, 5.0)}
    assert command(*arguments, "--classes", "n99999999") == 1
    assert "lacks n99999999" in capsys.readouterr().err

"""Where importers find what a file means: images of a task, files of the parts, splits, classes by folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.coloured import DOOR, WHEEL, H, W, all_right, coco, pixels, polygon, report, run, save
from tests.data.tool_files import command, counted, label_studio, line, mask, percent, result, right

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NOTHING = (0, 0, 0, 0)


def written(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


# --- several images in one task of Label Studio ---


def task(data: dict, *results: dict) -> dict:
    return {"id": 1, "data": data, "annotations": [{"id": 1, "result": list(results)}]}


def on(name: str, box, **more) -> dict:
    return {**label_studio("rectanglelabels", percent(box), [name]), "id": name, **more}


CAR = {"id": "c", "from_name": "class", "to_name": "front", "type": "choices", "value": {"choices": ["car"]}}


@pytest.fixture
def two_pictures(tmp_path) -> Path:
    """One with the wheel alone, the other with the door."""
    save(tmp_path / "photos" / "wheel.png", pixels(0, door=NOTHING))
    save(tmp_path / "photos" / "door.png", pixels(1, wheel=NOTHING))
    return tmp_path


@pytest.mark.parametrize("paged", [False, True])
def test_every_image_of_a_task_gets_its_own_results(two_pictures, paged):
    files = ["wheel.png", "door.png"]
    if paged:
        tasks = [task({"pages": files}, {**CAR, "to_name": "page"}, on("wheel", WHEEL), on("door", DOOR, item_index=1))]
    else:
        tasks = [
            task(
                {"front": files[0], "side": files[1]},
                *(CAR, {**CAR, "to_name": "side"}),
                *(on("wheel", WHEEL, to_name="front"), on("door", DOOR, to_name="side")),
            )
        ]
    source, photos = written(two_pictures / "tasks.json", tasks), two_pictures / "photos"
    output = two_pictures / "out"
    assert command("label-studio", "--file", source, "--images", photos, "--output", output) == 0
    found = result(output, photos)
    assert right(found["wheel.png"], parts=["wheel"]) and right(found["door.png"], parts=["door"])
    assert "door" not in found["wheel.png"] and "wheel" not in found["door.png"]


def test_results_on_images_that_the_task_does_not_name_are_refused(two_pictures, capsys):
    results = (on("wheel", WHEEL, to_name="img-1"), on("door", DOOR, to_name="img-2"))
    source = written(two_pictures / "tasks.json", [task({"front": "wheel.png", "side": "door.png"}, *results)])
    images = ("--images", two_pictures / "photos", "--output", two_pictures / "out", "--class-from", "always:car")
    assert command("label-studio", "--file", source, *images) == 1
    assert "has several images, and results on img-1, img-2: its `data` must have" in capsys.readouterr().err


# --- files with the parts that are not there ---


def yolo_folder(folder: Path, labels: str) -> Path:
    for index in range(2):
        save(folder / "images" / "car" / f"{index}.png", pixels(index))
        written(folder / labels / "car" / f"{index}.txt", line(0, WHEEL, "polygon"))
    return written(folder / "data.yaml", "train: images\nnames: [wheel]\n")


def mask_folder(folder: Path, name: str) -> Path:
    for index in range(2):
        save(folder / "images" / "car" / f"{index}.png", pixels(index))
        path = folder / "masks" / "car" / name.format(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = mask(WHEEL) + 2 * mask(DOOR)
        if path.suffix == ".npy":
            np.save(path, labels)
        else:
            Image.fromarray(labels).save(path)
    written(folder / "names.csv", "label,name\n1,wheel\n2,door\n")
    return folder


@pytest.mark.parametrize("name", ["{}_mask.png", "{}.gif", "{}.npy"])
def test_masks_of_other_names_are_no_empty_data_set(tmp_path, name, capsys):
    folder = mask_folder(tmp_path, name)
    arguments = ("folders", "--source", folder, "--names", folder / "names.csv", "--output", tmp_path / "out")
    assert command(*arguments) == 1 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "none of the 2 images has a file with its parts, first car/0.png (" in error
    assert f"{Path('masks', 'car', '0.png')} does not exist" in error


def test_capitals_in_the_ending_of_a_mask_do_not_matter(tmp_path):
    folder = mask_folder(tmp_path, "{}.PNG")
    arguments = ("folders", "--source", folder, "--names", folder / "names.csv", "--output", tmp_path / "out")
    assert command(*arguments) == 0
    assert all(right(entry) for entry in result(tmp_path / "out", tmp_path / "images").values())


def test_label_files_elsewhere_are_no_empty_data_set(tmp_path, capsys):
    source = yolo_folder(tmp_path, "annotations")
    assert command("yolo", "--yaml", source, "--class-from", "always:car", "--output", tmp_path / "out") == 1
    assert "none of the 2 images has a file with its parts" in capsys.readouterr().err


def test_label_files_without_an_image_are_counted(tmp_path):
    source = yolo_folder(tmp_path, "labels")
    written(tmp_path / "labels" / "car" / "gone.txt", line(0, WHEEL, "polygon"))
    written(tmp_path / "labels" / "car" / "classes.txt", "wheel\n")
    assert command("yolo", "--yaml", source, "--class-from", "always:car", "--output", tmp_path / "out") == 0
    assert counted(tmp_path / "out")["mask_without_image"] == 1


@pytest.mark.parametrize("row", ["0,void", "3,ground"])
def test_a_name_for_the_background_label_is_refused(tmp_path, row, capsys):
    folder = mask_folder(tmp_path, "{}.png")
    written(folder / "names.csv", f"label,name\n1,wheel\n2,door\n{row}\n")
    arguments = ("folders", "--source", folder, "--names", folder / "names.csv", "--output", tmp_path / "out")
    label, name = row.split(",")
    assert command(*arguments, "--background", label) == 1
    assert f"names label {label} {name!r}, and --background {label} says" in capsys.readouterr().err


# --- names of splits ---


def roboflow(folder: Path, *splits: str) -> Path:
    for number, split in enumerate(splits):
        data = coco(folder / "made" / split, 1)
        save(folder / "export" / split / f"{split}.png", pixels(number))
        data["images"][0]["file_name"] = f"{split}.png"
        written(folder / "export" / split / "_annotations.coco.json", data)
    return folder / "export"


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_roboflow_s_validation_split_by_any_name(tmp_path, name, capsys):
    source = roboflow(tmp_path, "train", name)
    assert command("roboflow", "--source", source, "--class-from", "always:car", "--output", tmp_path / "out") == 0
    assert "val: 1 images" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dev", "valid"])
def test_a_split_of_roboflow_s_that_cannot_be_read_is_named(tmp_path, name, capsys):
    source = roboflow(tmp_path, "train", name)
    if name == "valid":
        (source / name / "_annotations.coco.json").unlink()
    assert command("roboflow", "--source", source, "--class-from", "always:car", "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    sentence = "is none of the folders train, valid and test" if name == "dev" else "has images and no _annotations"
    assert f"{source / name} {sentence}" in error


def test_yolo_s_key_validation_is_the_validation_split(tmp_path, capsys):
    for number, split in enumerate(("train", "more")):
        save(tmp_path / "images" / split / f"{number}.png", pixels(number))
        written(tmp_path / "labels" / split / f"{number}.txt", line(0, WHEEL, "polygon"))
    source = written(tmp_path / "data.yaml", "train: images/train\nvalidation: images/more\nnames: [wheel]\n")
    assert command("yolo", "--yaml", source, "--class-from", "always:car", "--output", tmp_path / "out") == 0
    assert "val: 1 images" in capsys.readouterr().out


# --- the class by the folder of the file ---


def labelme(path: Path, image_path: object) -> None:
    points = np.reshape(polygon(WHEEL), (-1, 2)).tolist()
    shape = {"label": "wheel", "shape_type": "polygon", "points": points}
    written(path, {"flags": {}, "imagePath": image_path, "imageWidth": W, "imageHeight": H, "shapes": [shape]})


def test_a_path_of_another_machine_names_no_class(tmp_path, capsys):
    for index, person in enumerate(("alice", "bob")):
        save(tmp_path / f"{index}.png", pixels(index))
        labelme(tmp_path / f"{index}.json", f"C:\\Users\\{person}\\{index}.png")
    assert command("labelme", "--source", tmp_path, "--output", tmp_path / "out") == 1
    assert "no_class: 2" in capsys.readouterr().err


def test_an_image_beside_its_json_is_found(tmp_path):
    for index, kind in enumerate(("car", "bus")):
        save(tmp_path / "data" / kind / f"{index}.png", pixels(index))
        labelme(tmp_path / "data" / kind / f"{index}.json", f"..\\..\\old\\{index}.png")
    assert command("labelme", "--source", tmp_path / "data", "--output", tmp_path / "out") == 0
    found = result(tmp_path / "out", tmp_path / "data")
    assert {name: entry["class"] for name, entry in found.items()} == {"car/0.png": "car", "bus/1.png": "bus"}


@pytest.mark.parametrize("path", [None, "", 7])
def test_a_json_without_an_image_path_is_counted(tmp_path, path):
    save(tmp_path / "car" / "0.png", pixels(0))
    labelme(tmp_path / "car" / "0.json", "0.png")
    labelme(tmp_path / "car" / "1.json", path)
    assert command("labelme", "--source", tmp_path, "--output", tmp_path / "out") == 0
    assert counted(tmp_path / "out")["unreadable_annotation"] == 1


@pytest.mark.parametrize("address", ["https://host/b/car/{}.png?sig=ab/cd", "/data/local-files/?d={}.png"])
def test_a_web_address_names_no_class(tmp_path, address, capsys):
    save(tmp_path / "photos" / "0.png", pixels(0))
    source = written(tmp_path / "tasks.json", [task({"image": address.format(0)}, on("wheel", WHEEL))])
    arguments = ("label-studio", "--file", source, "--images", tmp_path / "photos", "--class-from", "folder")
    assert command(*arguments, "--output", tmp_path / "out") == 1
    assert "1 of 1 file names have no folder, first: 0.png" in capsys.readouterr().err


# --- which way up ---


def test_parts_that_fit_both_frames_follow_no_guess(tmp_path):
    """Where one image of a file was drawn upright, in spite of its size, another may have been."""
    data = coco(tmp_path, 3)
    for index in range(3):
        save(tmp_path / "photos" / f"{index}.png", pixels(index, door=(24, 4, 8, 12)), orientation=6)
        data["images"][index].update(width=H, height=W)  # as stored
        data["annotations"][2 * index + 1].update(segmentation=[polygon((24, 4, 8, 12))], bbox=[24, 4, 8, 12])
    del data["annotations"][5]  # of the last one the wheel is left, which fits either frame
    assert run("coco", tmp_path, data) == 0
    assert report(tmp_path, "coco")["turned_size"] == 2 and report(tmp_path, "coco")["ambiguous_rotation"] == 1
    assert all_right(tmp_path, "coco", 2)


def test_the_size_of_a_mask_says_which_way_up(tmp_path):
    data = coco(tmp_path, 1)
    save(tmp_path / "photos" / "0.png", pixels(0), orientation=6)
    data["images"][0].update(width=H, height=W)
    for annotation, box in zip(data["annotations"], (WHEEL, DOOR), strict=True):
        runs = np.flatnonzero(np.diff(mask(box).T.ravel(), prepend=0, append=2)).tolist()
        annotation["segmentation"] = {"size": [H, W], "counts": np.diff([0, *runs]).tolist()}
    assert run("coco", tmp_path, data) == 0 and report(tmp_path, "coco")["turned_size"] == 1


# --- names that are none ---


@pytest.mark.parametrize(
    ("names", "shown"), [("[wheel, no]", "False: give it a name, in quotes"), ("\n  0:\n  1: door", "None: give")]
)
def test_names_of_a_yaml_must_be_names(tmp_path, names, shown, capsys):
    source = yolo_folder(tmp_path, "labels")
    written(source, f"train: images\nnames: {names}\n")
    assert command("yolo", "--yaml", source, "--output", tmp_path / "out") == 1
    assert f"has the name {shown}" in capsys.readouterr().err


def test_a_label_that_is_null_is_none(tmp_path):
    save(tmp_path / "car" / "0.png", pixels(0))
    labelme(tmp_path / "car" / "0.json", "0.png")
    data = json.loads((tmp_path / "car" / "0.json").read_text())
    data["shapes"].append({**data["shapes"][0], "label": None})
    written(tmp_path / "car" / "0.json", data)
    assert command("labelme", "--source", tmp_path, "--output", tmp_path / "out") == 0
    assert counted(tmp_path / "out")["no_label"] == 1
    assert right(result(tmp_path / "out", tmp_path)["car/0.png"], "partial", ["wheel"])

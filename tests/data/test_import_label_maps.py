"""Folders of images and label maps: every mode of file, and what does not fit is counted or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.coloured import DOOR, WHEEL, H, W, pixels, save
from tests.data.tool_files import command, mask, result, right

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- label maps ---

NAMES = "label,name\n1,wheel\n2,door\n"
COLOURED = "red,green,blue,name\n230,20,20,wheel\n20,230,20,door\n"


def label_map() -> np.ndarray:
    return (mask(WHEEL) + 2 * mask(DOOR)).astype(np.uint8)


def folders(tmp_path: Path, modes: dict[str, Image.Image], names: str) -> tuple:
    for index, (mode, image) in enumerate(modes.items()):
        save(tmp_path / "images" / "car" / f"{mode}.png", pixels(index))
        (tmp_path / "masks" / "car").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "masks" / "car" / f"{mode}.png")
    (tmp_path / "names.csv").write_text(names)
    return "folders", "--source", tmp_path, "--names", tmp_path / "names.csv", "--output", tmp_path / "out"


def palette() -> Image.Image:
    image = Image.fromarray(label_map())
    image.putpalette([0, 0, 0, 230, 20, 20, 20, 230, 20])
    return image


@pytest.mark.parametrize("names", [NAMES, NAMES + "0,background\n"], ids=["plain", "with background"])
def test_label_maps_of_every_mode(tmp_path, names):
    grey = label_map()
    three = np.repeat(grey[:, :, None], 3, axis=2)
    opaque = np.full((H, W, 1), 255, dtype=np.uint8)
    modes = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(three),
        "RGBA": Image.fromarray(np.concatenate([three, opaque], axis=2)),
        "LA": Image.fromarray(np.concatenate([grey[:, :, None], opaque], axis=2), "LA"),
        "I16": Image.fromarray(grey.astype(np.uint16)),
        "P": palette(),
    }
    assert command(*folders(tmp_path, modes, names)) == 0
    found = result(tmp_path / "out", tmp_path / "images")
    assert len(found) == 6 and all(right(entry) for entry in found.values())


@pytest.mark.parametrize("names", [COLOURED, COLOURED + "0,0,0,background\n"], ids=["plain", "with background"])
def test_coloured_maps(tmp_path, names):
    modes = {"P": palette(), "RGB": palette().convert("RGB")}
    assert command(*folders(tmp_path, modes, names)) == 0
    assert all(right(entry) for entry in result(tmp_path / "out", tmp_path / "images").values())


def test_unnamed_labels_count_nowhere(tmp_path, capsys):
    labels = label_map()
    labels[0, :5], labels[1, :5] = 9, 255
    assert command(*folders(tmp_path, {"x": Image.fromarray(labels)}, NAMES)) == 0
    assert "skipped: 1 labels of a mask" in capsys.readouterr().out
    (image,) = json.loads((tmp_path / "out/annotations/train.json").read_text())["images"]
    from pycocotools import mask as coco_mask

    ignored = coco_mask.decode(image["ignore_segmentation"])
    assert ignored[:2, :5].all() and ignored.sum() == 10


def test_deep_folders_other_endings_and_lonely_files_are_counted(tmp_path, capsys):
    arguments = folders(tmp_path, {"x": palette()}, NAMES)
    for name in ("car/deep/y.tif", "z.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(len(name))).save(tmp_path / "images" / name)
        target = tmp_path / "masks" / Path(name).with_suffix(".png")
        target.parent.mkdir(exist_ok=True)
        palette().save(target)
    palette().save(tmp_path / "masks" / "task-1-annotation-1-by-1-tag-wheel-0.png")
    assert command(*arguments) == 0
    found = result(tmp_path / "out", tmp_path / "images")
    assert set(found) == {"car/x.png", "car/deep/y.tif"} and all(right(entry) for entry in found.values())
    out = capsys.readouterr().out
    assert "1 images that neither rule nor table gives a class" in out
    assert "1 mask and label files that belong to no image" in out


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("label,name\n1,wheel\n1,tyre\n", "line 3: 1 is both 'wheel' and 'tyre'"),
        ("label,name\none,wheel\n", "line 2: label must be whole numbers"),
        ("label,name\n1,\n", "line 2: the name is empty"),
        ("label;name\n1;wheel\n", "must have the columns label,name or red,green,blue,name"),
        ("label,name\n7,wheel\n", "none of the parts could be used"),
        ("red,green,blue,name\n1,2,3,wheel\n", "of the pixels have colours that the table of names does not have"),
    ],
)
def test_tables_of_names_that_do_not_fit(tmp_path, names, sentence, capsys):
    assert command(*folders(tmp_path, {"x": palette()}, names)) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_blurred_colours_are_refused(tmp_path, capsys):
    arguments = folders(tmp_path, {"x": palette()}, COLOURED)
    rough = np.asarray(palette().convert("RGB")).astype(int) + np.random.default_rng(0).integers(0, 3, (H, W, 3))
    Image.fromarray(rough.astype(np.uint8)).save(tmp_path / "masks" / "car" / "x.png")
    assert command(*arguments) == 1
    assert "save the masks without loss" in capsys.readouterr().err

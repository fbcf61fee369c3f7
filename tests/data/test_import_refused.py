"""What every importer refuses in one sentence, and imports that leave no leaking splits."""

from __future__ import annotations

import json
import os
import re

import pytest

from part_robust.data.part_json import read_part_json
from tests.data.coloured import (
    COMMANDS,
    H,
    W,
    all_right,
    coco,
    imported,
    run,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
both = pytest.mark.parametrize("command", COMMANDS)


# --- what is refused ---


def normalised(data):
    for annotation in data["annotations"]:
        annotation["segmentation"] = [[v / W for v in annotation["segmentation"][0]]]
        annotation["bbox"] = [v / W for v in annotation["bbox"]]


def corners(data):
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
        del annotation["segmentation"]


def resized(data):
    for image in data["images"]:
        image.update(width=2 * W, height=2 * H)


REFUSED = {
    "normalised": (normalised, "look normalised"),
    "corners": (corners, r"\[left, top, right, bottom\]"),
    "resized": (resized, "size_mismatch: 3"),
    "no part left": (lambda d: [a.update(category_id=None) for a in d["annotations"]], "unknown_category: 6"),
    "one id, two files": (lambda d: d["images"][1].update(id=1), "image id 1 is both 0.png and 1.png"),
    "one id, two parts": (lambda d: d["categories"][1].update(id=1), "category id 1 is both 'wheel' and 'door'"),
    "name null": (lambda d: d["categories"][0].update(name=None), "has the name None"),
    "name empty": (lambda d: d["categories"][0].update(name=""), "has the name ''"),
    "id null": (lambda d: d["categories"][0].update(id=None), "has the id None"),
    "id list": (lambda d: d["images"][0].update(id=[1]), r"has the id \[1\]"),
    "file missing": (lambda d: d["images"][0].update(file_name="no.png"), "are not in --image-root .*no.png"),
    "annotations text": (lambda d: d.update(annotations=["x"]), "no list of objects 'annotations'"),
    "two names, one file": (lambda d: d["images"][1].update(file_name="/x/0.png"), "are both the file 0.png"),
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(tmp_path, command, case, capsys):
    change, sentence = REFUSED[case]
    data = coco(tmp_path)
    change(data)
    assert run(command, tmp_path, data) == 1
    printed = capsys.readouterr().err.strip()
    assert "Traceback" not in printed and len(printed.splitlines()[-1:]) == 1
    assert re.search(sentence, printed), printed
    assert not (tmp_path / f"out_{command}").exists(), "nothing is written"


@both
@pytest.mark.parametrize(
    ("class_from", "sentence"),
    [
        ("supercategory", "none of the parts of 3 images has a supercategory"),
        ("folder", "all 3 images lie in the folder 'images', which names no class"),
        ("tag", "no_class: 3"),
        ("name:(", "not a regular expression"),
        ("name:^(x)", "finds nothing in 3 of 3 file names"),
        ("star", "--class-from must be folder, tag, supercategory"),
        ("attribute:make", "no_class: 3"),
    ],
)
def test_class_sources_say_what_is_missing(tmp_path, command, class_from, sentence, capsys):
    data = coco(tmp_path)
    (tmp_path / "photos" / "images").mkdir()
    for image in data["images"]:
        name = image["file_name"]
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / "images" / name)
        image["file_name"] = f"images/{name}"
    for category in data["categories"]:
        category["supercategory"] = ""
    assert run(command, tmp_path, data, class_from=class_from) == 1
    assert sentence in capsys.readouterr().err


@both
def test_class_from_the_file_name(tmp_path, command):
    assert run(command, tmp_path, coco(tmp_path), class_from=r"name:^(\d)") == 0
    assert {entry["class"] for entry in imported(tmp_path, command).values()} == {"0", "1", "2"}


@both
@pytest.mark.parametrize(
    ("rows", "encoding", "sentence"),
    [
        ("0.png,car\n0.png,bike", "utf-8", "0.png is both 'car' and 'bike'"),
        ("0.png,voitur\xe9", "latin-1", "classes.csv is not written in UTF-8"),
        ("0.png,car\n1.png", "utf-8", "line 3: file_name and class must not be empty"),
        ("0.png,car", "utf-8", "has no row for 2 of 3 images"),
    ],
)
def test_broken_class_tables(tmp_path, command, rows, encoding, sentence, capsys):
    (tmp_path / "classes.csv").write_bytes(f"file_name,class\n{rows}\n".encode(encoding))
    assert run(command, tmp_path, coco(tmp_path), class_from=f"csv:{tmp_path / 'classes.csv'}") == 1
    assert sentence in capsys.readouterr().err


@both
def test_blanks_around_a_file_name(tmp_path, command):
    data = coco(tmp_path)
    data["images"][0]["file_name"] = "0.png "
    (tmp_path / "classes.csv").write_text("file_name,class\n 0.png,car\n1.png , car \n2.png,car\n")
    assert run(command, tmp_path, data, class_from=f"csv:{tmp_path / 'classes.csv'}") == 0
    assert all_right(tmp_path, command)


@both
def test_bare_names_in_a_table_must_be_unique(tmp_path, command, capsys):
    data = coco(tmp_path, 2)
    for index, image in enumerate(data["images"]):
        (tmp_path / "photos" / f"d{index}").mkdir()
        (tmp_path / "photos" / f"{index}.png").rename(tmp_path / "photos" / f"d{index}" / "a.png")
        image["file_name"] = f"d{index}/a.png"
    (tmp_path / "classes.csv").write_text("file_name,class\na.png,car\n")
    assert run(command, tmp_path, data, class_from=f"csv:{tmp_path / 'classes.csv'}") == 1
    assert "is that of several images" in capsys.readouterr().err


# --- splits that do not leak ---


@both
def test_other_fractions_leave_no_old_split(tmp_path, command, capsys):
    data = coco(tmp_path, 12)
    divided = ("--split-fractions", "0.4", "0.3", "0.3")
    assert run(command, tmp_path, data, *divided) == 0
    folder = tmp_path / f"out_{command}" / "annotations"
    before = sorted(path.name for path in folder.iterdir())
    assert "train.json" in before and len(before) > 1
    assert run(command, tmp_path, data) == 1, "its old splits hold images of the new train"
    assert "is a split of an earlier import" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    assert run(command, tmp_path, data, "--force") == 0
    assert [path.name for path in folder.iterdir()] == ["train.json"]


@both
def test_old_flags_mean_the_new_ones(tmp_path, command):
    data = coco(tmp_path)
    assert run(command, tmp_path, data, "--ratios", "1", "0", "0", "--restart") == 0 and all_right(tmp_path, command)


@both
def test_more_workers_write_the_same_bytes(tmp_path, command, monkeypatch):
    monkeypatch.setattr("part_robust.data.importers.samples._PER_WORKER", 1)
    data = coco(tmp_path)
    assert run(command, tmp_path, data) == 0
    first = (tmp_path / f"out_{command}/annotations/train.json").read_bytes()
    assert run(command, tmp_path, data, "--workers", "2", "--force") == 0
    assert (tmp_path / f"out_{command}/annotations/train.json").read_bytes() == first


def test_an_interrupted_import_is_marked(tmp_path, monkeypatch):
    data = coco(tmp_path, 12)
    divided = ("--split-fractions", "0.4", "0.3", "0.3")
    assert run("coco", tmp_path, data, *divided) == 0
    real, calls = os.replace, []

    def killed(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr("part_robust.data.importers.output.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run("coco", tmp_path, data, *divided, "--seed", "5")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was left unfinished"):
        read_part_json(tmp_path / "out_coco/annotations/train.json")
    assert run("coco", tmp_path, data, *divided, "--seed", "5") == 0
    hashes = {
        json.loads(path.read_text())["info"]["part_robust"]["config_hash"]
        for path in (tmp_path / "out_coco/annotations").glob("*.json")
    }
    assert len(hashes) == 1

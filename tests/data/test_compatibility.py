"""Data sets of one run that do not go together are refused before any work."""

from __future__ import annotations

import copy
import json
import os

import pytest

from part_robust.config import get_part_robust_cfg
from part_robust.data import check, register_part_dataset
from part_robust.data.compatibility import check_datasets
from part_robust.data.preparation.parallel import in_parallel
from tests.data.coloured import coco, pixels, run, save
from tests.toy import write_toy


def registered(tmp_path, change=None, **node):
    """A config whose training set is a toy, and whose test set is the toy after `change`."""
    json_file, root = write_toy(tmp_path)
    data = json.loads(json_file.read_text())
    other = copy.deepcopy(data)
    if change is not None:
        change(other)
    (tmp_path / "other.json").write_text(json.dumps(other))
    names = f"{tmp_path.name}_train", f"{tmp_path.name}_test"
    register_part_dataset(names[0], json_file, root)
    register_part_dataset(names[1], tmp_path / "other.json", root)
    cfg = get_part_robust_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    cfg.MODEL.PART_CLASSIFIER.SEGMENTER = node.get("segmenter", "DeepLabSegmenter")
    cfg.INPUT.PART_MASKS = node.get("masks", "boxes")
    return cfg


def swap_names(key):
    def change(data):
        first, second = data[key][:2]
        first["name"], second["name"] = second["name"], first["name"]

    return change


CHANGES = {
    "classes in another order": (swap_names("classes"), "same classes in the same order, got 3 and 3, and at place 1"),
    "parts in another order": (swap_names("categories"), "same parts in the same order"),
    "another name": (lambda d: d["classes"][1].update(name="lamb"), "at place 2 .* 'lamb'"),
    "a class more": (
        lambda d: d["classes"].append({"id": 9, "name": "new", "part_category_ids": []}),
        "got 3 and 4, and at place 4 nothing and 'new'",
    ),
    "a part less": (
        lambda d: (
            d.update(annotations=[]),
            d["categories"].pop(),
            [c.update(part_category_ids=[]) for c in d["classes"]],
        ),
        "same parts in the same order, got 3 and 2, and at place 3 .* nothing",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_names_are_refused(tmp_path, case):
    change, sentence = CHANGES[case]
    cfg = registered(tmp_path, change)
    with pytest.raises(ValueError, match=sentence):
        check_datasets(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), ()
    with pytest.raises(ValueError, match=sentence):
        check_datasets(cfg)


def test_equal_names_are_accepted(tmp_path):
    cfg = registered(tmp_path, lambda d: d["classes"].reverse())
    check_datasets(cfg)
    cfg.DATASETS.VAL = ("no_such_data_set",)
    check_datasets(cfg)


def test_boxes_for_masks_are_refused(tmp_path):
    cfg = registered(tmp_path, lambda d: d["annotations"][0].pop("segmentation", None), masks="masks")
    with pytest.raises(ValueError, match="INPUT.PART_MASKS must be boxes, got masks: .* have only a box"):
        check_datasets(cfg)
    cfg.INPUT.PART_MASKS = "boxes"
    check_datasets(cfg)


def test_data_without_parts_is_refused_for_a_segmenter(tmp_path):
    def bare(data):
        data.update(annotations=[], categories=[])
        for entry in data["classes"]:
            entry["part_category_ids"] = []

    cfg = registered(tmp_path, bare)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = cfg.DATASETS.TEST, ()
    with pytest.raises(ValueError, match="has no parts, and MODEL.PART_CLASSIFIER.SEGMENTER DeepLabSegmenter"):
        check_datasets(cfg)
    cfg.MODEL.PART_CLASSIFIER.SEGMENTER = ""
    check_datasets(cfg)


# --- splits of different imports ---


@pytest.mark.parametrize("command", ["coco", "cvat"])
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("first", ["train", "val"])
def test_images_of_another_import_are_found(tmp_path, command, copied, first):
    """Also where each import has copies of its own; and validation images are not test images either."""
    names, data = {}, coco(tmp_path, 3)
    for split in (first, "test"):
        shares = ("1" if split == name else "0" for name in ("train", "val", "test"))
        more = ("--copy-images",) if copied else ()
        assert run(command, tmp_path, data, "--split-fractions", *shares, *more) == 0
        out = (tmp_path / f"out_{command}").rename(tmp_path / split)
        names[split] = f"{tmp_path.name}_{split}"
        images = out / "images" if copied else tmp_path / "photos"
        register_part_dataset(names[split], out / "annotations" / f"{split}.json", images)
    cfg = get_part_robust_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.VAL = ((names[first],) if first == split else () for split in ("train", "val"))
    cfg.DATASETS.TEST = (names["test"],)
    with pytest.raises(ValueError, match="are of different imports and share images, first .*png"):
        check_datasets(cfg)
    if copied:
        for index in range(3):  # other pictures under the same names
            save(tmp_path / "test" / "images" / f"{index}.png", pixels(50 + index))
        if command == "cvat":
            check_datasets(cfg)


@pytest.mark.parametrize("command", ["coco", "cvat"])
@pytest.mark.parametrize("same_folder", [True, False])
def test_splits_of_two_imports_are_refused(tmp_path, command, same_folder, capsys):
    """As after an import with another seed that was killed when it had written train.json."""
    data = coco(tmp_path, 30)
    folders = {}
    for seed in ("0", "1"):
        assert run(command, tmp_path, data, "--split-fractions", "0.6", "0.2", "0.2", "--seed", seed) == 0
        folders[seed] = tmp_path / f"seed{seed}"
        (tmp_path / f"out_{command}").rename(folders[seed])
    train, test = (folders[seed] / "annotations" / f"{split}.json" for seed, split in (("1", "train"), ("0", "test")))
    if same_folder:
        train = train.rename(folders["0"] / "annotations" / "train.json")
        assert check.main([str(train)]) == 1
        assert "test.json: is a split of another import" in capsys.readouterr().out
    cfg = get_part_robust_cfg()
    names = {path: f"{tmp_path.name}_{path.stem}" for path in (train, test)}
    for path, name in names.items():
        register_part_dataset(name, path, tmp_path / "photos")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[train],), (names[test],)
    with pytest.raises(ValueError, match="are of different imports and share images, first .*png"):
        check_datasets(cfg)


def test_splits_of_one_import_are_accepted(tmp_path):
    assert run("coco", tmp_path, coco(tmp_path, 30), "--split-fractions", "0.6", "0.2", "0.2") == 0
    cfg = get_part_robust_cfg()
    for split in ("train", "val", "test"):
        register_part_dataset(
            f"{tmp_path.name}_{split}", tmp_path / f"out_coco/annotations/{split}.json", tmp_path / "photos"
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.VAL, cfg.DATASETS.TEST = (
        (f"{tmp_path.name}_{s}",) for s in ("train", "val", "test")
    )
    check_datasets(cfg)


# --- workers ---


def die(payload: int) -> int:
    if payload == 5:
        os._exit(1)
    return payload


def test_a_dead_worker_ends_the_run():
    with pytest.raises(RuntimeError, match="a worker process died, .*fewer --workers"):
        list(in_parallel(die, ((str(i), i) for i in range(40)), 2))


def test_every_unit_is_done_once():
    assert sorted(in_parallel(die, ((f"{i:02d}", i) for i in range(5)), 2)) == [(f"{i:02d}", i) for i in range(5)]

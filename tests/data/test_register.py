"""Registration: lazy, under the metadata names other tools read, and each split its own."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

import part_robust.engine
from part_robust.config import get_part_robust_cfg
from part_robust.data import get_taxonomy, register_builtin, register_part_dataset
from part_robust.data.builtin import BUILTIN, SPLITS
from part_robust.data.part_json import load_part_json
from part_robust.modeling.part_to_class import part_metadata
from tests.toy import CLASSES, PARTS, write_toy


@pytest.fixture
def catalog(monkeypatch):
    """detectron2's catalogs without the built-in names; forgets what a test registers."""
    for each in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(each, "data", {k: v for k, v in each.data.items() if not k.startswith("part_robust_")})


@pytest.fixture
def mine(tmp_path, catalog) -> tuple[Path, Path]:
    path, root = write_toy(tmp_path)
    register_part_dataset("mine", path, root)
    return path, root


def test_nothing_is_read_before_it_is_used(tmp_path, catalog):
    register_part_dataset("later", tmp_path / "later.json", tmp_path / "images")
    metadata = MetadataCatalog.get("later")
    assert metadata.json_file == str(tmp_path / "later.json")
    assert metadata.image_root == str(tmp_path / "images")
    assert metadata.get("thing_classes") is None
    with pytest.raises(FileNotFoundError, match="later.json does not exist"):
        DatasetCatalog.get("later")
    path, _ = write_toy(tmp_path)
    path.rename(tmp_path / "later.json")
    assert len(DatasetCatalog.get("later")) == 12


def test_records_are_those_of_the_loader(mine):
    assert DatasetCatalog.get("mine") == load_part_json(*mine)[0]


def test_metadata_keep_the_conventions(mine):
    DatasetCatalog.get("mine")
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == list(PARTS)
    assert metadata.stuff_classes == [*PARTS, "background"]
    assert metadata.object_classes == metadata.obj_classes == list(CLASSES)
    assert metadata.part_classes == ["base", "board", "shade"]
    assert metadata.part_to_class == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert metadata.part_to_class_ids == [[0, 1], [], [2]]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert metadata.ignore_label == 255
    assert metadata.evaluator_type == "coco"
    assert metadata.part_robust is True


def test_metadata_of_many_parts_with_gaps_in_their_ids(tmp_path, catalog):
    path, root = write_toy(tmp_path)
    data = json.loads(path.read_text())
    data["categories"] += [{"id": 2 * i, "name": f"sign:part{i}"} for i in range(10, 262)]
    path.write_text(json.dumps(data))
    register_part_dataset("many", path, root)
    DatasetCatalog.get("many")
    metadata = MetadataCatalog.get("many")
    assert len(metadata.thing_classes) == 255 and metadata.stuff_classes[255] == "background"
    assert metadata.ignore_label == 65535
    assert metadata.thing_dataset_id_to_contiguous_id[2 * 261] == 254


def test_stock_loader_may_fill_the_same_metadata(mine):
    """It sets thing_classes and the ids itself; detectron2 refuses values that differ."""
    DatasetCatalog.get("mine")
    assert len(load_coco_json(*map(str, mine), "mine")) == 12


def test_reading_again_changes_nothing(mine):
    assert DatasetCatalog.get("mine") == DatasetCatalog.get("mine")


def test_classes_without_parts_are_warned_of(mine, caplog):
    with caplog.at_level(logging.WARNING, logger="part_robust.data.register"):
        DatasetCatalog.get("mine")
    assert [record.getMessage() for record in caplog.records] == [
        "dataset mine: classes without parts: plain. Models that read the class from parts alone need "
        "their treatment of such classes chosen in the config."
    ]


def test_no_warning_where_every_class_has_parts(mine, caplog):
    path, _ = mine
    data = json.loads(path.read_text())
    data["classes"][1]["part_category_ids"] = [1]
    path.write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING, logger="part_robust.data.register"):
        DatasetCatalog.get("mine")
    assert not caplog.records


# --- names ---


def test_a_name_is_taken_once(mine):
    with pytest.raises(ValueError, match="a dataset named 'mine' is already registered: choose another name"):
        register_part_dataset("mine", *mine)


def test_a_removed_name_keeps_its_metadata_and_says_so(mine, tmp_path):
    DatasetCatalog.remove("mine")
    with pytest.raises(ValueError, match=r"metadata of another dataset named 'mine' .* MetadataCatalog\.remove"):
        register_part_dataset("mine", tmp_path / "other.json", tmp_path)
    assert "mine" not in DatasetCatalog.list()
    MetadataCatalog.remove("mine")
    register_part_dataset("mine", *mine)
    assert len(DatasetCatalog.get("mine")) == 12


def test_three_splits_registered_in_a_loop_are_three(tmp_path, catalog):
    counts = {"train": 9, "val": 6, "test": 3}
    for split, count in counts.items():
        path, root = write_toy(tmp_path / split, count)
        register_part_dataset(f"loop_{split}", path, root)
    for split, count in counts.items():
        records = DatasetCatalog.get(f"loop_{split}")
        assert len(records) == count
        assert all(f"/{split}/images/" in record["file_name"] for record in records)
        assert MetadataCatalog.get(f"loop_{split}").json_file == str(tmp_path / split / "toy.json")


def test_documented_script_registers_and_trains(tmp_path, catalog, monkeypatch):
    """The page's two snippets, one after the other, in the folder that the page draws."""
    repository = Path(__file__).parents[2]
    page = (repository / "docs" / "data_format.md").read_text().split("## Register it")[1]
    register, train = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    command = re.search(r"^python train_bottles.py (.*?)^```", page, re.DOTALL | re.MULTILINE).group(1)
    for split, count in (("train", 9), ("val", 6), ("test", 3)):
        path, root = write_toy(tmp_path / "bottles", count)
        (path.parent / "annotations").mkdir(exist_ok=True)
        path.rename(path.parent / "annotations" / f"{split}.json")
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(part_robust.engine, "setup", lambda a: get_part_robust_cfg(repository / a.config_file, a.opts))
    monkeypatch.setattr(part_robust.engine, "train", trained.append)
    monkeypatch.setattr("sys.argv", ["train_bottles.py", *shlex.split(command.replace("\\\n", ""))])
    exec(register + train, {})
    (cfg,) = trained
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]
    assert names == ["bottles_train", "bottles_val", "bottles_test"]
    assert [len(DatasetCatalog.get(name)) for name in names] == [9, 6, 3]


# --- taxonomy of a name ---


def test_taxonomy_of_a_name_reads_the_json_once(mine):
    path, root = mine
    expected = load_part_json(path, root)[1]
    assert get_taxonomy("mine") == expected
    path.unlink()
    assert get_taxonomy("mine") == expected


def test_taxonomy_of_a_file_without_any_part_is_read_once_too(mine):
    path, _ = mine
    data = json.loads(path.read_text())
    data["annotations"], data["categories"] = [], []
    for entry in data["classes"]:
        entry["part_category_ids"] = []
    path.write_text(json.dumps(data))
    assert get_taxonomy("mine").num_parts == 0
    path.unlink()
    assert get_taxonomy("mine").class_names == CLASSES


def test_taxonomy_of_other_names(catalog):
    for read, sentence in (
        (get_taxonomy, "dataset 'nobody' is not registered: call .*register_part_dataset first"),
        (part_metadata, "must name registered data sets, got 'nobody'"),
    ):
        with pytest.raises(KeyError, match=sentence) as error:
            read("nobody")
        assert "coco_2017" not in str(error.value), "detectron2's own names are not part data sets"
    DatasetCatalog.register("foreign", list)
    with pytest.raises(ValueError, match="dataset 'foreign' is not a part dataset: use .*register_part_dataset"):
        get_taxonomy("foreign")


# --- built-in names ---


NAMES = [f"part_robust_{data}_{split}" for data in BUILTIN for split in SPLITS]


def test_builtin_names_and_files(catalog, tmp_path):
    assert register_builtin(tmp_path) == NAMES
    assert len(set(NAMES)) == 3 * len(BUILTIN)
    for name in NAMES:
        data, split = name.removeprefix("part_robust_").rsplit("_", 1)
        folder, images, _ = BUILTIN[data]
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == str(tmp_path / folder / "annotations" / f"{split}.json")
        # Without crops written, PACO's and PartImageNet's jsons say where the original images are.
        assert metadata.get("image_root") == (None if images is None else str(tmp_path / folder / images))
    assert {"part_shapes", "paco", "part_imagenet"} <= set(BUILTIN)


def test_builtin_names_that_exist_stay(catalog, tmp_path):
    path, root = write_toy(tmp_path)
    register_part_dataset(NAMES[0], path, root)
    assert register_builtin(tmp_path / "one") == register_builtin(tmp_path / "two") == NAMES
    assert MetadataCatalog.get(NAMES[0]).json_file == str(path)
    assert MetadataCatalog.get(NAMES[1]).json_file.startswith(str(tmp_path / "one"))


def test_builtin_names_are_no_other_package_s(catalog):
    assert len(DatasetCatalog.list()) > 20  # detectron2's own
    assert not set(NAMES) & set(DatasetCatalog.list())
    assert all(name.startswith("part_robust_") for name in NAMES)


def test_builtin_root_comes_from_the_environment(catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin()
    assert MetadataCatalog.get(NAMES[0]).json_file.startswith(str(tmp_path))


def test_builtin_root_is_datasets_by_default(catalog, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    register_builtin()
    assert MetadataCatalog.get(NAMES[0]).json_file == "datasets/part_shapes/annotations/train.json"


@pytest.mark.parametrize("data", BUILTIN)
def test_error_says_how_to_make_the_data(catalog, tmp_path, data):
    register_builtin(tmp_path)
    folder, _, hint = BUILTIN[data]
    name = f"part_robust_{data}_val"
    for use in (DatasetCatalog.get, get_taxonomy):
        with pytest.raises(FileNotFoundError) as info:
            use(name)
        assert str(info.value) == (
            f"dataset '{name}': annotation file {tmp_path / folder}/annotations/val.json does not exist. "
            + hint.format(folder=tmp_path / folder)
        )
    assert "part-robust " in hint and "{folder}" in hint

"""Saved attacked images are scored again by a fresh process, which finds whatever is not as the record says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from part_robust.cli import verify_adversarials
from part_robust.data import PartDatasetMapper
from part_robust.engine import evaluate
from tests.commands import call, succeeded


@pytest.fixture(scope="module")
def saved(quick_config, tmp_path_factory) -> Path:
    """Folder of an evaluation that keeps its attacked images."""
    folder = tmp_path_factory.mktemp("saved")
    evaluate(quick_config(folder, "TEST.TIER", "parts, screen", "TEST.EPS", 12.0, "TEST.SAVE_ADVERSARIALS", "npz"))
    return folder


def test_a_fresh_process_agrees(saved):
    folder = saved
    text = succeeded(call("verify_adversarials", folder))
    assert "toy_val screen: 12 images" in text and "toy_val parts: 12 images" in text
    record = json.loads((folder / "robustness.json").read_text())
    rescored = record["evaluation"]["toy_val"]["rescored"]
    assert (rescored["images"], rescored["mismatches"], rescored["before"]["status"]) == (24, 0, "pass")
    assert c5(folder)["status"] == "pass" and "fresh process" in c5(folder)["sentence"]


def test_a_device_that_is_none_and_a_record_without_a_headline(saved, tmp_path):
    """Exit code 2: 1 would say that the images are not as the record says."""
    shutil.copytree(saved, tmp_path / "cut")
    record = json.loads((saved / "robustness.json").read_text())
    del record["evaluation"]["toy_val"]["headline"]
    (tmp_path / "cut" / "robustness.json").write_text(json.dumps(record))
    for words, sentence in (
        ([str(saved), "--device", "gpu"], "--device must be a device such as cpu, cuda or cuda:0, got gpu"),
        ([str(tmp_path / "cut")], "robustness.json must have evaluation.toy_val.headline, got none"),
    ):
        done = call("verify_adversarials", *words)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def c5(folder: Path) -> dict:
    record = json.loads((folder / "robustness.json").read_text())
    (check,) = [check for check in record["evaluation"]["toy_val"]["checks"] if check["id"] == "C5"]
    return check


def tamper(path: Path, **changes) -> bytes:
    original = path.read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)
    return original


def test_what_is_wrong_is_found(saved, capsys, tmp_path):
    folder = saved
    path = sorted((folder / "adversarials_toy_val" / "screen").glob("batch_*.npz"))[0]
    assert verify_adversarials.main([str(folder)]) == 0
    before = (folder / "robustness.json").read_text()
    for changes, words in (
        ({"prediction": lambda x: (x + 1) % 3}, "when it was saved"),
        ({"images": lambda x: x + 30.0}, "outside the threat model"),
        ({"label": lambda x: (x + 1) % 3}, "other labels"),
    ):
        original = tamper(path, **changes)
        try:
            assert verify_adversarials.main([str(folder)]) == 1
            assert c5(folder)["status"] == "fail"
        finally:
            path.write_bytes(original)
        assert words in capsys.readouterr().err
    moved = path.rename(tmp_path / path.name)
    assert verify_adversarials.main([str(folder)]) == 1
    record = json.loads((folder / "robustness.json").read_text())
    verdict = record["evaluation"]["toy_val"]["verdict"]
    assert record["unreliable"] and verdict.startswith("not reportable") and "C5 1 of" in verdict
    assert "C5 1 of" in (folder / "report.md").read_text()
    assert "12 were evaluated" in capsys.readouterr().err
    moved.rename(path)
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    with pytest.raises(SystemExit) as stop:
        verify_adversarials.main([str(folder), "--weights", str(other)])
    assert stop.value.code == 2
    assert "SHA-256" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        verify_adversarials.main([str(tmp_path)])
    assert stop.value.code == 2
    assert verify_adversarials.main([str(folder)]) == 0
    assert (folder / "robustness.json").read_text() == before, "nothing is left of the findings"


def test_changes_outside_of_a_region_are_found(quick_config, tmp_path, capsys):
    opts = ["TEST.SAVE_ADVERSARIALS", "npz", "TEST.NUM_IMAGES", 5, "TEST.RESTART_GAIN", 1.0]
    evaluate(quick_config(tmp_path, "TEST.TIER", "local", *opts, "TEST.LOCAL.EPS", 40.0))
    (path,) = (tmp_path / "adversarials_toy_val" / "local").glob("batch_*.npz")
    assert verify_adversarials.main([str(tmp_path)]) == 0
    original = tamper(path, images=lambda images: 255.0 - images)
    assert verify_adversarials.main([str(tmp_path)]) == 1
    assert "changed outside of every single region of tier local" in capsys.readouterr().err
    path.write_bytes(original)
    record = json.loads((tmp_path / "robustness.json").read_text())
    record["results"]["toy_val"]["classification_local"]["accuracy"] += 20.0
    (tmp_path / "robustness.json").write_text(json.dumps(record))
    assert verify_adversarials.main([str(tmp_path)]) == 1
    assert "of the saved images are right" in capsys.readouterr().err


def test_the_radius_is_the_records(quick_config, tmp_path, capsys):
    """A change of the right pixels that is too large, in a file that says it is not."""
    opts = ["TEST.LOCAL.EPS", 6.0, "TEST.LOCAL.REGIONS", ["object"], "TEST.SAVE_ADVERSARIALS", "png"]
    evaluate(quick_config(tmp_path, "TEST.TIER", "local", *opts))
    assert verify_adversarials.main([str(tmp_path)]) == 0
    folder = tmp_path / "adversarials_toy_val" / "local"
    for path in folder.glob("batch_*.npz"):
        tamper(path, eps=lambda eps: eps + 255.0)
    assert verify_adversarials.main([str(tmp_path)]) == 0
    items = {record["image_id"]: record for record in DatasetCatalog.get("toy_val")}
    mapper = PartDatasetMapper(quick_config(tmp_path / "mapper"), is_train=False, dataset_name="toy_val")
    parts = len(MetadataCatalog.get("toy_val").thing_classes)
    found = next(item for item in map(mapper, items.values()) if (item["sem_seg"] < parts).any())
    inside = (found["sem_seg"] < parts)[:, :, None].numpy()
    picture = found["image"].permute(1, 2, 0).numpy()
    moved = np.where(inside, np.where(picture < 128, picture + 40, picture - 40), picture).astype(np.uint8)
    Image.fromarray(moved).save(folder / f"{found['image_id']}.png")
    assert verify_adversarials.main([str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "outside the threat model" in errors and "outside of every single region" not in errors

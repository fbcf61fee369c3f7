"""PartImageNet in both layouts: what the tool makes of the real files' defects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from part_robust.data import PartDatasetMapper
from part_robust.data import check as checker
from part_robust.data.part_json import load_part_json
from part_robust.data.preparation import part_imagenet
from part_robust.data.preparation.part_imagenet import prepare_part_imagenet
from part_robust.data.preparation.part_imagenet_files import find_part_imagenet, unpack
from part_robust.data.preparation.part_imagenet_names import IMAGENET_CLASSES, PARTS
from part_robust.data.preparation.part_imagenet_scan import (
    PartImageNetOptions,
    count_part_imagenet,
    draw_within_classes,
)
from part_robust.data.preparation.splits import SPLITS
from tests.data.paco_runs import contents, kill_after
from tests.data.part_imagenet_fixture import WNIDS, write_ood, write_seg

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(folder: Path, output: Path, workers: int = 1, **options) -> Path:
    prepare_part_imagenet(find_part_imagenet(folder), output, PartImageNetOptions(**options), workers)
    return output


def read(output: Path, split: str) -> dict:
    return json.loads((output / "annotations" / f"{split}.json").read_text())


def report(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def ood(tmp_path_factory) -> Path:
    folder = write_ood(tmp_path_factory.mktemp("ood"))
    assert unpack(folder) == 4 + 3 + (11 * 10 + 7) + 12 + 11 - 1
    return folder


@pytest.fixture(scope="module")
def seg(tmp_path_factory) -> Path:
    return write_seg(tmp_path_factory.mktemp("seg"))


@pytest.fixture(scope="module")
def prepared(ood, seg) -> dict[str, Path]:
    return {"ood": run(ood, ood / "out"), "seg": run(seg, seg / "out")}


@pytest.mark.parametrize("layout", ["ood", "seg"])
def test_every_json_is_good(prepared, layout, capsys):
    output = prepared[layout]
    for split in SPLITS:
        data = read(output, split)
        root = (output / "annotations" / data["info"]["part_robust"]["image_root"]).resolve()
        path = output / "annotations" / f"{split}.json"
        assert checker.main([str(path), "--image-root", str(root)]) == 0, capsys.readouterr().out
        records, taxonomy = load_part_json(path)
        mapper = PartDatasetMapper(augmentations=[], num_parts=40, ignore_label=taxonomy.ignore_label)
        assert all(mapper(record)["image"].shape == (3, 32, 40) for record in records)


def test_both_layouts_hold_the_same(prepared):
    """Masks, classes and splits; the image paths differ."""
    for split in SPLITS:
        first, second = read(prepared["ood"], split), read(prepared["seg"], split)
        assert first["annotations"] == second["annotations"]
        assert [(i["class_id"], i["source"]["wnid"]) for i in first["images"]] == [
            (i["class_id"], i["source"]["wnid"]) for i in second["images"]
        ]


def test_sizes_of_the_thesis_shuffle(prepared):
    sizes = {split: len(read(prepared["ood"], split)["images"]) for split in SPLITS}
    # 12 images of each super-category give one val and one test image; fish have 5 more (17) and lose none.
    assert sizes == {"train": 10 * 11 + 5, "val": 11, "test": 11}
    for split in ("val", "test"):
        assert sorted(image["class_id"] for image in read(prepared["ood"], split)["images"]) == list(range(1, 12))


def test_real_sizes_lie_in_the_interval():
    """24,095 images, whatever their classes: eleven roundings lose at most eleven."""
    groups = [name for i, name in enumerate(PARTS) for _ in range(2190 + i % 2)]
    groups += ["Quadruped"] * (24_095 - len(groups))
    drawn = draw_within_classes(groups, 0, (0.8, 0.1, 0.1))
    assert drawn.count("val") == drawn.count("test") and 2399 <= drawn.count("val") <= 2409
    assert 19_277 <= drawn.count("train") <= 19_297


def test_labels(prepared):
    data = read(prepared["ood"], "train")
    assert [c["name"] for c in data["classes"]] == sorted(PARTS)
    assert [c["source_id"] for c in data["categories"]] == list(range(40))
    assert data["categories"][27]["name"] == "Bicycle Body" and data["categories"][38]["name"] == "Bottle Mouth"
    names = {c["id"]: c["name"] for c in data["classes"]}
    for image in data["images"]:
        assert names[image["class_id"]] == IMAGENET_CLASSES[image["source"]["wnid"]][1]
    parts = {c["name"]: c["part_category_ids"] for c in data["classes"]}
    assert parts["Car"] == [25, 26, 27] and sum(map(len, parts.values())) == 40


def test_defects_are_counted_and_the_good_part_stays(prepared):
    for layout in ("ood", "seg"):
        counted = report(prepared[layout])["counted"]
        counts = {reason: entry["count"] for part in counted.values() for reason, entry in part.items()}
        assert counts == {
            "no_annotations": 1,
            "unknown_class": 1,
            "duplicate_content": 1,
            "part_bad_polygon": 1,
            "polygons_dropped": 2,
            "parts_of_another_super_category": 1,
        }
    everything = {}
    for split in SPLITS:
        data = read(prepared["ood"], split)
        for image in data["images"]:
            found = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            everything[Path(image["file_name"]).stem] = sorted((a["category_id"] - 1, tuple(a["bbox"])) for a in found)
    # Not the wrong rectangle that COCO tools make of two points in front.
    assert everything["n01440764_9001"] == [(9, (4.0, 4.0, 10.0, 8.0)), (10, (14.0, 4.0, 10.0, 8.0))]
    partial = [
        Path(i["file_name"]).stem for s in SPLITS for i in read(prepared["ood"], s)["images"]
        if i["part_supervision"] == "partial"
    ]  # fmt: skip
    assert partial == ["n01440764_9001"], "its third part has no area: its pixels are unknown, not background"
    assert everything["n01440764_9004"] == [(9, (4.0, 4.0, 10.0, 8.0))], "a back-slash in the json's file name"
    assert len(everything["n01440764_9008"]) == 2, "two pieces of one part"
    assert "n01440764_9007" not in everything and "n01440764_9002" not in everything


def test_components(ood, tmp_path):
    output = run(ood, tmp_path / "out", boxes="component", mode="grouped")
    boxes = [a["bbox"] for split in SPLITS for a in read(output, split)["annotations"]]
    assert len(boxes) == 10 * 22 + 22 + 22 + 2 + 2 + 1 + 1 + 2 + 1, "as many as annotations here; the twin is in too"


def test_images_without_annotations_keep_their_class(ood, tmp_path):
    output = run(ood, tmp_path / "out", mode="grouped")
    images = [image for split in SPLITS for image in read(output, split)["images"]]
    unlabelled = [image for image in images if image["part_supervision"] == "none"]
    assert [Path(image["file_name"]).stem for image in unlabelled] == ["n01440764_9002"]
    splits = {Path(i["file_name"]).stem: s for s in SPLITS for i in read(output, s)["images"]}
    assert splits["n01440764_9004"] == splits["n01440764_9007"], "the same picture twice"


def test_official_splits_and_158_classes(ood, tmp_path):
    output = run(ood, tmp_path / "out", mode="official", classes="imagenet")
    for split, expected in zip(SPLITS, (116, 12, 11), strict=True):
        data = read(output, split)
        assert len(data["images"]) == expected
        assert {image["source"]["split"] for image in data["images"]} == {split}
        assert len(data["classes"]) == 158 and len(data["categories"]) == 40
        assert {i["source"]["wnid"] for i in data["images"]} == set(WNIDS)
        by_id = {c["id"]: c for c in data["classes"]}
        assert all(by_id[i["class_id"]]["wnid"] == i["source"]["wnid"] for i in data["images"])
    assert load_part_json(output / "annotations" / "val.json")[1].part_to_class.sum() == sum(
        len(PARTS[group]) for _, group in IMAGENET_CLASSES.values()
    )
    assert "different ImageNet classes" in " ".join(report(output)["notes"])


def test_label_maps_must_agree_with_the_json(tmp_path):
    folder = write_seg(tmp_path / "seg", per_class=1, swap=(27, 28))
    with pytest.raises(ValueError, match=r"Bicycle Body \(id 27\) is 28 in the label maps"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "annotations").exists()


@pytest.mark.parametrize("layout", ["ood", "seg"])
@pytest.mark.parametrize("workers", [2, 8])
def test_same_bytes_with_more_workers(ood, seg, prepared, layout, workers):
    folder = {"ood": ood, "seg": seg}[layout]
    assert contents(run(folder, folder / f"workers{workers}", workers=workers)) == contents(prepared[layout])


@pytest.mark.parametrize("layout", ["ood", "seg"])
def test_killed_and_resumed(ood, seg, prepared, layout):
    folder = {"ood": ood, "seg": seg}[layout]
    output = folder / "killed"
    kill_after(lambda: run(folder, output), part_imagenet, "image_sample", output, units=15)
    journal = output / ".preparation" / "journal"
    journal.write_bytes(journal.read_bytes()[:-7])  # a torn last line
    run(folder, output)
    assert contents(output) == contents(prepared[layout])
    assert not (output / ".preparation").exists()


# --- finding the files ---


def test_unpacking_is_repeated_after_an_interruption(tmp_path):
    folder = write_ood(tmp_path, per_class=1)
    assert unpack(folder) > 0 and unpack(folder) == 0
    picture = next((folder / "train").rglob("*.JPEG"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:10])
    assert unpack(folder) == 1 and picture.read_bytes() == whole
    assert not list(folder.rglob("__MACOSX")) and not list(folder.rglob("._*"))


def test_zips_that_lead_outside_are_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("../outside.txt", "x")
    with pytest.raises(ValueError, match="points outside"):
        unpack(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"half of a zip")
    with pytest.raises(ValueError, match="download it again"):
        unpack(tmp_path)


def test_other_arrangements_of_the_images(ood, tmp_path):
    """Flat folders, JPEGImages/<wnid>, or only an ImageNet root beside the jsons."""
    pictures = sorted(p for split in SPLITS for p in (ood / split).rglob("*.JPEG"))
    for place in ("images/{split}/{name}", "JPEGImages/{wnid}/{name}", "elsewhere/train/{wnid}/{name}"):
        folder = tmp_path / place.split("/")[0]
        (folder / "annotations").mkdir(parents=True)
        for split in SPLITS:
            (folder / "annotations" / f"{split}.json").write_bytes((ood / f"{split}.json").read_bytes())
        for picture in pictures:
            values = {"split": picture.parts[-3], "wnid": picture.parts[-2], "name": picture.name}
            target = folder / place.format(**values)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(picture)
        files = find_part_imagenet(folder)
        assert files.layout == "ood" and len(files.images) == len(pictures)
    with pytest.raises(ValueError, match="would replace the source"):
        run(folder, folder)


def test_missing_files(ood, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.json, val\.json, test\.json not found.*PartImageNet_OOD\.zip"):
        find_part_imagenet(tmp_path)
    (tmp_path / "PartImageNet_OOD.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="--unpack"):
        find_part_imagenet(tmp_path)
    for split in SPLITS:
        (tmp_path / f"{split}.json").write_bytes((ood / f"{split}.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"(?s)138 of 138 images.*n01440764_112.*only jsons"):
        run(tmp_path, tmp_path / "out")
    scan = count_part_imagenet(find_part_imagenet(tmp_path), PartImageNetOptions())
    assert {c.name: c.status for c in scan.checks}["part categories"] == "ok", "counts need no images"


def test_pictures_that_are_cmyk_or_of_another_size(tmp_path):
    folder = write_seg(tmp_path / "seg", per_class=1)
    picture = folder / "PartImageNet" / "images" / "train" / "n01440764_9003.JPEG"
    Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(picture)
    output = run(folder, tmp_path / "out", mode="grouped")
    assert report(output)["counted"]["Left out"]["size_mismatch"]["count"] == 1

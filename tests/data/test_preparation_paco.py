"""PACO: what the tool makes of files in the exact format, all of their traps included."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from part_robust.data import PartDatasetMapper, get_taxonomy
from part_robust.data import check as checker
from part_robust.data.part_json import load_part_json
from part_robust.data.preparation.paco import PacoOptions, count_paco, prepare_paco, thesis_rules
from part_robust.data.preparation.paco_crops import CropRules, crop_window
from part_robust.data.preparation.paco_files import search_roots
from part_robust.data.preparation.splits import SPLITS
from tests.data.builtin_names import builtin_below
from tests.data.paco_fixture import HEIGHT, TRAPS, VIDEOS, WIDTH, write_paco
from tests.data.paco_runs import ALLOW, contents, killed_after, report, run

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

THESIS = PacoOptions(mode="thesis", rules=thesis_rules(CropRules()), allow_missing=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_paco(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def grouped(root) -> Path:
    return run(root, "grouped")


@pytest.fixture(scope="module")
def thesis(root) -> Path:
    return run(root, "thesis", THESIS)


class Crops:
    """Everything in the jsons of one preparation, by (source, image id, class name)."""

    def __init__(self, output: Path) -> None:
        self.items = {}
        for split in SPLITS:
            path = output / "annotations" / f"{split}.json"
            if not path.is_file():
                continue
            images = {image["id"]: image for image in json.loads(path.read_text())["images"]}
            records, taxonomy = load_part_json(path)
            mapper = PartDatasetMapper(
                augmentations=[], num_parts=taxonomy.num_parts, ignore_label=taxonomy.ignore_label
            )
            for record in records:
                image = images[record["image_id"]]
                source = image["source"]
                key = (source["dataset"], source["split"], source["image_id"], taxonomy.class_names[record["class_id"]])
                self.items[key] = (split, image, record, taxonomy, mapper)

    def trap(self, name: str, class_name: str):
        return self.items["paco_lvis_v1", "train", TRAPS[name], class_name]

    def labels(self, name: str, class_name: str) -> np.ndarray:
        """The label map in the pixels of the source image; -1 outside the crop, names instead of numbers."""
        _, image, record, taxonomy, mapper = self.trap(name, class_name)
        names = np.array([*taxonomy.part_names, "background"])
        crop = mapper(record)["sem_seg"].numpy()
        left, top, right, bottom = image["source"]["crop_xyxy"]
        full = np.full((image["source"]["image_size"][1], image["source"]["image_size"][0]), "outside", dtype=object)
        full[top:bottom, left:right] = np.where(
            crop == taxonomy.ignore_label, "ignored", names[np.minimum(crop, len(names) - 1)]
        )
        return full


@pytest.fixture(scope="module")
def crops(grouped) -> Crops:
    return Crops(grouped)


@pytest.fixture(scope="module")
def thesis_crops(thesis) -> Crops:
    return Crops(thesis)


# --- what comes out ---


def test_every_json_is_good(grouped, thesis, root, capsys):
    for output in (grouped, thesis):
        for split in SPLITS:
            path = output / "annotations" / f"{split}.json"
            assert checker.main([str(path), "--image-root", str(root)]) == 0, capsys.readouterr().out


def test_counts(root):
    found = {check.name: (check.found, check.status) for check in count_paco(search_roots(root), ALLOW).checks}
    # 24 images, 12 of them with two objects, and the traps.
    assert found["lvis train: object boxes"] == (60, "differs")
    assert found["objects kept (box at least 1 % of the image)"][0] == 57 + 8 + 8 + 6 + 3
    assert found["kept without parts"][0] == 5
    assert found["images used"][0] == 43 + 8 + 8 + 6 + 3
    assert found["lvis train: categories whose recount is not instance_count"] == (0, "ok")
    assert found["object classes"] == (75, "ok") and found["part categories"] == (456, "ok")
    assert found["classes without part categories"] == ("ball, napkin", "ok")
    assert [found[f"thesis split: {split}"][0] for split in SPLITS] == [65, 8, 8]
    assert found["grouped split: images or videos in two splits"] == (0, "ok")
    assert found["thesis split: images or videos in two splits"][0] > 0


def test_what_is_left_out_is_counted(grouped):
    counted = report(grouped)["counted"]
    left_out = {reason: entry["count"] for reason, entry in counted["Left out"].items()}
    assert left_out == {"bad_image": 1, "no_image": 1, "degenerate_box": 1, "part_rle_size_mismatch": 2}
    assert counted["In the annotations"]["below_area"]["count"] == 3
    assert str(TRAPS["truncated"]) in counted["Left out"]["bad_image"]["examples"][0]
    assert counted["Worth knowing"]["same_box_two_classes"]["count"] == 1
    assert "cannot tell them apart" in " ".join(report(grouped)["notes"])


def test_label_space(grouped, thesis):
    taxonomy = load_part_json(grouped / "annotations" / "train.json")[1]
    assert (taxonomy.num_classes, taxonomy.num_parts, taxonomy.ignore_label) == (75, 456, 65535)
    assert taxonomy.classes_without_parts == ("ball", "napkin")
    assert taxonomy.class_names[0] == "trash_can" and taxonomy.class_names[-1] == "wrench", "ranks of the source ids"
    small = load_part_json(thesis / "annotations" / "train.json")[1]
    assert small.num_classes == 75 and small.num_parts == 17, "only parts that kept objects have"
    assert {n for n in small.part_names if n.startswith("dog")} == {"dog:body", "dog:ear"}


def test_windows_and_masks_are_exact(crops):
    labels = crops.labels("ring", "watch")
    expected = np.full((HEIGHT, WIDTH), "outside", dtype=object)
    expected[2:48, 2:48] = "background"  # 30 x 30 at (10, 10), half as much again, cut at the lower border
    expected[10:40, 10:40] = "watch:strap"
    expected[20:30, 20:30] = "background"
    assert (labels == expected).all()
    labels = crops.labels("outside", "cup")
    assert (labels[10:20, :20] == "cup:base").all() and (labels[20:30, :20] == "cup:handle").all()
    assert crops.trap("outside", "cup")[1]["source"]["crop_xyxy"] == [0, 5, 28, 35]


def test_exactly_one_percent_is_kept_and_less_is_not(crops):
    assert crops.trap("one_percent", "cup")
    assert not [key for key in crops.items if key[2] == TRAPS["nothing_kept"]]
    assert [key[3] for key in crops.items if key[2] == TRAPS["small"]] == ["car_(automobile)"]


def test_neighbours_are_painted_and_those_below_one_percent_too(crops, thesis_crops):
    small = np.s_[14:18, 20:24]
    assert set(crops.labels("small", "car_(automobile)")[small].ravel()) == {"car_(automobile):antenna"}
    # The target's own parts lie on top. What is beside it shows the neighbour:
    assert {"chair:apron", "chair:arm"} <= set(crops.labels("partless_box", "chair").ravel())
    labels = thesis_crops.labels("partless_box", "dog")
    assert {"chair:apron", "chair:arm", "ignored", "background"} == set(labels[5:36, 5:36].ravel()) - {"outside"}


@pytest.mark.parametrize("name, class_name", [("ball", "ball"), ("partless_rle", "cup"), ("partless_counts", "cup")])
def test_objects_without_parts(crops, thesis_crops, name, class_name):
    _, image, _, _, _ = crops.trap(name, class_name)
    assert image["part_supervision"] == "none"
    assert set(crops.labels(name, class_name).ravel()) == {"ignored", "outside"}
    # The thesis ignores the object alone; its surroundings are background.
    labels = thesis_crops.labels(name, class_name)
    assert (labels[10:30, 10:30] == "ignored").all()
    assert set(np.delete(labels[5:35, 5:35], np.s_[5:25], axis=0).ravel()) == {"background"}


def test_without_a_mask_the_box_is_ignored(crops, thesis_crops):
    labels = thesis_crops.labels("partless_box", "dog")
    assert (labels[10:31, 10:20] == "ignored").all(), "every pixel that the box touches"
    # In the neighbour's crop too, but not on the neighbour's parts.
    labels = crops.labels("partless_box", "chair")
    assert (labels[10:31, 15:20] == "ignored").all() and (labels[5:35, 20:50] != "ignored").all()


def test_parts_that_cannot_be_decoded_supervise_nothing(crops):
    assert crops.trap("bad_parts", "knife")[1]["part_supervision"] == "none"
    assert crops.trap("wrong_size", "bottle")[1]["part_supervision"] == "partial", "one of its three parts"
    assert set(crops.labels("wrong_size", "bottle").ravel()) == {"bottle:base", "bottle:body", "ignored", "outside"}


@pytest.mark.parametrize("name", ["grey", "cmyk", "exif", "twin"])
def test_pixels_lie_under_their_masks(crops, name):
    """Each half of the drawn object has one colour, so a shifted or unturned picture would mix two."""
    _, _, record, _, mapper = crops.trap(name, "guitar")
    item = mapper(record)
    image, labels = item["image"].permute(1, 2, 0).numpy().astype(float), item["sem_seg"].numpy()
    colours = []
    for part in record["annotations"]:
        inside = image[labels == part["category_id"]]
        assert inside.std(axis=0).max() < 16
        colours.append(inside.mean(axis=0))
    assert np.abs(colours[0] - colours[1]).max() > 60


def test_two_labels_for_one_box_are_two_samples(crops):
    cup, mug = crops.trap("same_box", "cup"), crops.trap("same_box", "mug")
    assert cup[0] == mug[0] and cup[1]["source"]["crop_xyxy"] == mug[1]["source"]["crop_xyxy"]


def test_source_fields(crops):
    source = crops.trap("ring", "watch")[1]["source"]
    assert source["group"] == f"coco:{TRAPS['ring']}" and source["image_size"] == [WIDTH, HEIGHT]
    assert source["target_fraction"] == round(900 / (46 * 46), 4)
    image = crops.trap("ring", "watch")[1]
    names = load_part_json_names(crops)
    assert [names[i - 1] for i in image["neg_category_ids"]] == ["cup:rim"]
    assert [names[i - 1] for i in image["not_exhaustive_category_ids"]] == ["dog:leg"]


def load_part_json_names(crops: Crops) -> tuple[str, ...]:
    return next(iter(crops.items.values()))[3].part_names


def test_crop_window():
    ours, theirs = CropRules(), thesis_rules(CropRules())
    assert crop_window([10.5, 10.5, 20, 20], 100, 100, ours) == (5, 5, 36, 36)
    assert crop_window([10.5, 10.5, 20, 20], 100, 100, theirs) == (5, 5, 35, 35)
    assert crop_window([0, 0, 100, 50], 500, 500, ours) == (0, 0, 125, 63), "cut at the border, not shifted"
    assert crop_window([100, 10, 30, 20], 100, 100, ours) is None
    assert crop_window([99.5, 10, 30, 20], 100, 100, ours) is None, "less than a pixel inside"


@given(
    st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(0, 120), st.floats(0, 120)),
    st.integers(1, 100),
    st.integers(1, 100),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_windows_hold_the_visible_box_and_stay_inside(box, height, width, truncate):
    x, y, w, h = box
    window = crop_window(box, height, width, CropRules(truncate=truncate))
    inside = min(x + w, width) - max(x, 0) >= 1 and min(y + h, height) - max(y, 0) >= 1
    assert (window is not None) == inside
    if window is not None:
        left, top, right, bottom = window
        lost = 1 if truncate else 0  # rounding towards zero can cut the last pixel of a tiny box
        assert 0 <= left <= max(x, 0) and min(x + w, width) - lost <= right <= width
        assert 0 <= top <= max(y, 0) and min(y + h, height) - lost <= bottom <= height


def test_perfect_predictions_reach_ap_100(grouped):
    coco = COCO(str(grouped / "annotations" / "train.json"))
    predictions = [{**a, "score": 1.0} for a in coco.dataset["annotations"]]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(coco, coco.loadRes(predictions), kind)
        evaluation.params.catIds = sorted({a["category_id"] for a in predictions})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


# --- options ---


def test_small_objects_and_object_rest(root):
    output = run(root, "ignoring", PacoOptions(rules=CropRules(small_objects="ignore", object_rest="ignore"),
                                               sources=("lvis",), allow_missing=True))  # fmt: skip
    crops = Crops(output)
    assert (crops.labels("ring", "watch")[20:30, 20:30] == "ignored").all()
    assert (crops.labels("ring", "watch")[10:20, 10:40] == "watch:strap").all()


@pytest.fixture(scope="module")
def materialized(root) -> Path:
    return run(root, "written", PacoOptions(rules=CropRules(materialize="jpeg", long_side=64), allow_missing=True))


def test_materialized_crops(materialized, grouped, capsys):
    for split in SPLITS:
        path = materialized / "annotations" / f"{split}.json"
        assert checker.main([str(path), "--image-root", str(materialized / "images")]) == 0, capsys.readouterr().out
        images = json.loads(path.read_text())["images"]
        assert {max(image["width"], image["height"]) for image in images} == {64}
        assert all("crop_xyxy" not in image["source"] for image in images)
        kept = json.loads((grouped / "annotations" / f"{split}.json").read_text())["images"]
        assert len(images) == len(kept), "the splits do not depend on it"
    big = Crops(materialized).items["paco_lvis_v1", "train", TRAPS["ring"], "watch"]
    item = big[4](big[2])
    labels = item["sem_seg"].numpy()
    assert labels.shape == (64, 64) and (labels == big[3].num_parts).sum() > 0
    strap = (labels == big[2]["annotations"][0]["category_id"]).mean()
    assert strap == pytest.approx(800 / 46**2, abs=0.03)


def test_a_crop_that_changed_is_written_again(root, materialized):
    before = contents(materialized)
    options = PacoOptions(rules=CropRules(materialize="jpeg", long_side=64), allow_missing=True)
    output = root / "again"
    killed_after(root, output, options, units=20)
    crop = next((output / "images").rglob("*.jpg"))
    crop.write_bytes(b"torn")
    prepare_paco(search_roots(root), output, options)
    assert contents(output) == before


def test_official_splits(root):
    output = run(root, "official", PacoOptions(mode="official", ego4d_test=True, allow_missing=True))
    for split in SPLITS:
        images = json.loads((output / "annotations" / f"{split}.json").read_text())["images"]
        assert {image["source"]["split"] for image in images} == {split}
        assert {image["source"]["dataset"] for image in images} == {"paco_lvis_v1", "paco_ego4d_v1"}
    # The test frames are of a training video, as they may be in Ego4D.
    assert report(output)["leaks"]["groups"]["count"] == 1


def test_unknown_options():
    with pytest.raises(ValueError, match="mode"):
        PacoOptions(mode="random")
    with pytest.raises(ValueError, match="sources"):
        PacoOptions(sources=())
    with pytest.raises(ValueError, match="add up to 1"):
        PacoOptions(ratios=(0.8, 0.1, 0.2))


# --- splits ---


def test_grouped_splits_share_no_source(grouped, crops):
    groups = {split: set() for split in SPLITS}
    for split, image, *_ in crops.items.values():
        groups[split].add(image["source"]["group"])
    assert all(groups.values())
    assert not (groups["train"] & groups["val"] or groups["train"] & groups["test"] or groups["val"] & groups["test"])
    assert {f"ego4d:{video}" for video in VIDEOS} <= set.union(*groups.values()), "a whole video is one group"
    assert crops.trap("twins", "guitar")[0] == crops.trap("twin", "guitar")[0], "the same file under two names"
    found = report(grouped)["leaks"]
    assert found["groups"]["count"] == found["file contents"]["count"] == 0


def test_split_lists_name_the_samples(grouped):
    lines = {split: (grouped / "splits" / f"{split}.txt").read_text().splitlines() for split in SPLITS}
    assert sum(map(len, lines.values())) == 82 - 3, "without the missing, the truncated and the outside one"
    assert lines["train"] == sorted(lines["train"])
    assert lines["train"][0].count("/") == 3


def test_thesis_membership(root, thesis):
    scan = count_paco(search_roots(root), THESIS)
    keys = [kept.key for kept in scan.kept]
    np.random.seed(0)  # noqa: NPY002 (as the thesis's script does)
    np.random.shuffle(keys)  # noqa: NPY002
    # A tenth each, rounded down, the rest rounded down too.
    expected = {"val": keys[:8], "test": keys[8:16], "train": keys[16:81]}
    for split, members in expected.items():
        found = (thesis / "splits" / f"{split}.txt").read_text().splitlines()
        assert set(found) <= set(members) and len(members) - len(found) <= 3
    assert len(keys) == 82
    assert report(thesis)["counted"]["Left out"].get("thesis_split_remainder", {"count": 0})["count"] <= 1


def test_thesis_reads_files_in_its_own_order(root):
    scan = count_paco(search_roots(root), THESIS)
    sources = list(dict.fromkeys(kept.key.rsplit("/", 2)[0] for kept in scan.kept))
    assert sources == ["lvis/train", "lvis/val", "lvis/test", "ego4d/train", "ego4d/val"]
    ids = [int(kept.key.split("/")[-1]) for kept in scan.kept if kept.key.startswith("lvis/train")]
    assert ids == sorted(ids), "the order of the annotations"


def test_the_three_names_load_three_splits(tmp_path):
    root = write_paco(tmp_path, regular=12)
    prepare_paco(search_roots(root), root / "paco", ALLOW)
    names = [f"part_robust_paco_{split}" for split in SPLITS]
    with builtin_below(root):
        loaded = [DatasetCatalog.get(name) for name in names]
        assert len({get_taxonomy(name) for name in names}) == 1
        assert os.path.samefile(MetadataCatalog.get(names[0]).image_root, root)
    sources = [{(r["file_name"], tuple(r["crop_xyxy"]), r["class_id"]) for r in records} for records in loaded]
    assert all(sources) and not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])

"""The pieces that all preparation tools share: masks, splits, journal, report."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from part_robust.data.preparation.images import check_image, read_rgb
from part_robust.data.preparation.journal import PreparationJournal, locked
from part_robust.data.preparation.report import Check, PreparationCounts
from part_robust.data.preparation.segmentation import (
    SkippedError,
    box_mask,
    clean_polygons,
    decode,
    encode,
    part_annotation,
    tight,
)
from part_robust.data.preparation.splits import (
    SPLITS,
    check_ratios,
    join_groups,
    shared_between_splits,
    split_of_group,
    thesis_shuffle,
)

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

H, W = 12, 16


def blob() -> np.ndarray:
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[3:7, 2:9] = 1
    mask[5, 4] = 0
    return mask


def in_image(segmentation, height: int = H, width: int = W) -> np.ndarray:
    return decode(segmentation, height, width)[0].inside((0, 0, width, height))


# --- masks ---


def test_every_spelling_of_a_mask_is_the_same():
    mask = blob()
    as_bytes = coco_mask.encode(np.asfortranarray(mask))
    runs = np.diff(np.flatnonzero(np.diff(mask.flatten(order="F"), prepend=0, append=2)), prepend=0)
    for segmentation in (
        encode(mask),
        {"size": [H, W], "counts": as_bytes["counts"]},
        {"size": [H, W], "counts": [int(run) for run in runs]},
    ):
        assert (in_image(segmentation) == mask).all()
    whole = mask.copy()
    whole[5, 4] = 1
    assert (in_image([[2.0, 3.0, 9.0, 3.0, 9.0, 7.0, 2.0, 7.0]]) == whole).all()


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        ([], "no_mask"),
        (None, "no_mask"),
        ([[1.0, 2.0, 3.0, 4.0]], "bad_polygon"),
        ([[1.0, 2.0], "x"], "bad_polygon"),
        ([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0]], "bad_polygon"),
        ([[1.0, 1.0, float("nan"), 1.0, 2.0, 2.0]], "bad_polygon"),
        ([[-9.0, 1.0, -5.0, 1.0, -5.0, 4.0]], "empty_mask"),
        ([[1.0, 1.0, 2e8, 1.0, 2e8, 4.0]], "far_outside"),
        ({"size": [W, H], "counts": "`0"}, "rle_size_mismatch"),
        ({"size": [H, W], "counts": [5, 5]}, "bad_rle"),
        ({"size": [H, W]}, "bad_rle"),
        ({"size": [H, W], "counts": "é"}, "bad_rle"),
        (encode(np.zeros((H, W))), "empty_mask"),
    ],
)
def test_masks_that_cannot_be_used_say_why(segmentation, reason):
    with pytest.raises(SkippedError) as info:
        decode(segmentation, H, W)
    assert info.value.reason == reason


def test_two_points_in_front_are_no_box():
    """COCO's own tool reads four numbers as a box that reaches far right and down."""
    good = [2.0, 3.0, 9.0, 3.0, 9.0, 7.0, 2.0, 7.0]
    mask, dropped = decode([[2.0, 3.0, 4.0, 5.0], good, [1.0, 1.0]], H, W)
    assert dropped == 2 and (mask.inside((0, 0, W, H)) == in_image([good])).all()
    assert clean_polygons([good])[0] == [good]


@given(st.integers(-4, 16), st.integers(-4, 12), st.integers(1, 20), st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_a_window_of_a_tight_mask_is_the_window_of_the_mask(left, top, width, height):
    mask = blob()
    padded = np.pad(mask, 40)
    expected = padded[top + 40 : top + height + 40, left + 40 : left + width + 40]
    assert (tight(mask).inside((left, top, left + width, top + height)) == expected).all()


def test_tight_and_box_masks():
    assert tight(np.zeros((3, 3))) is None
    assert tight(blob()).area == blob().sum() and (tight(blob()).x, tight(blob()).y) == (2, 3)
    mask = box_mask([1.5, -2, 3, 5], H, W)
    assert (mask.x, mask.y, mask.pixels.shape) == (1, 0, (3, 4)) and mask.area == 12
    assert box_mask([W + 1, 0, 4, 4], H, W) is None


def test_part_annotations_measure_the_mask():
    annotation = part_annotation(blob(), 7, object_id=3, is_target=0)
    assert annotation["bbox"] == [2.0, 3.0, 7.0, 4.0] and annotation["area"] == 27
    assert (annotation["category_id"], annotation["object_id"], annotation["is_target"]) == (7, 3, 0)
    assert (in_image(annotation["segmentation"]) == blob()).all()


# --- images ---


def test_images(tmp_path):
    pixels = np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    assert check_image(path, W, H) == check_image(path, W, H)
    assert (read_rgb(path, W, H) == pixels).all()
    for size, reason in (((H, W), "size_mismatch"), ((W + 1, H), "size_mismatch")):
        with pytest.raises(SkippedError) as info:
            check_image(path, *size)
        assert info.value.reason == reason
    path.write_bytes(b"no picture")
    with pytest.raises(SkippedError) as info:
        check_image(path, W, H)
    assert info.value.reason == "bad_image"
    with pytest.raises(SkippedError) as info:
        check_image(tmp_path / "none.png", W, H)
    assert info.value.reason == "no_image"


# --- splits ---


def test_split_of_a_group_depends_on_nothing_else():
    drawn = [split_of_group(f"coco:{i}") for i in range(10_000)]
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert drawn.count(split) / 10_000 == pytest.approx(share, abs=0.012)  # three standard deviations
    assert drawn != [split_of_group(f"coco:{i}", seed=1) for i in range(10_000)]
    assert {split_of_group(f"{i}", ratios=(0, 1, 0)) for i in range(20)} == {"val"}


def test_groups_with_common_content_are_joined():
    joined = join_groups([("b", "1"), ("a", "2"), ("c", "2"), ("b", "2"), ("d", "3"), ("d", "4")])
    assert joined == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_thesis_sizes():
    drawn = thesis_shuffle(123_315)
    assert [drawn.count(split) for split in SPLITS] == [98_652, 12_331, 12_331]
    assert drawn.count(None) == 1, "one object is lost"


def test_shared_between_splits():
    members = [("a", "train"), ("a", "train"), ("b", "train"), ("b", "val")]
    assert shared_between_splits(members) == {"b": ["train", "val"]}
    with pytest.raises(ValueError, match="add up to 1"):
        check_ratios((0.5, 0.5, 0.1))


# --- journal ---


@pytest.mark.parametrize("lost", range(0, 90, 7))
def test_a_torn_journal_keeps_its_whole_lines(tmp_path, lost):
    path = tmp_path / "work" / "journal"
    journal = PreparationJournal(path, {"seed": 0}, tmp_path)
    for unit in "cab":
        journal.append(unit, {"samples": [unit * 20]})
    journal.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - lost])
    kept = content[: len(content) - lost].count(b"\n") - 1
    journal = PreparationJournal(path, {"seed": 0}, tmp_path)
    assert journal.units == sorted("cab"[:kept])
    for unit in "cab"[kept:]:
        journal.append(unit, {"samples": [unit * 20]})
    assert [(unit, result["samples"]) for unit, result in journal.results()] == [(u, [u * 20]) for u in "abc"]
    journal.close()
    assert path.read_bytes() == content


def test_a_journal_believes_no_changed_line(tmp_path):
    path = tmp_path / "work" / "journal"
    journal = PreparationJournal(path, {}, tmp_path)
    journal.append("a", {"samples": [1]})
    journal.append("b", {"samples": [2]})
    journal.close()
    path.write_bytes(path.read_bytes().replace(b"[2]", b"[3]"))
    assert PreparationJournal(path, {}, tmp_path).units == ["a"]


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "work"), pytest.raises(RuntimeError, match="another process"), locked(tmp_path / "work"):
        pass
    with locked(tmp_path / "work"):
        pass


# --- report ---


def test_checks():
    assert Check("a", (1, 2), 2).status == "ok" and Check("a", (1,), 2).status == "differs"
    assert Check("a", (1,), 2, exact=True).status == "FAIL" and Check("a", (), 2).status == "-"
    assert Check("a", (310_423, 310_603), 5).row() == ["a", "310,423 or 310,603", "5", "differs"]


def test_a_tally_keeps_the_first_examples():
    tally = PreparationCounts()
    for index in range(30):
        tally.add("why", str(index))
    assert tally.counts["why"] == 30 and tally.examples["why"] == [str(i) for i in range(20)]

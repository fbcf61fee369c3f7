"""Imported images are divided by class, no picture lies on two sides; files are safe and repeat to the byte."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from part_robust.data.check import check_images
from part_robust.data.importers.classes import class_from_folder
from part_robust.data.importers.items import Source
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.splits import divide, join, near_pairs
from part_robust.data.part_json import load_part_json
from part_robust.data.validation import violations
from tests.data.coco_source import (
    annotation,
    contents,
    counted,
    many,
    membership,
    one_class,
    picture,
    read,
    run,
    write_source,
)

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- splits ---


def test_fractions_are_stratified(tmp_path):
    report = run(many(tmp_path), tmp_path / "out", class_from_folder, fractions=("0.7", "0.1", "0.2"))
    assert report["images"] == {
        "train": {"desk": 7, "lamp": 21},
        "val": {"desk": 1, "lamp": 3},
        "test": {"desk": 2, "lamp": 6},
    }
    ids = [image["id"] for split in ("train", "val", "test") for image in read(tmp_path / "out", split)["images"]]
    assert sorted(ids) == list(range(1, 41))


def test_seed_changes_the_split_and_the_order_of_the_json_does_not(tmp_path):
    source = many(tmp_path)
    run(source, tmp_path / "a", class_from_folder, fractions=("0.5", "0.5", "0"))
    run(source, tmp_path / "b", class_from_folder, fractions=("0.5", "0.5", "0"), seed=1)
    assert membership(tmp_path / "a") != membership(tmp_path / "b")
    data = json.loads(source.json_file.read_text())
    data["images"].reverse()
    data["categories"].reverse()
    source.json_file.write_text(json.dumps(data))
    run(source, tmp_path / "c", class_from_folder, fractions=("0.5", "0.5", "0"))
    for key in ("images", "annotations", "classes", "categories"):
        assert read(tmp_path / "a")[key] == read(tmp_path / "c")[key]


def test_equal_pictures_stay_together(tmp_path):
    for index in range(40):
        # 0, 10, 20, 30 show one picture, in one class or the other.
        picture(tmp_path / "photos" / f"{'lamp' if index % 4 else 'desk'}/{index:02d}.png", index % 10 or 99)
    report = run(many(tmp_path), tmp_path / "out", class_from_folder, fractions=("0.5", "0.25", "0.25"))
    split_of = membership(tmp_path / "out")
    by_picture: dict[int, set] = {}
    for name, split in split_of.items():
        by_picture.setdefault(int(name[-6:-4]) % 10, set()).add(split)
    assert len(split_of) == 40 and all(len(splits) == 1 for splits in by_picture.values())
    assert len(set(split_of.values())) == 3
    assert counted(report)["duplicate_content"] == 30 and counted(report)["duplicate_with_other_class"] > 0


def test_equal_pixels_in_other_files_are_duplicates(tmp_path):
    picture(tmp_path / "photos/a.png", 0)
    Image.open(tmp_path / "photos/a.png").save(tmp_path / "photos/b.bmp")
    report = run(write_source(tmp_path, ["a.png", "b.bmp"], []), tmp_path / "out")
    assert counted(report)["duplicate_content"] == 1


def test_given_splits_are_kept_and_leaks_told(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    train = many(first)
    for seed, name in ((0, "x"), (1, "y"), (500, "z")):
        picture(second / f"photos/lamp/{name}.png", seed)
    test = write_source(second, ["lamp/x.png", "lamp/y.png", "lamp/z.png"], [annotation(1)])
    given_train = Source(train.json_file, train.image_root, "train")
    given_test = Source(test.json_file, test.image_root, "test")
    report = run([given_train, given_test], tmp_path / "out", class_from_folder)
    assert sum(report["images"]["train"].values()) == 40 and sum(report["images"]["test"].values()) == 3
    assert counted(report)["duplicate_across_given_splits"] == 2
    # Images that are to be divided give way.
    report = run([train, given_test], tmp_path / "out2", class_from_folder, fractions=("0.5", "0.5", "0"))
    assert counted(report)["duplicate_of_given_split"] == 2
    assert sum(report["images"]["train"].values()) + sum(report["images"]["val"].values()) == 38
    assert not {"one/photos/desk/00.png", "one/photos/lamp/01.png"} & set(membership(tmp_path / "out2"))
    # The very file of a given split gives way as well; one file in two given splits is refused.
    both = [Source(test.json_file, test.image_root), given_test]
    again = run(both, tmp_path / "out3", class_from_folder, fractions=("0", "0", "1"))
    assert counted(again)["duplicate_of_given_split"] == 3 and list(again["images"]) == ["test"]
    with pytest.raises(ValueError, match="x.png is in the splits train and test"):
        given = Source(test.json_file, test.image_root, "train")
        run([given, given_test], tmp_path / "out4", class_from_folder)
    # File names are relative to the common folder of both image roots.
    for split in ("train", "val", "test"):
        load_part_json(tmp_path / f"out2/annotations/{split}.json", tmp_path / "out2" / report["image_root"])


@pytest.mark.parametrize("group_by", ["folder", r"/(\d)\d\.png"])
def test_groups_by_name(tmp_path, group_by):
    names = [f"{i // 8}/{i // 4}{i % 4}.png" for i in range(32)]
    source = write_source(tmp_path, names, [annotation(1)])
    run(source, tmp_path / "out", fractions=("0.5", "0.25", "0.25"), group_by=group_by)
    by_group: dict[str, set] = {}
    for name, split in membership(tmp_path / "out").items():
        by_group.setdefault(name[0] if group_by == "folder" else name[2], set()).add(split)
    assert all(len(splits) == 1 for splits in by_group.values()) and len(by_group) == (4 if group_by == "folder" else 8)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"group_by": "(a"}, "not a regular expression"),
        ({"group_by": "a"}, r"with a \(group\)"),
        ({"group_by": "(zzz)"}, "finds nothing in 8 file names"),
        ({"fractions": ("0.8", "0.1", "0.2")}, "sum to 1"),
        ({"fractions": ("1.1", "-0.1", "0")}, "sum to 1"),
        ({"fractions": ("a", "0", "1")}, "must be three numbers"),
        ({"fractions": ("0.98", "0.01", "0.01")}, "no image is left for split test"),
        ({"class_part_share": 2.0}, r"must be 0\.\.1"),
    ],
)
def test_wrong_settings(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(many(tmp_path, 8), tmp_path / "out", class_from_folder, **fields)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wide", "given", "noted"),
    [
        ("d", ("train", "test"), 1),
        ("ad", ("train", "test"), 0),  # training images are wide, too
        ("", ("train", "test"), 0),
        ("ad", ("test", "test"), 0),  # no training images
    ],
)
def test_images_shaped_unlike_the_training_images(wide, given, noted, tmp_path):
    sources = []
    for names, split in zip(("ab", "cd"), given, strict=True):
        sizes = {f"{name}.png": {"width": 60 if name in wide else 40, "height": 40} for name in names}
        for name, size in sizes.items():
            picture(tmp_path / names / "photos" / name, ord(name[0]), (size["width"], size["height"]))
        source = write_source(tmp_path / names, list(sizes), [annotation(1), annotation(2, 2)], sizes=sizes)
        sources.append(replace(source, split=split))
    report = run(sources, tmp_path / "out", fractions=("0", "0", "1"))
    assert counted(report).get("shape_unlike_training", 0) == noted
    if noted:
        assert "d.png (60 x 40)" in report["noted"]["shape_unlike_training"]["examples"][0]


def test_near_pairs_and_near_grouping(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    for index in range(12):
        small = np.random.default_rng(index // 2).integers(0, 256, (16, 17, 3), dtype=np.uint8)
        large = np.asarray(Image.fromarray(small).resize((17 * 4, 16 * 4), Image.Resampling.NEAREST)).astype(int)
        (tmp_path / "photos").mkdir(exist_ok=True)
        # The second of a pair is a little brighter: other pixels, the same picture.
        Image.fromarray(np.clip(large + 3 * (index % 2), 0, 255).astype(np.uint8)).save(
            tmp_path / "photos" / names[index]
        )
    source = write_source(tmp_path, names, [], sizes={name: {"width": 68, "height": 64} for name in names})
    report = run(source, tmp_path / "out", fractions=("0.5", "0.5", "0"), group_by="near")
    assert counted(report)["near_duplicate"] == 6 and "duplicate_content" not in counted(report)
    split_of = membership(tmp_path / "out")
    assert all(split_of[f"{i}.png"] == split_of[f"{i + 1}.png"] for i in range(0, 12, 2))
    assert set(split_of.values()) == {"train", "val"}


def test_near_pairs_counts_bits():
    signs = np.random.default_rng(0).random((3, 256)) < 0.5
    signs[1] = signs[0]
    signs[1, :10] ^= True
    signs[2] = signs[0]
    signs[2, 100:111] ^= True
    assert near_pairs(signs) == [(0, 1)]


def test_too_many_images_for_near_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("part_robust.data.importers.splits.NEAR_LIMIT", 7)
    monkeypatch.setattr("part_robust.data.importers.samples.read_picture", lambda path: pytest.fail())
    with pytest.raises(ValueError, match="takes at most 7 images, not 8"):
        run(many(tmp_path, 8), tmp_path / "out", class_from_folder, group_by="near")


def test_join_follows_chains():
    assert join(5, [[1, 1, 2, None, None], [None, 7, 7, None, None]], [(3, 4)]) == [0, 0, 0, 3, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=60), st.integers(0, 3))
def test_divide_keeps_groups_and_shares(entries, seed):
    """Groups never split; each class is within its largest groups of its exact share."""
    names = [f"{i}.png" for i in range(len(entries))]
    groups = [group for _, group in entries]
    classes = [f"{'abc'[group % 3]}" for group in groups]
    shares = {"train": Fraction("0.6"), "val": Fraction("0.4"), "test": Fraction(0)}
    result = divide(names, classes, groups, shares, seed)
    assert result == divide(names, classes, groups, shares, seed)
    assert all(len({s for s, g in zip(result, groups, strict=True) if g == group}) == 1 for group in set(groups))
    for label in set(classes):
        members = [i for i, found in enumerate(classes) if found == label]
        largest = max(groups.count(groups[i]) for i in members)
        for split, share in shares.items():
            got = sum(result[i] == split for i in members)
            assert abs(got - share * len(members)) <= largest


# --- files ---


def test_same_bytes_again_and_over_an_earlier_import(tmp_path):
    fields = {"fractions": ("0.8", "0.1", "0.1"), "copy_images": True}
    source = many(tmp_path)
    run(source, tmp_path / "a", class_from_folder, **fields)
    run(source, tmp_path / "b", class_from_folder, fractions=("0.5", "0.3", "0.2"), copy_images=True)
    (tmp_path / "b/images/lamp/01.png").write_bytes(b"half")
    run(source, tmp_path / "b", class_from_folder, **fields)
    expected = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == expected
    assert len(expected) == 40 + 3 + 2 and not [name for name in expected if name.endswith(".tmp")]
    for split in ("train", "val", "test"):
        data = read(tmp_path / "a", split)
        assert not list(violations(data)) and not check_images(data, tmp_path / "a/images")


def test_images_stay_where_they_are_by_default(tmp_path):
    source = many(tmp_path, 4)
    before = contents(tmp_path / "photos")
    report = run(source, tmp_path / "sub/out", class_from_folder)
    assert contents(tmp_path / "photos") == before
    assert sorted(contents(tmp_path / "sub/out")) == ["annotations/train.json", "report.json", "report.md"]
    assert (tmp_path / "sub/out" / report["image_root"]).resolve() == (tmp_path / "photos").resolve()
    records, taxonomy = load_part_json(tmp_path / "sub/out/annotations/train.json", tmp_path / "photos")
    assert len(records) == 4 and taxonomy.part_names == ("base", "shade")


def test_failure_while_writing_leaves_the_earlier_import(tmp_path, monkeypatch):
    source = many(tmp_path)
    run(source, tmp_path / "out", class_from_folder)
    before = contents(tmp_path / "out")

    def full_disk(a, b):
        raise OSError("disk full")

    monkeypatch.setattr("part_robust.data.importers.output.os.replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        run(source, tmp_path / "out", class_from_folder, seed=3)
    after = {name: content for name, content in contents(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert after == before


def test_files_of_others_and_of_other_label_spaces_are_safe(tmp_path):
    source = many(tmp_path)
    out = tmp_path / "out"
    (out / "annotations").mkdir(parents=True)
    (out / "annotations/train.json").write_text("{}")
    with pytest.raises(ValueError, match=r"train\.json was not written by import_coco: .*--force"):
        run(source, out, class_from_folder)
    assert (out / "annotations/train.json").read_text() == "{}"
    run(source, out, class_from_folder, force=True)
    other = Source(source.json_file, source.image_root, "test")
    with pytest.raises(ValueError, match=r"train\.json is a split of an earlier import, .*--force, which removes it"):
        run(other, out, one_class)
    assert sorted(path.name for path in (out / "annotations").iterdir()) == ["train.json"]
    run(other, out, class_from_folder, force=True)
    assert sorted(path.name for path in (out / "annotations").iterdir()) == ["test.json"]


def test_reasons_are_complete():
    with pytest.raises(KeyError):
        ImportCounts().add("because", "x")
    tally = ImportCounts()
    for index in range(30):
        tally.add("no_class", str(index))
    assert tally.by_kind()["skipped"] == {"no_class": {"count": 30, "examples": [str(i) for i in range(20)]}}

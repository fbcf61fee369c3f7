"""PartShapes: the drawn files are exact, repeatable, and give the class away by shape only."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from part_robust.data.part_shapes import CLASSES, PARTS, draw_part_shape, make_part_shapes, write_contact_sheet

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNTS = {"train": 40, "val": 10}
COMMAND_LINE = Path(__file__).parents[2] / "datasets" / "make_part_shapes.py"


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("part_shapes")
    make_part_shapes(root, COUNTS, part_free_fraction=0.1)
    return root


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1200 images (N, 32, 32, 3), the share of each that the object covers (N,), and class indices (N,)."""
    names = list(CLASSES)
    labels = np.arange(1200) % len(names)
    drawings = [draw_part_shape(names[c], np.random.default_rng([7, i]), 32) for i, c in enumerate(labels)]
    areas = [sum(p.mask.mean() for p in drawing.parts) for drawing in drawings]
    return np.stack([drawing.image for drawing in drawings]), np.array(areas), labels


# --- the same bytes, whatever the way there ---


def test_same_bytes_again_with_two_processes(drawn, tmp_path):
    make_part_shapes(tmp_path, COUNTS, part_free_fraction=0.1, workers=2)
    expected = _contents(drawn)
    assert len(expected) == 50 + 2
    assert _contents(tmp_path) == expected


def test_counts_do_not_change_an_image(drawn, tmp_path):
    make_part_shapes(tmp_path, {"val": 3, "train": 25}, part_free_fraction=0.1)
    expected = _contents(drawn)
    images = {name: content for name, content in _contents(tmp_path).items() if name.endswith(".png")}
    assert len(images) == 28
    for name, content in images.items():
        assert content == expected[name], name
    few, many = _read(tmp_path / "annotations/train.json"), _read(drawn / "annotations/train.json")
    assert few["images"] == many["images"][:25]
    assert few["annotations"] == many["annotations"][: len(few["annotations"])]


def test_seed_and_split_change_every_image(drawn, tmp_path):
    make_part_shapes(tmp_path, {"train": 10}, seed=1)
    for i in range(1, 11):
        train = (drawn / f"images/train/{i:06d}.png").read_bytes()
        assert train != (drawn / f"images/val/{i:06d}.png").read_bytes()
        assert train != (tmp_path / f"images/train/{i:06d}.png").read_bytes()


# --- the format ---


@pytest.mark.parametrize("split", COUNTS)
def test_json_keeps_the_rules_of_the_format(drawn, split):
    data = _read(drawn / "annotations" / f"{split}.json")
    header = data["info"]["part_robust"]
    assert (header["format"], header["format_version"], header["split"]) == ("part-classification", 1, split)
    assert header["seed"] == 0 and len(header["config_hash"]) == 32
    assert [c["id"] for c in data["categories"]] == list(range(1, len(PARTS) + 1))
    assert len({c["name"] for c in data["categories"]}) == len(PARTS)
    assert [c["id"] for c in data["classes"]] == list(range(1, len(CLASSES) + 1))
    for key in ("images", "annotations"):
        assert [entry["id"] for entry in data[key]] == list(range(1, len(data[key]) + 1))

    parts_of = {c["id"]: set(c["part_category_ids"]) for c in data["classes"]}
    annotations = defaultdict(list)
    for annotation in data["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image in data["images"]:
        picture = cv2.imread(str(drawn / "images" / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3)
        if image["part_supervision"] == "none":
            assert image["id"] not in annotations
            continue
        assert image["part_supervision"] == "full"
        assert annotations[image["id"]]
        painted = np.zeros((image["height"], image["width"]), int)
        for annotation in annotations[image["id"]]:
            assert annotation["category_id"] in parts_of[image["class_id"]]
            assert (annotation["iscrowd"], annotation["is_target"]) == (0, 1)
            assert annotation["object_id"] >= 1
            rle = annotation["segmentation"]
            assert isinstance(rle["counts"], str)
            assert rle["size"] == [image["height"], image["width"]]
            mask = mask_util.decode(rle)
            assert annotation["area"] == mask.sum() >= 4
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert annotation["bbox"] == [float(v) for v in box]
            painted += mask
        assert painted.max() == 1, "masks of one image overlap"


def test_stock_coco_loads_it(drawn):
    coco = COCO(str(drawn / "annotations/train.json"))
    assert len(coco.getImgIds()) == 40
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == set(PARTS)
    annotation = coco.loadAnns(coco.getAnnIds())[0]
    assert coco.annToMask(annotation).sum() == annotation["area"]


def test_shared_and_own_parts():
    owners = Counter(part for object_class in CLASSES.values() for part in object_class.parts)
    assert {part for part, count in owners.items() if count > 1} == {"head", "wheel"}
    assert all(":" in part for part, count in owners.items() if count == 1)
    assert all(2 <= len(object_class.parts) <= 5 for object_class in CLASSES.values())
    assert len(CLASSES) >= 8


def test_classes_are_balanced_and_not_in_a_fixed_order(drawn):
    classes = [image["class_id"] for image in _read(drawn / "annotations/train.json")["images"]]
    assert set(Counter(classes).values()) == {4}
    assert classes[:10] != classes[10:20]


@pytest.mark.parametrize("fraction, expected", [(0.0, 0), (0.05, 1), (0.25, 5), (1.0, 20)])
def test_share_of_part_free_images(tmp_path, fraction, expected):
    json_file = make_part_shapes(tmp_path, {"test": 20}, image_size=32, part_free_fraction=fraction)["test"]
    data = _read(json_file)
    free = {image["id"] for image in data["images"] if image["part_supervision"] == "none"}
    assert len(free) == expected
    assert {a["image_id"] for a in data["annotations"]} == {i["id"] for i in data["images"]} - free


@pytest.mark.parametrize("size", [33, 48, 96, 250])
def test_masks_lie_on_the_object_at_any_size(size):
    """The same object in the same place: the masks of every size agree with those of 512 pixels."""
    for name in CLASSES:
        small = draw_part_shape(name, np.random.default_rng(3), size)
        large = draw_part_shape(name, np.random.default_rng(3), 512)
        assert small.image.shape == (size, size, 3) and small.image.dtype == np.uint8
        here = np.any([p.mask for p in small.parts], axis=0)
        there = np.any([p.mask for p in large.parts], axis=0).astype(np.float32)
        there = cv2.resize(there, (size, size), interpolation=cv2.INTER_AREA) > 0.5
        assert (here & there).sum() / (here | there).sum() > 0.88, name


# --- a real recognition problem ---


def test_every_part_is_seen_often_and_large_enough():
    seen, total = Counter(), 40
    for name in CLASSES:
        for i in range(total):
            parts = {
                p.part for p in draw_part_shape(name, np.random.default_rng([5, i]), 64).parts if p.mask.sum() >= 8
            }
            assert parts <= set(CLASSES[name].parts)
            seen.update((name, part) for part in parts)
    for name, object_class in CLASSES.items():
        for part in object_class.parts:
            assert seen[name, part] >= 0.5 * total, (name, part)


def test_object_stands_out_from_the_background():
    contrasts, extents = [], []
    for name in CLASSES:
        for i in range(20):
            drawing = draw_part_shape(name, np.random.default_rng([6, i]), 64)
            inside = np.any([p.mask for p in drawing.parts], axis=0)
            image = drawing.image.astype(float)
            contrasts.append(np.abs(image[inside] - image[~inside].mean(axis=0)).mean())
            ys, xs = np.nonzero(inside)
            extents.append(max(np.ptp(ys), np.ptp(xs)) / 64)
    assert np.mean(np.array(contrasts) > 60) > 0.95
    assert min(extents) > 0.35 and max(extents) < 0.95


def _linear_accuracy(features: np.ndarray, labels: np.ndarray, train: int = 800) -> float:
    """Test accuracy of a ridge classifier; labels (N,), the first `train` rows are for training."""
    mean, std = features[:train].mean(axis=0), features[:train].std(axis=0) + 1e-6
    x = np.hstack([(features - mean) / std, np.ones((len(features), 1))])
    target = np.eye(labels.max() + 1)[labels[:train]]
    gram = x[:train].T @ x[:train] + 30.0 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:train].T @ target)
    return float(((x[train:] @ weights).argmax(axis=1) == labels[train:]).mean())


def _centroid_accuracy(features: np.ndarray, labels: np.ndarray, train: int = 800) -> float:
    centroids = np.stack([features[:train][labels[:train] == c].mean(axis=0) for c in range(labels.max() + 1)])
    distances = ((features[train:, None] - centroids) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == labels[train:]).mean())


def _mean_and_spread(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


def _joint_histogram(images: np.ndarray) -> np.ndarray:
    """4 x 4 x 4 colour bins."""
    bins = (images // 64).astype(int) @ np.array([16, 4, 1])
    return np.stack([np.bincount(b.ravel(), minlength=64) for b in bins]).astype(float)


def _sorted_histogram(images: np.ndarray) -> np.ndarray:
    """How many colours there are, whichever they are."""
    return np.sort(_joint_histogram(images), axis=1)[:, ::-1][:, :20]


@pytest.mark.parametrize("statistics", [_mean_and_spread, _joint_histogram, _sorted_histogram])
def test_colours_do_not_tell_the_class(many, statistics):
    images, _, labels = many
    features = statistics(images)
    limit = 2.0 / len(CLASSES)
    assert _linear_accuracy(features, labels) < limit
    assert _centroid_accuracy(features, labels) < limit


def test_these_checks_would_notice_a_colour_shortcut(many):
    """The same check on images that are lighter the higher their class index."""
    images, _, labels = many
    tinted = np.clip(images.astype(int) // 2 + 12 * labels[:, None, None, None], 0, 255).astype(np.uint8)
    assert _linear_accuracy(_mean_and_spread(tinted), labels) > 2.0 / len(CLASSES)


def test_area_does_not_tell_the_class(many):
    """The best rule on the object's area alone stays near chance."""
    _, areas, labels = many
    tenth = np.digitize(areas, np.quantile(areas[:800], np.linspace(0, 1, 11)[1:-1]))
    votes = np.zeros((10, len(CLASSES)))
    np.add.at(votes, (tenth[:800], labels[:800]), 1)
    assert (votes.argmax(axis=1)[tenth[800:]] == labels[800:]).mean() < 2.0 / len(CLASSES)


# --- folders ---


def test_drawn_folder_is_left_alone(drawn):
    times = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    files = make_part_shapes(drawn, COUNTS, part_free_fraction=0.1)
    assert files == {split: drawn / "annotations" / f"{split}.json" for split in COUNTS}
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == times


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"image_size": 48}, {"part_free_fraction": 0.5}, {"counts": {"val": 9}}]
)
def test_other_settings_are_refused_before_anything_is_touched(drawn, other):
    before = _contents(drawn)
    arguments = {"counts": {"test": 5, "val": 10}, "part_free_fraction": 0.1, **other}
    with pytest.raises(ValueError, match=r"images/val holds PartShapes images of other settings .* --root.*--force"):
        make_part_shapes(drawn, **arguments)
    assert _contents(drawn) == before


def test_overwrite_replaces_and_clears_left_over_images(tmp_path):
    make_part_shapes(tmp_path / "a", {"test": 8}, image_size=32)
    make_part_shapes(tmp_path / "a", {"test": 5}, image_size=40, overwrite=True)
    make_part_shapes(tmp_path / "b", {"test": 5}, image_size=40)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


def test_interrupted_drawing_is_repeated(tmp_path, monkeypatch):
    from part_robust.data.part_shapes import samples

    settings = {"counts": {"train": 60}, "image_size": 32}
    make_part_shapes(tmp_path / "whole", **settings)
    drawn_so_far = []

    def draw_until_killed(*args):
        drawn_so_far.append(args)
        if len(drawn_so_far) > 30:
            raise KeyboardInterrupt
        return draw_part_shape(*args)

    monkeypatch.setattr(samples, "draw_part_shape", draw_until_killed)
    with pytest.raises(KeyboardInterrupt):
        make_part_shapes(tmp_path / "cut", **settings)
    assert not (tmp_path / "cut/annotations/train.json").exists()
    (tmp_path / "cut/images/train/000031.png.tmp").write_bytes(b"half")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other settings"):
        make_part_shapes(tmp_path / "cut", seed=1, **settings)
    make_part_shapes(tmp_path / "cut", **settings)
    assert _contents(tmp_path / "cut") == _contents(tmp_path / "whole")


def test_lost_image_is_drawn_again(tmp_path):
    make_part_shapes(tmp_path, {"test": 5}, image_size=32)
    before = _contents(tmp_path)
    (tmp_path / "images/test/000003.png").unlink()
    make_part_shapes(tmp_path, {"test": 5}, image_size=32)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("name", ["images/train/holiday.png", "annotations/train.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_replaced(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text('{"info": {}}')
    with pytest.raises(ValueError, match="was not written by PartShapes"):
        make_part_shapes(tmp_path, {"train": 2}, overwrite=overwrite)
    assert _contents(tmp_path) == {name: b'{"info": {}}'}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"counts": {"train": 0}}, "counts must have at least one image"),
        ({"counts": {"train": -1}}, "must not be negative"),
        ({"counts": {"../train": 1}}, "split name"),
        ({"image_size": 31}, r"32\.\.512"),
        ({"image_size": 513}, r"32\.\.512"),
        ({"part_free_fraction": 1.5}, r"0\.\.1"),
        ({"workers": -1}, "workers"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_part_shapes(tmp_path, **{"counts": {"train": 1}, **wrong})
    assert not list(tmp_path.iterdir())


def test_unknown_class_names_the_choices():
    with pytest.raises(ValueError, match="unknown class 'dragon'; choose one of quadruped"):
        draw_part_shape("dragon", np.random.default_rng(0))


# --- to look at ---


def test_contact_sheet_has_a_row_per_class(drawn, tmp_path):
    sheet = cv2.imread(str(write_contact_sheet(drawn, tmp_path / "sheet.jpg", columns=3, tile=64)))
    assert sheet.shape == (len(CLASSES) * (64 + 18), 2 * 3 * 64, 3)


def test_command_line(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("make_part_shapes_command", COMMAND_LINE)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    arguments = ["--root", str(tmp_path / "d"), "--train", "12", "--val", "0", "--test", "3", "--size", "32"]
    command.main([*arguments, "--contact-sheet", str(tmp_path / "sheet.jpg")])
    assert "train: 12 images" in capsys.readouterr().out
    assert (tmp_path / "sheet.jpg").stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "d/annotations").iterdir()) == ["test.json", "train.json"]
    with pytest.raises(SystemExit, match="--force"):
        command.main([*arguments, "--seed", "1"])
    command.main([*arguments, "--seed", "1", "--force"])
    assert _read(tmp_path / "d/annotations/train.json")["info"]["part_robust"]["seed"] == 1

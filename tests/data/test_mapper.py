"""The mapper: one geometry for image, label map, masks and boxes; what is painted; which files it reads how."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from PIL import Image

from part_robust.data import PartDatasetMapper, register_part_dataset
from part_robust.data.augmentations import build_test_augmentations
from part_robust.data.transforms import CenterCrop, Letterbox, RandomResizedCrop
from tests.toy import SIZE, encode, tiny_cfg, write_toy

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MEAN = [123.675, 116.28, 103.53]


def annotation(mask: np.ndarray, category: int, identifier: int = 1, **more) -> dict:
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    return {
        "id": identifier,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "area": float(mask.sum()),
        "is_target": 1,
        "segmentation": encode(mask),
        **more,
    }


def rectangle(left: int, top: int, right: int, bottom: int, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def record_of(path: Path, pixels: np.ndarray, annotations: list[dict], **more) -> dict:
    Image.fromarray(pixels).save(path)
    return {
        "file_name": str(path),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "image_id": 7,
        "class_id": 2,
        "part_supervision": "full",
        "annotations": annotations,
        **more,
    }


def plain(shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    return np.full((*shape, 3), 100, np.uint8)


def mapper(*augmentations, num_parts: int = 3, ignore_label: int = 255, masks_from: str = "masks"):
    return PartDatasetMapper(
        augmentations=augmentations, num_parts=num_parts, ignore_label=ignore_label, masks_from=masks_from
    )


# --- one geometry ---


@pytest.fixture
def nearest(monkeypatch):
    """The image is resized like its labels, so that each pixel can be compared."""
    original = T.ResizeTransform.__init__

    def init(self, h, w, new_h, new_w, interp=None):
        original(self, h, w, new_h, new_w, Image.Resampling.NEAREST)

    monkeypatch.setattr(T.ResizeTransform, "__init__", init)


def coded_record(path: Path, shape: tuple[int, int], num_parts: int, ignore_label: int) -> dict:
    """An image whose every pixel has an independent label, written into its red and green values."""
    generator = np.random.default_rng(shape[0] * 1000 + shape[1])
    labels = generator.integers(0, num_parts + 1, shape)
    labels[generator.random(shape) < 0.1] = ignore_label
    pixels = np.stack([labels % 256, labels // 256, np.full(shape, 9)], axis=-1).astype(np.uint8)
    parts = [part for part in range(num_parts) if (labels == part).any()]
    annotations = [annotation(labels == part, part, i) for i, part in enumerate(parts, 1)]
    return record_of(path, pixels, annotations, ignore_segmentation=encode(labels == ignore_label))


def check_geometry(record: dict, result: dict, num_parts: int, ignore_label: int) -> None:
    image = result["image"].long()
    height, width = image.shape[1:]
    h, w = result.get("content_size", (height, width))
    assert (image[2, :h, :w] == 9).all()
    labels = torch.full((height, width), ignore_label)
    labels[:h, :w] = (image[0] + 256 * image[1])[:h, :w]
    assert torch.equal(result["sem_seg"], labels)

    instances = result["instances"]
    parts = [a["category_id"] for a in record["annotations"] if (labels == a["category_id"]).any()]
    assert instances.gt_classes.tolist() == parts
    assert instances.image_size == (height, width)
    for part, mask, box in zip(parts, instances.gt_masks.tensor, instances.gt_boxes.tensor, strict=True):
        assert torch.equal(mask, labels == part)
        ys, xs = torch.nonzero(labels == part, as_tuple=True)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


SHAPES = [(37, 53), (53, 37), (64, 64), (7, 200), (201, 5), (1, 40)]
GEOMETRIES = {
    "train": lambda size: [RandomResizedCrop(size, (0.08, 1.0), (0.75, 1.3333)), T.RandomFlip(prob=0.5)],
    "flip": lambda size: [T.RandomFlip(prob=1.0)],
    "centre crop": lambda size: [T.ResizeShortestEdge(size, max_size=1 << 30), CenterCrop(size)],
    "larger, then centre crop": lambda size: [T.ResizeShortestEdge(size + 5, max_size=1 << 30), CenterCrop(size)],
    "letterbox": lambda size: [Letterbox(size, MEAN)],
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("num_parts", "ignore_label"), [(5, 255), (300, 65535)])
def test_image_labels_masks_and_boxes_move_together(tmp_path, nearest, geometry, shape, num_parts, ignore_label):
    record = coded_record(tmp_path / "coded.png", shape, num_parts, ignore_label)
    for size in (32, 33):
        mapping = mapper(*GEOMETRIES[geometry](size), num_parts=num_parts, ignore_label=ignore_label)
        for seed in range(4 if geometry == "train" else 1):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002  (detectron2's augmentations draw from it)
            result = mapping(record)
            if geometry != "flip":
                assert result["image"].shape == (3, size, size)
            check_geometry(record, result, num_parts, ignore_label)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_labels_lie_on_the_image_under_its_own_interpolation(tmp_path, geometry):
    """A bright part on black: the image is half bright exactly where the label begins, up to one pixel."""
    mask = rectangle(20, 11, 53, 30, (37, 53))
    record = record_of(tmp_path / "bright.png", np.stack([mask * 255] * 3, -1), [annotation(mask, 0)])
    for seed in range(5):
        torch.manual_seed(seed)
        result = mapper(*GEOMETRIES[geometry](32))(record)
        h, w = result.get("content_size", result["image"].shape[1:])
        bright = result["image"][0, :h, :w] > 127
        label = result["sem_seg"][:h, :w] == 0
        assert bright.any() and label.any()
        rows, columns = bright.any(1).sum() - label.any(1).sum(), bright.any(0).sum() - label.any(0).sum()
        assert abs(int(rows)) <= 1 and abs(int(columns)) <= 1
        assert int((bright ^ label).sum()) <= sum(label.shape) * 2


# --- what comes out ---


def test_result_of_a_config(toy_data):
    records = DatasetCatalog.get("toy_val")
    before = copy.deepcopy(records)
    cfg = tiny_cfg()
    for is_train in (True, False):
        mapping = PartDatasetMapper(cfg, is_train=is_train, dataset_name="toy_val")
        for record in records:
            result = mapping(record)
            for key in ("file_name", "image_id", "class_id", "part_supervision"):
                assert result[key] == record[key]
            assert (result["height"], result["width"]) == (SIZE, SIZE)
            assert (result["image"].dtype, result["image"].shape) == (torch.uint8, (3, SIZE, SIZE))
            assert (result["sem_seg"].dtype, result["sem_seg"].shape) == (torch.int64, (SIZE, SIZE))
            assert isinstance(result["instances"].gt_masks, BitMasks)
            assert result["instances"].gt_masks.tensor.dtype == torch.bool
            assert result["instances"].gt_boxes.tensor.dtype == torch.float32
            assert result["instances"].gt_classes.dtype == torch.int64
            assert "content_size" not in result
    assert records == before


def test_test_mode_changes_nothing_and_keeps_the_targets(toy_data):
    """At the data's own size the centre crop is the image itself."""
    mapping = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    for record in DatasetCatalog.get("toy_val"):
        result, again = mapping(record), mapping(record)
        pixels = np.asarray(Image.open(record["file_name"]))
        assert np.array_equal(result["image"].permute(1, 2, 0).numpy(), pixels)
        assert torch.equal(result["sem_seg"], again["sem_seg"])
        assert len(result["instances"]) == len(record["annotations"])
        expected = torch.full((SIZE, SIZE), 3 if record["part_supervision"] == "full" else 255)
        for a, box in zip(record["annotations"], result["instances"].gt_boxes.tensor, strict=True):
            x, y, w, h = map(int, a["bbox"])
            assert box.tolist() == [x, y, x + w, y + h]
            expected[y : y + h, x : x + w] = a["category_id"]
        if "ignore_segmentation" in record:
            expected[24:, 24:] = 255
        assert torch.equal(result["sem_seg"], expected)


def test_labels_above_255_come_through_file_and_config(tmp_path):
    """Stock detectron2 reads label maps as 8 bits, where 256, 299 and 65535 are one."""
    path, root = write_toy(tmp_path)
    data = json.loads(path.read_text())
    data["categories"] += [{"id": i, "name": f"sign:part{i}"} for i in range(4, 301)]
    data["annotations"][0]["category_id"], data["annotations"][1]["category_id"] = 300, 257
    path.write_text(json.dumps(data))
    register_part_dataset("three_hundred", path, root)
    try:
        mapping = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="three_hundred")
        result = mapping(DatasetCatalog.get("three_hundred")[0])
    finally:
        DatasetCatalog.remove("three_hundred")
        MetadataCatalog.remove("three_hundred")
    assert result["sem_seg"].unique().tolist() == [256, 299, 300, 65535]
    assert result["instances"].gt_classes.tolist() == [299, 256]


def test_image_without_annotations(tmp_path):
    result = mapper(CenterCrop(16))(record_of(tmp_path / "x.png", plain(), []))
    assert (result["sem_seg"] == 3).all()
    instances = result["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, 16, 16) and instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64


@pytest.mark.parametrize(("size", "box"), [(SIZE, [9, 5, 10, 6]), (2 * SIZE, [18, 10, 20, 12])])
def test_one_pixel_part(tmp_path, size, box):
    record = record_of(tmp_path / "x.png", plain(), [annotation(rectangle(9, 5, 10, 6), 1)])
    result = mapper(T.Resize((size, size)))(record)
    assert result["instances"].gt_boxes.tensor.tolist() == [box]
    assert int((result["sem_seg"] == 1).sum()) == (size // SIZE) ** 2


def test_a_part_too_small_to_be_left_is_no_instance(tmp_path):
    parts = [annotation(rectangle(x, 5, x + 1, 6), x - 8, x) for x in (8, 9, 10)]
    result = mapper(T.Resize((8, 8)))(record_of(tmp_path / "x.png", plain(), parts))
    visible = result["instances"].gt_classes.tolist()
    assert len(visible) < 3
    assert sorted(visible) == [label for label in result["sem_seg"].unique().tolist() if label != 3]


def test_parts_that_leave_the_crop(tmp_path):
    shape = (16, 64)
    masks = [rectangle(0, 0, 20, 16, shape), rectangle(18, 4, 30, 8, shape), rectangle(45, 2, 64, 6, shape)]
    record = record_of(tmp_path / "x.png", plain(shape), [annotation(m, i, i + 1) for i, m in enumerate(masks)])
    instances = mapper(CenterCrop(16))(record)["instances"]  # columns 24..39
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.tolist() == [[0, 4, 6, 8]]


# --- what is painted ---


@pytest.mark.parametrize(("supervision", "rest"), [("full", 3), ("partial", 255), ("none", 255)])
def test_what_is_not_painted(tmp_path, supervision, rest):
    parts = [] if supervision == "none" else [annotation(rectangle(4, 4, 20, 12), 1)]
    ignore = rectangle(10, 0, 32, 8)
    record = record_of(
        tmp_path / "x.png", plain(), parts, part_supervision=supervision, ignore_segmentation=encode(ignore)
    )
    result = mapper()(record)
    expected = np.full((SIZE, SIZE), rest)
    if parts:
        expected[4:12, 4:20] = 1
    expected[ignore > 0] = 255
    assert np.array_equal(result["sem_seg"].numpy(), expected)
    # Ignored pixels are not scored, but the object still reaches there.
    assert result["instances"].gt_boxes.tensor.tolist() == ([[4, 4, 20, 12]] if parts else [])


def overlapping(**changes) -> list[dict]:
    """Three parts over one another at pixel (10, 10): areas 400, 100, 100, ids 1, 2, 3."""
    masks = [rectangle(0, 0, 20, 20), rectangle(5, 5, 15, 15), rectangle(8, 8, 18, 18)]
    parts = [annotation(mask, i, i + 1) for i, mask in enumerate(masks)]
    for key, values in changes.items():
        for part, value in zip(parts, values, strict=True):
            part[key] = value
    return parts


@pytest.mark.parametrize(
    ("changes", "top"),
    [
        ({}, [0, 1, 2]),  # small over large; of equal ones the later id
        ({"id": [1, 3, 2]}, [0, 2, 1]),
        ({"area": [50, 100, 70]}, [0, 1, 2]),  # the masks' own areas, whatever the json says
        ({"is_target": [1, 0, 0]}, [1, 2, 0]),
        ({"is_target": [1, 1, 0]}, [2, 0, 1]),
        ({"is_target": [0, 1, 0], "area": [1, 900, 2]}, [0, 2, 1]),
    ],
)
def test_painting_order(tmp_path, changes, top):
    parts = overlapping(**changes)
    expected = np.full((SIZE, SIZE), 3)
    for part in top:
        mask = (rectangle(0, 0, 20, 20), rectangle(5, 5, 15, 15), rectangle(8, 8, 18, 18))[part]
        expected[mask > 0] = part
    for order in (parts, parts[::-1]):
        result = mapper()(record_of(tmp_path / "x.png", plain(), order))
        assert np.array_equal(result["sem_seg"].numpy(), expected)
        # Instances keep their whole masks.
        assert sorted(result["instances"].gt_masks.tensor.sum((1, 2)).tolist()) == [100, 100, 400]


def test_polygons_are_painted_as_their_masks(tmp_path):
    """Two polygons whose corners lie between pixels and the mask of their union, through the training crop."""
    mask = np.maximum(rectangle(4, 4, 12, 20), rectangle(10, 15, 30, 25))
    polygons = [[4, 4, 12, 4, 12, 20, 4, 20], [10, 15, 30, 15, 30, 25, 10, 25]]
    results = []
    for segmentation in (encode(mask), polygons):
        record = record_of(tmp_path / "x.png", plain(), [annotation(mask, 1, segmentation=segmentation)])
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        results.append(mapper(*GEOMETRIES["train"](24))(record))
    assert torch.equal(results[0]["sem_seg"], results[1]["sem_seg"])
    assert (results[0]["sem_seg"] == 1).any()
    assert torch.equal(results[0]["instances"].gt_masks.tensor, results[1]["instances"].gt_masks.tensor)


def test_polygons_that_stick_out_are_cut(tmp_path):
    part = annotation(rectangle(0, 4, 8, 12), 1, segmentation=[[-9, 4, 8, 4, 8, 12, -9, 12]])
    result = mapper()(record_of(tmp_path / "x.png", plain(), [part]))
    assert result["instances"].gt_boxes.tensor.tolist() == [[0, 4, 8, 12]]


# --- boxes painted as masks ---


@pytest.mark.parametrize(
    ("bbox", "painted"),
    [
        ([4, 5, 6, 7], [4, 5, 10, 12]),
        ([4.2, 5.9, 6, 7], [4, 5, 11, 13]),  # every pixel the box touches
        ([-0.5, -0.5, 10, 10], [0, 0, 10, 10]),
        ([20, 24, 12.5, 8.5], [20, 24, 32, 32]),
        ([9.3, 9.3, 0.2, 0.2], [9, 9, 10, 10]),
    ],
)
@pytest.mark.parametrize("has_mask", [True, False])
def test_boxes_as_masks(tmp_path, bbox, painted, has_mask):
    part = annotation(rectangle(0, 0, 2, 2), 1, bbox=bbox)
    if not has_mask:
        del part["segmentation"]
    result = mapper(masks_from="boxes")(record_of(tmp_path / "x.png", plain(), [part]))
    assert result["instances"].gt_boxes.tensor.tolist() == [painted]
    left, top, right, bottom = painted
    assert np.array_equal(result["sem_seg"].numpy() == 1, rectangle(left, top, right, bottom) > 0)


def test_a_box_within_another_stays_visible(tmp_path):
    """A thin slanted part has fewer pixels than the part that its box contains."""
    slanted = np.eye(SIZE, dtype=np.uint8)
    small = rectangle(10, 10, 20, 20)
    assert slanted.sum() < small.sum()
    parts = [annotation(slanted, 0, 1), annotation(small, 1, 2)]
    for order in (parts, parts[::-1]):
        result = mapper(masks_from="boxes")(record_of(tmp_path / "x.png", plain(), order))
        assert np.array_equal(result["sem_seg"].numpy(), 0 + small)


def test_boxes_only_without_the_switch_say_so(tmp_path):
    part = annotation(rectangle(4, 4, 8, 8), 1, identifier=12)
    del part["segmentation"]
    record = record_of(tmp_path / "x.png", plain(), [part])
    with pytest.raises(ValueError) as info:
        mapper()(record)
    assert str(info.value) == (
        f"{tmp_path / 'x.png'}: annotation 12 has only a box, no `segmentation`. "
        "To train on boxes painted as masks set INPUT.PART_MASKS boxes"
    )


def test_switch_in_the_config(toy_data):
    records = copy.deepcopy(DatasetCatalog.get("toy_val"))
    expected = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")(records[0])
    for part in records[0]["annotations"]:
        del part["segmentation"]
    cfg = tiny_cfg("deeplab_two_headed", "INPUT.PART_MASKS", "boxes")
    result = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_val")(records[0])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])  # the toy's parts are their boxes
    with pytest.raises(ValueError, match="INPUT.PART_MASKS must be masks or boxes, is box"):
        PartDatasetMapper(tiny_cfg("resnet", "INPUT.PART_MASKS", "box"), is_train=False, dataset_name="toy_val")


# --- letterbox ---


def test_letterbox_tells_its_content_and_ignores_the_padding(tmp_path):
    cfg = tiny_cfg("resnet", "INPUT.TEST_TRANSFORM", "letterbox")
    mask = rectangle(0, 0, 64, 20, (20, 64))
    record = record_of(tmp_path / "x.png", plain((20, 64)), [annotation(mask, 1)])
    result = mapper(*build_test_augmentations(cfg))(record)
    assert result["content_size"] == (10, 32)
    assert (result["image"][:, :10] == 100).all()
    assert (result["image"][:, 10:] == torch.tensor([124, 116, 104])[:, None, None]).all()
    assert (result["sem_seg"][:10] == 1).all() and (result["sem_seg"][10:] == 255).all()
    assert result["instances"].gt_boxes.tensor.tolist() == [[0, 0, 32, 10]]

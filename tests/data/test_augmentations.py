"""Changes of training images: pixels and parts move together, and what shows nothing of the image counts nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn.functional import max_pool2d, pad

from part_robust.data.augmentations import build_train_augmentations
from part_robust.data.mapper import PartDatasetMapper
from tests.toy import encode, tiny_cfg

SIZE = 64
# Pixel value of background, of the two parts, and of what the image does not show (the mean of the config).
COLOURS = {2: 40, 0: 120, 1: 220}
OFF = ["INPUT.FLIP_PROB", 0.0, "INPUT.CROP_SCALE", (1.0, 1.0), "INPUT.CROP_RATIO", (1.0, 1.0), "INPUT.SIZE", SIZE]


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    """An image whose pixel values tell its label: a large part with a small one inside."""
    labels = np.full((SIZE, SIZE), 2)
    labels[8:50, 12:60] = 0
    labels[20:40, 20:36] = 1
    picture = np.vectorize(COLOURS.get)(labels).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.fromarray(np.repeat(picture[..., None], 3, axis=2)).save(path)
    annotations = [
        {"id": 1 + part, "category_id": part, "is_target": 1, "segmentation": encode(labels == part)} for part in (0, 1)
    ]
    fields = {"file_name": str(path), "height": SIZE, "width": SIZE, "image_id": 1, "class_id": 0}
    return {**fields, "part_supervision": "full", "annotations": annotations}


def mapped(record: dict, seed: int, *opts) -> dict:
    cfg = tiny_cfg("resnet", *OFF, *opts)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what detectron2's augmentations draw from)
    return PartDatasetMapper(augmentations=build_train_augmentations(cfg), num_parts=2, ignore_label=255)(record)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.floats(1, 180), st.sampled_from([0.0, 1.0]), st.booleans())
def test_pixels_and_parts_move_together(record, seed, degrees, erasing, flip):
    opts = ["INPUT.ROTATION", degrees, "INPUT.ERASING_PROB", erasing, "INPUT.FLIP_PROB", float(flip)]
    item = mapped(record, seed, *opts, "INPUT.CROP_SCALE", (0.5, 1.0), "MODEL.PIXEL_MEAN", [170.0] * 3)
    image, labels = item["image"][0], item["sem_seg"]
    hidden = labels == 255
    # Interpolation mixes colours at borders of labels and of the image: elsewhere the colour is the label's.
    around = pad(labels[None, None].float(), (2, 2, 2, 2), value=999.0)
    inside = (-max_pool2d(-around, 5, 1) == max_pool2d(around, 5, 1))[0, 0]
    assert inside.float().mean() > 0.2
    # An erased rectangle may end on the blurred edge of a corner; the test below has it alone.
    for label, value in (COLOURS if erasing else {**COLOURS, 255: 170}).items():
        # Labels are 50 and more apart.
        assert ((image[inside & (labels == label)].int() - value).abs() <= 10).all()
    for mask, part in zip(item["instances"].gt_masks.tensor, item["instances"].gt_classes, strict=True):
        assert mask.any() and not (mask & hidden).any()
        assert part == 0 or (labels[mask] == part).all()
    boxes = item["instances"].gt_masks.get_bounding_boxes().tensor
    torch.testing.assert_close(item["instances"].gt_boxes.tensor, boxes)


def test_corners_of_a_rotation_and_erased_pixels_count_nowhere(record):
    plain = mapped(record, 0)
    turned = mapped(record, 3, "INPUT.ROTATION", 45.0, "MODEL.PIXEL_MEAN", [170.0] * 3)
    assert not (plain["sem_seg"] == 255).any()
    corner = turned["sem_seg"][0, 0] if turned["sem_seg"][0, 0] == 255 else turned["sem_seg"][-1, -1]
    assert corner == 255 and 0 < (turned["sem_seg"] == 255).sum() < SIZE**2 / 2
    erased = mapped(record, 0, "INPUT.ERASING_PROB", 1.0, "MODEL.PIXEL_MEAN", [170.0] * 3)
    hidden = erased["sem_seg"] == 255
    assert 0.01 < hidden.float().mean() < 0.4 and (erased["image"][:, hidden] == 170).all()
    assert torch.equal(erased["image"][:, ~hidden], plain["image"][:, ~hidden])
    assert torch.equal(erased["sem_seg"][~hidden], plain["sem_seg"][~hidden])


def test_colours_change_and_nothing_moves(record):
    plain, changed, opts = mapped(record, 1), 0, ["INPUT.RAND_AUGMENT", (3, 15)]
    for seed in range(8):
        item = mapped(record, seed, *opts)
        assert torch.equal(item["sem_seg"], plain["sem_seg"])
        assert torch.equal(item["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor)
        changed += not torch.equal(item["image"], plain["image"])
        again = mapped(record, seed, *opts)
        assert torch.equal(item["image"], again["image"]), "the seed decides"
    assert changed >= 4


def test_the_fixture_s_masks_are_what_it_says(record):
    areas = [int(coco_mask.area(annotation["segmentation"])) for annotation in record["annotations"]]
    assert areas == [42 * 48 - 20 * 16, 20 * 16]

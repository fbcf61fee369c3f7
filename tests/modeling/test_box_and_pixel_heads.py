"""Bounding-Box and Pixel heads: numbers by hand, any image shape, parts of zero mass."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.data import PartDatasetMapper
from part_robust.modeling import PartOutput
from part_robust.modeling.heads.bounding_box import BoundingBoxHead, box_features, published_box_features
from part_robust.modeling.heads.pixel import PixelHead, foreground_weights
from part_robust.modeling.part_to_class import PartToClass
from part_robust.utils.errors import UserError
from tests.toy import tiny_cfg


def logits_of(labels: torch.Tensor, count: int, strength: float = 40.0) -> torch.Tensor:
    """(H, W) labels -> (1, count, H, W) logits that are nearly sure."""
    return strength * torch.nn.functional.one_hot(labels, count).permute(2, 0, 1)[None].float()


def test_centroid_and_spread_of_a_rectangle():
    labels = torch.full((10, 20), 2)
    labels[2:6, 4:14] = 0
    _, x, y, spread_x, spread_y = box_features(logits_of(labels, 3))[0, 0]
    # Columns 4..13 are centred at 9 of 20, rows 2..5 at 4 of 10; n pixels in a row spread sqrt((n^2 - 1) / 12).
    assert float(x) == pytest.approx(2 * 9 / 20 - 1, abs=1e-5)
    assert float(y) == pytest.approx(2 * 4 / 10 - 1, abs=1e-5)
    assert float(spread_x) == pytest.approx(2 / 20 * np.sqrt(99 / 12), abs=1e-4)
    assert float(spread_y) == pytest.approx(2 / 10 * np.sqrt(15 / 12), abs=1e-4)


def test_features_are_weighted_moments():
    """Against the definition in double precision, with odd, oblong maps and parts of any mass."""
    logits = 3 * torch.randn(2, 4, 7, 13, generator=torch.Generator().manual_seed(0))
    features = box_features(logits).double().numpy()
    exact = logits.double().numpy()
    p = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    x, y = (np.arange(13) + 0.5) / 13 * 2 - 1, (np.arange(7) + 0.5) / 7 * 2 - 1
    foreground = 1 - p[:, -1]
    for image, part in itertools.product(range(2), range(4)):
        mass = p[image, part] / p[image, part].sum()
        mean_x, mean_y = (mass * x).sum(), (mass * y[:, None]).sum()
        wanted = [
            (exact[image, part] * foreground[image]).sum() / foreground[image].sum(),
            mean_x,
            mean_y,
            np.sqrt((mass * (x - mean_x) ** 2).sum()),
            np.sqrt((mass * (y[:, None] - mean_y) ** 2).sum()),
        ]
        assert np.allclose(features[image, part], wanted, atol=1e-4)


def test_object_normalisation_does_not_see_where_the_object_is():
    def image(left, top, scale):
        labels = torch.full((64, 96), 2)
        labels[top : top + 8 * scale, left : left + 6 * scale] = 0
        labels[top + 8 * scale : top + 12 * scale, left : left + 6 * scale] = 1
        return box_features(logits_of(labels, 3, 60.0), "object")[0, :2, 1:]

    torch.testing.assert_close(image(3, 5, 2), image(50, 30, 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(image(3, 5, 2), image(20, 10, 4), atol=2e-2, rtol=0)
    assert (box_features(logits_of(torch.zeros(8, 8, dtype=torch.long), 3), "image")[0, 0, 1:3].abs() < 1e-5).all()


@pytest.mark.parametrize("normalize", ["image", "object", "published"])
@pytest.mark.parametrize("strength", [0.0, 40.0, 1e4])
@pytest.mark.parametrize("place", ["background", "one pixel", "one part"])
def test_finite_with_finite_gradients_for_a_part_of_zero_mass(normalize, strength, place):
    labels = torch.full((5, 9), {"one part": 1}.get(place, 3))
    if place == "one pixel":
        labels[2, 3] = 0
    logits = logits_of(labels, 4, strength).requires_grad_(True)
    features = published_box_features(logits) if normalize == "published" else box_features(logits, normalize)
    assert torch.isfinite(features).all()
    # Each of the numbers alone, or infinities could cancel.
    for value in features.flatten():
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 4)])
@pytest.mark.parametrize(
    ("normalize", "use_score", "drop_background"),
    [
        *itertools.product(["image", "object"], [True, False], [True, False]),
        *(("published", use_score, True) for use_score in (True, False)),
    ],
)
def test_every_option_on_every_shape(size, normalize, use_score, drop_background):
    torch.manual_seed(0)
    head = BoundingBoxHead(
        num_parts=3,
        num_classes=5,
        hidden_dim=6,
        normalize=normalize,
        use_score=use_score,
        drop_background=drop_background,
        norm="BN",
    )
    assert head.layers[0].in_channels == (5 if use_score else 4) * (3 if drop_background else 4)
    logits = torch.randn(2, 4, *size, requires_grad=True)
    result = head({}, PartOutput(sem_seg_logits=logits))
    assert result.shape == (2, 5)
    head.eval()({}, PartOutput(sem_seg_logits=logits)).square().sum().backward()
    assert torch.isfinite(logits.grad).all() and (size == (1, 1) or logits.grad.any())


def test_config_reaches_the_heads(toy_data):
    node = "MODEL.BOUNDING_BOX_HEAD."
    opts = [node + "NORMALIZE", "object", node + "USE_SCORE", False, node + "DROP_BACKGROUND", False]
    head = build_model(tiny_cfg("deeplab_bounding_box", *opts, node + "HIDDEN_DIM", 7)).head
    assert (head.normalize, head.use_score, head.drop_background) == ("object", False, False)
    assert head.layers[-1].in_features == 7
    head = build_model(tiny_cfg("deeplab_pixel", "MODEL.PIXEL_HEAD.FOREGROUND_WEIGHTS", True)).head
    assert head.foreground_weights
    opts = ["MODEL.PART_TO_CLASS.LEARNED", True, "MODEL.PART_TO_CLASS.NORMALIZE", True]
    head = build_model(tiny_cfg("deeplab_pixel", *opts)).head
    assert isinstance(head.part_to_class.matrix, torch.nn.Parameter)
    assert head.part_to_class.matrix[:2, 0].tolist() == [0.5, 0.5], "lamp has two parts"
    with pytest.raises(UserError, match="DROP_BACKGROUND must be True with NORMALIZE published"):
        build_model(tiny_cfg("deeplab_bounding_box", node + "NORMALIZE", "published", node + "DROP_BACKGROUND", False))
    with pytest.raises(ValueError, match="image, object or published"):
        build_model(tiny_cfg("deeplab_bounding_box", node + "NORMALIZE", "box"))


def test_pixel_head_is_the_mean_of_class_maps():
    """Sitawarin et al. multiply each pixel by the matrix and average the maps."""
    matrix = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    logits = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    maps = torch.einsum("nphw,pc->nchw", logits[:, :3], torch.tensor(matrix))
    head = PixelHead(part_to_class=PartToClass(matrix=matrix))
    torch.testing.assert_close(head({}, PartOutput(sem_seg_logits=logits)), maps.mean(dim=(-2, -1)))
    foreground = 1 - logits.softmax(dim=1)[:, -1:]
    expected = (maps * foreground).sum(dim=(-2, -1)) / foreground.sum(dim=(-2, -1))
    head = PixelHead(part_to_class=PartToClass(matrix=matrix), foreground_weights=True)
    torch.testing.assert_close(head({}, PartOutput(sem_seg_logits=logits)), expected)


def test_foreground_weights_of_pure_background():
    logits = torch.zeros(1, 3, 8)
    logits[:, -1] = 1e4
    logits.requires_grad_(True)
    weights = foreground_weights(logits)
    torch.testing.assert_close(weights, torch.full((1, 1, 8), 1 / 8))
    (gradient,) = torch.autograd.grad(weights[0, 0, 0], logits)
    assert torch.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize("name", ["deeplab_bounding_box", "deeplab_pixel"])
def test_learns_from_random_weights(toy_data, name):
    torch.manual_seed(0)
    cfg = tiny_cfg(name)
    model = build_model(cfg).train()
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_train")
    batch = [mapper(record) for record in DatasetCatalog.get("toy_train")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(80):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    assert [int(output["class_logits"].argmax()) for output in outputs] == [item["class_id"] for item in batch]

"""The meta-architecture with its heads: shapes, the shortest path, losses that count what they should."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust.config import get_part_robust_cfg
from part_robust.data import PartDatasetMapper
from part_robust.losses.part_segmentation import part_cross_entropy
from part_robust.modeling import PartClassifier
from part_robust.modeling.preprocess import padding_mask
from tests.toy import MODELS, RESNET_50, SIZE, tiny_cfg

WITH_HEAD = [name for name in MODELS if not name.endswith(("segmenter", "detector"))]


@pytest.fixture
def batch(toy_data):
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    return [mapper(record) for record in DatasetCatalog.get("toy_val")[:8]]


def build(name: str, *opts) -> PartClassifier:
    torch.manual_seed(0)
    return build_model(tiny_cfg(name, *RESNET_50, *opts))


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_finite_losses_that_reach_every_parameter(name, batch):
    model = build(name).train()
    losses = model(batch)
    assert losses and all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    unreached = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not unreached


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_output(name, batch):
    model = build(name).eval()
    with torch.no_grad():
        outputs = model(batch)
    assert len(outputs) == len(batch)
    for output in outputs:
        assert ("class_logits" in output) == (model.head is not None)
        if model.head is not None:
            assert output["class_logits"].shape == (3,)
        if "sem_seg" in output:
            assert output["sem_seg"].shape == (4, SIZE, SIZE)


@pytest.mark.parametrize("name", WITH_HEAD)
def test_class_logits_equal_the_full_forward_and_have_a_gradient(name, batch):
    model = build(name).eval()
    images, padding = model.preprocess(batch)
    images.requires_grad_(True)
    logits = model.class_logits(images, padding)
    with torch.no_grad():
        full = torch.stack([output["class_logits"] for output in model(batch)])
    assert torch.equal(logits.detach(), full)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert (gradient != 0).flatten(1).any(dim=1).all()


def test_two_headed_skips_the_decoder_and_downsampled_cannot(batch):
    for name, runs in (("deeplab_two_headed", 0), ("deeplab_downsampled", 1)):
        model = build(name).eval()
        calls = []
        model.segmenter.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        images, _ = model.preprocess(batch)
        model.class_logits(images)
        assert len(calls) == runs


@pytest.mark.parametrize("size", [(33, 47), (64, 40)])
def test_odd_and_oblong_images(size):
    for name in MODELS:
        model = build(name).eval()
        item = {"image": torch.zeros(3, *size, dtype=torch.uint8)}
        with torch.no_grad():
            (output,) = model([item])
        if "sem_seg" in output:
            assert output["sem_seg"].shape[-2:] == size


def test_mixed_sizes_are_refused_by_name():
    model = build("resnet").eval()
    small = {"image": torch.zeros(3, 32, 32), "file_name": "a.png"}
    large = {"image": torch.zeros(3, 40, 32), "file_name": "b.png"}
    with pytest.raises(ValueError, match=r"a\.png.*b\.png.*INPUT.SIZE"):
        model([small, large])


def test_loss_is_the_weighted_mean_of_the_two(batch):
    full = build("deeplab_two_headed", "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", 0.5).train()
    state = copy.deepcopy(full.state_dict())
    halves = full(batch)
    other = build("deeplab_two_headed", "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", 0.2).train()
    other.load_state_dict(state)
    weighted = other(batch)
    torch.testing.assert_close(weighted["loss_cls"], 1.6 * halves["loss_cls"])
    torch.testing.assert_close(weighted["loss_part_seg"], 0.4 * halves["loss_part_seg"])


def test_no_part_labels_add_no_part_loss(batch):
    """One unlabelled image must change neither the part loss of the others nor their gradients."""
    model = build("deeplab_segmenter").train()
    model.backbone.eval()
    unlabelled = [item for item in batch if item["part_supervision"] == "none"]
    assert unlabelled
    alone = model(unlabelled)["loss_part_seg"]
    assert float(alone) == 0.0
    alone.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_pixel_loss_ignores_ignored_pixels_entirely():
    """The published code counted each ignored pixel as log C and divided by all pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, generator=generator)
    target = torch.randint(0, 4, (2, 6, 6), generator=generator)
    target[0, :3] = 255
    expected = torch.nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[target != 255], target[target != 255])
    torch.testing.assert_close(part_cross_entropy(logits, target, 255), expected)
    perfect = 50.0 * torch.nn.functional.one_hot(target.clamp(max=3), 4).permute(0, 3, 1, 2).float()
    assert float(part_cross_entropy(perfect, target, 255)) < 1e-6, "no constant offset"
    assert float(part_cross_entropy(logits, torch.full_like(target, 255), 255)) == 0.0


def test_training_and_evaluation_see_the_same_pixels(batch):
    model = build("resnet")
    images, _ = model.preprocess(batch)
    assert images.dtype == torch.float32 and 0 <= float(images.min()) and float(images.max()) <= 255
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(model.normalize(images), (images - mean) / std)


def test_padding_mask_from_the_letterbox():
    items = [{"image": torch.zeros(3, 4, 6), "content_size": (2, 6)}, {"image": torch.zeros(3, 4, 6)}]
    mask = padding_mask(items)
    assert mask[0].tolist() == [[False] * 6] * 2 + [[True] * 6] * 2
    assert not mask[1].any()
    assert padding_mask(items[1:]) is None


def test_parameter_count_of_deeplab():
    """Table 2.2 says 26.7 M for 40 parts."""
    opts = ["MODEL.DEVICE", "meta", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 11, "MODEL.PART_CLASSIFIER.NUM_PARTS", 40]
    with torch.device("meta"):
        model = build_model(get_part_robust_cfg(opts=[*opts, *MODELS["deeplab_segmenter"]]))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(26.7, rel=0.005)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.PART_CLASSIFIER.SEGMENTER", "", "MODEL.PART_CLASSIFIER.HEAD", ""], "SEGMENTER"),
        (["MODEL.PART_CLASSIFIER.SEGMENTER", "", "MODEL.PART_CLASSIFIER.HEAD", "DownsampledHead"], "reads parts"),
        (["INPUT.FORMAT", "BGR"], "RGB"),
        (["MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", 1.5], "SEG_LOSS_WEIGHT"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN"),
    ],
)
def test_impossible_configs(opts, message, toy_data):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg("deeplab_two_headed", *opts))


def test_headless_model_says_so(batch):
    model = build("deeplab_segmenter").eval()
    images, _ = model.preprocess(batch)
    with pytest.raises(ValueError, match="no class head"):
        model.class_logits(images)
    with pytest.raises(ValueError, match="no part segmenter"):
        build("resnet").eval().part_logits(images)

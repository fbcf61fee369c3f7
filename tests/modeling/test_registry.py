"""The interface of a part segmenter: what a segmenter that writes only the three methods it must can do."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.data import PartDatasetMapper
from part_robust.losses.adversarial import TrainingObjective
from part_robust.losses.part_segmentation import part_cross_entropy
from part_robust.modeling import PartClassifier, PartOutput, PartSegmenter
from part_robust.modeling.heads.linear import LinearHead
from part_robust.utils.errors import UserError
from tests.toy import PARTS, SIZE, tiny_cfg


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        return {"map": self.layer(images).relu()}


class Least(PartSegmenter):
    """Knows neither denoising queries nor assignments, nor a loss of single images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, len(PARTS) + 1, 1)

    def forward(self, features, image_size, padding_mask=None, targets=None, class_only=False):
        return PartOutput(sem_seg_logits=self.layer(features["map"]))

    def losses(self, output, targets):
        return {"loss_part_seg": part_cross_entropy(output.sem_seg_logits, targets.sem_seg, 255)}

    def inference(self, output, image_size):
        return [{"sem_seg": logits} for logits in output.sem_seg_logits]


def build(**objective) -> PartClassifier:
    torch.manual_seed(0)
    return PartClassifier(
        backbone=Backbone(),
        segmenter=Least(),
        head=LinearHead(in_feature="map", in_channels=4, num_classes=3),
        pixel_mean=[128.0] * 3,
        pixel_std=[64.0] * 3,
        objective=TrainingObjective(**objective),
    )


@pytest.fixture
def batch(toy_data):
    mapper = PartDatasetMapper(tiny_cfg(), is_train=False, dataset_name="toy_val")
    return [mapper(record) for record in DatasetCatalog.get("toy_val")[:4]]


def test_it_trains_and_its_pixels_are_attacked(batch):
    model = build(part_loss_on="both", denoise_attacked=False)
    assert set(model([{**item, "image_clean": item["image"]} for item in batch])) == {"loss_cls", "loss_part_seg"}
    counts = model.part_label_counts(batch)
    assert int(counts["loss_part"].count) == sum(item["part_supervision"] != "none" for item in batch)
    attack = build_attack({"OBJECTIVE": model.segmenter.attack_objective, "STEPS": 2, "EPS": 8.0})
    with attack_mode(model) as inner:
        result, _ = attack_batch(attack, inner, batch, torch.arange(len(batch)))
    assert not torch.equal(result.images, model.preprocess(batch)[0])


def test_what_it_lacks_is_empty_or_said_in_a_sentence(batch):
    model = build().eval()
    images = torch.zeros(len(batch), 3, SIZE, SIZE)
    output = model.segmenter(model.features(images), images.shape[-2:])
    assert model.segmenter.assign(output) is None and model.segmenter.match(output) is None
    for fixed in (False, True):
        with pytest.raises(UserError, match="Least: use pixel_cross_entropy, or define image_losses"):
            model.part_loss_view(batch, images, None, joint=True, fixed=fixed)(images)
    with pytest.raises(ValueError, match="Least assigns no queries"):
        build(match_on="clean")


def test_fields_by_their_old_keys(batch):
    """Scripts of before read `aux` of an output; absent values were absent keys."""
    output = PartOutput(content_size=torch.ones(1, 2))
    assert list(output.aux) == ["content_size"]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        *(("dino_detector", head) for head in ("DownsampledHead", "BoundingBoxHead", "PixelHead")),
        *(("deeplab_segmenter", head) for head in ("QueryHead", "SequentialHead")),
    ],
)
def test_a_head_that_reads_what_the_segmenter_does_not_predict_is_refused(toy_data, model, head):
    with pytest.raises(UserError, match=f"SEGMENTER must predict .* for {head}, got"):
        build_model(tiny_cfg(model, "MODEL.PART_CLASSIFIER.HEAD", head))

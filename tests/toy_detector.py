"""A detector of two queries whose scores, labels and places hang on three numbers of the image, and images for it.

One query starts at each half of the image. The red channel of its half moves the scores, green moves the box, and blue
does nothing: up, red makes the wrong part surest, which costs more loss than hiding the right one; down, it hides both.
"""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from part_robust.losses.matcher import HungarianMatcher
from part_robust.losses.set_criterion import SetCriterion
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.modeling.segmenters.query_segmenter import QuerySegmenter
from part_robust.structures import PartOutput, PredictedParts, PredictedSets

SIDE, PARTS = 8, ("x", "y")
HALVES = torch.tensor([[0.25, 0.5, 0.4, 0.6], [0.75, 0.5, 0.4, 0.6]])


class Pixels(nn.Module):
    """A backbone that hands on the image."""

    def forward(self, images):
        return {"image": images}


class ToyDetector(QuerySegmenter):
    """Two queries, each with logits of two parts and a box."""

    num_queries = 2

    def __init__(self) -> None:
        super().__init__()
        self.criterion = SetCriterion(matcher=HungarianMatcher())
        self.label_enc = nn.Embedding(2, 1)
        self.max_detections = 4

    def forward(self, features, image_size, padding_mask=None, targets=None, class_only=False, denoise=True):
        image = features["image"]
        if padding_mask is not None:
            image = image * ~padding_mask[:, None]
        red, green = torch.stack(image.chunk(2, dim=3), dim=1).mean(dim=(-2, -1)).unbind(dim=2)[:2]  # (N, Q) each
        red, green = red / 4 - 25, green / 40 - 2.5
        # Query 0 shows part 0, query 1 part 1; the other part is the wrong one.
        right, wrong = 1 + red, -1 + 4 * red
        logits = torch.stack([torch.stack([right, wrong], 2)[:, 0], torch.stack([wrong, right], 2)[:, 1]], dim=1)
        centres, sides = HALVES.expand(len(image), -1, -1).split(2, dim=-1)
        boxes = torch.cat([centres, sides * (1 + 0.6 * torch.tanh(4 * green))[..., None]], dim=-1)
        size = torch.tensor([image_size], dtype=torch.float32)
        output = PartOutput(query_logits=logits, query_boxes=boxes, content_size=size, targets=targets)
        if targets is not None:
            output.sets = PredictedSets(self.true_parts(targets, size), PredictedParts(logits[None], boxes[None]))
        return output

    def inference(self, output, image_size):
        scores = output.query_logits.sigmoid()
        corners = torch.cat(
            [
                output.query_boxes[..., :2] - output.query_boxes[..., 2:] / 2,
                output.query_boxes[..., :2] + output.query_boxes[..., 2:] / 2,
            ],
            dim=-1,
        )
        corners = SIDE * corners.repeat_interleave(2, dim=1)
        return [
            {
                "instances": Instances(
                    image_size, pred_boxes=Boxes(box), scores=score.flatten(), pred_classes=torch.tensor([0, 1, 0, 1])
                )
            }
            for box, score in zip(corners, scores, strict=True)
        ]


def build_toy_detector() -> PartClassifier:
    model = PartClassifier(
        backbone=Pixels(), segmenter=ToyDetector(), head=None, pixel_mean=[0.0, 0.0, 0.0], pixel_std=[1.0, 1.0, 1.0]
    )
    return model.eval()


def detector_items(count: int = 5) -> list[dict]:
    """Images with one part of each kind, which the detector finds; the second has no part labels."""
    generator = torch.Generator().manual_seed(2)
    items = []
    for index in range(count):
        labelled = index != 1
        truth = Instances((SIDE, SIDE))
        corners = SIDE * torch.cat([HALVES[:, :2] - HALVES[:, 2:] / 2, HALVES[:, :2] + HALVES[:, 2:] / 2], dim=1)
        truth.gt_boxes = Boxes(corners if labelled else torch.zeros(0, 4))
        truth.gt_classes = torch.tensor([0, 1] if labelled else [], dtype=torch.int64)
        labels = torch.full((SIDE, SIDE), len(PARTS) if labelled else 255)
        if labelled:
            for part, (left, top, right, bottom) in enumerate(corners.round().int().tolist()):
                labels[top:bottom, left:right] = part
        truth.gt_masks = BitMasks(
            torch.stack([labels == part for part in truth.gt_classes.tolist()] or [labels < 0])[: len(truth)]
        )
        items.append(
            {
                "image": torch.randint(98, 103, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8),
                "image_id": 50 + 3 * index,
                "class_id": 0,
                "sem_seg": labels,
                "instances": truth,
                "part_supervision": "full" if labelled else "none",
            }
        )
    return items

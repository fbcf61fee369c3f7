"""The part-to-class matrix: every part feeds its own classes, and classes without parts are never a silent zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from part_robust.data.register import get_taxonomy
from part_robust.modeling.part_to_class import PartToClass, part_metadata, part_to_class_matrix
from tests.toy import CLASSES, PARTS, tiny_cfg

MATRIX = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)  # part 0 is shared, class 1 is empty


def pixel_model(*opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg("deeplab_pixel", *opts))


def test_every_part_feeds_exactly_its_own_classes(toy_data):
    """The published matrix was off by one: no part fed its own class."""
    head = pixel_model("MODEL.PART_TO_CLASS.EMPTY_CLASSES", "bias").head
    silent = head.part_to_class(torch.zeros(len(PARTS)))
    for index, part in enumerate(PARTS):
        fed = head.part_to_class(torch.eye(len(PARTS))[index]) - silent
        expected = [float(name == part.split(":")[0]) for name in CLASSES]
        assert fed.tolist() == expected, part
    assert get_taxonomy("toy_train").classes_without_parts == ("plain",)


@pytest.mark.parametrize("learned", [False, True])
def test_shared_parts_and_columns_of_weight_one(learned):
    plain = PartToClass(matrix=MATRIX, learned=learned)
    logits = plain(torch.tensor([1.0, 10.0, 100.0])).tolist()
    assert (logits[0], logits[2], logits[3]) == (1.0, 11.0, 100.0)
    normalized = PartToClass(matrix=MATRIX, learned=learned, normalize=True)
    logits = normalized(torch.ones(3)).tolist()
    assert (logits[0], logits[2], logits[3]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("learned", "treatment", "parameters"),
    [(False, "column", {"empty_columns"}), (False, "bias", {"empty_bias"}), (True, "column", {"matrix"})],
)
def test_classes_without_parts_learn_something(learned, treatment, parameters):
    module = PartToClass(matrix=MATRIX, learned=learned, empty_classes=treatment)
    assert {name for name, _ in module.named_parameters()} == parameters
    assert "matrix" in module.state_dict(), "a checkpoint keeps the matrix it was trained with"
    scores = torch.randn(6, 3)
    module(scores)[:, 1].sum().backward()
    for parameter in module.parameters():
        assert parameter.grad.abs().sum() > 0
        with torch.no_grad():
            parameter -= parameter.grad
    assert (module(scores)[:, 1] != 0).all()
    if treatment == "column":
        assert module(scores)[:, 1].std() > 0, "a column reads the image"


@pytest.mark.parametrize("treatment", ["column", "bias"])
def test_a_fixed_matrix_stays_fixed(treatment):
    module = PartToClass(matrix=MATRIX, empty_classes=treatment)
    before = module(torch.eye(3)).detach()
    module(torch.randn(4, 3)).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 1.0
    assert torch.equal(module.matrix, torch.tensor(MATRIX))
    assert torch.equal(module(torch.eye(3))[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_full_taxonomies_have_nothing_to_learn():
    assert not list(PartToClass(matrix=MATRIX[:, [0, 2, 3]]).parameters())


def test_batched_part_scores():
    module = PartToClass(matrix=MATRIX, empty_classes="bias")
    scores = torch.randn(2, 5, 3)
    torch.testing.assert_close(module(scores)[1, 4], module(scores[1, 4]))


def test_what_cannot_be(toy_data):
    with pytest.raises(ValueError, match="column or bias"):
        pixel_model("MODEL.PART_TO_CLASS.EMPTY_CLASSES", "zero")
    with pytest.raises(ValueError, match="NUM_PARTS is 7"):
        pixel_model("MODEL.PART_CLASSIFIER.NUM_CLASSES", 3, "MODEL.PART_CLASSIFIER.NUM_PARTS", 7)
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        part_to_class_matrix(tiny_cfg("deeplab_pixel", "DATASETS.TRAIN", ()))
    with pytest.raises(KeyError, match="nowhere"):
        part_metadata("nowhere")

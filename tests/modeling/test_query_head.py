"""Mask DINO Simple's head: every aggregation by its definition, the matrix aligned with the taxonomy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from part_robust.modeling import PartOutput
from part_robust.modeling.heads.query import AGGREGATIONS, QueryHead, part_weights
from part_robust.modeling.part_to_class import PartToClass

# Four parts of three classes; the second class has two parts, and part 3 is shared by the last two.
MATRIX = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=np.float32)


def head(aggregation: str = "mean", **options) -> QueryHead:
    return QueryHead(
        part_to_class=PartToClass(matrix=MATRIX, **options), num_parts=len(MATRIX), aggregation=aggregation, top_k=3
    )


def queries(seed: int = 0, extra: int = 2) -> torch.Tensor:
    """(2, 7, 4 + extra) logits; extra columns are background and no object."""
    return 3 * torch.randn(2, 7, 4 + extra, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_by_its_definition(aggregation, extra):
    """Written out query by query, in float64."""
    logits = queries(extra=extra)
    result = head(aggregation)({}, PartOutput(query_logits=logits))
    exact = logits.double().numpy()
    for image in range(2):
        votes = exact[image, :, :4] @ MATRIX
        if aggregation == "mean":
            wanted = votes.mean(axis=0)
        elif aggregation == "max":
            wanted = votes.max(axis=0)
        elif aggregation == "topk":
            wanted = np.sort(votes, axis=0)[-3:].mean(axis=0)
        else:
            every = np.exp(exact[image] if extra else np.pad(exact[image], ((0, 0), (0, 1))))
            sees = every[:, :4].sum(axis=1) / every.sum(axis=1)
            wanted = (votes * sees[:, None]).sum(axis=0) / sees.sum()
        assert np.allclose(result[image].numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_part_feeds_exactly_its_own_classes(aggregation):
    """The reference's matrix was off by one: no part fed its own class."""
    model = head(aggregation)
    for part, classes in enumerate(MATRIX):
        logits = queries(1).requires_grad_()
        for number in range(3):
            (slope,) = torch.autograd.grad(model({}, PartOutput(query_logits=logits))[:, number].sum(), logits)
            reached = bool((slope[..., part] != 0).any())
            # Confidence weights read every logit; the vote itself is what the other aggregations pass on.
            assert reached == bool(classes[number]) or aggregation == "confidence"
            if aggregation != "confidence":
                assert not slope[..., 4:].any(), "background and no object vote for nothing"
        sure = torch.zeros(1, 7, 6)
        sure[..., part] = 5.0
        classes_up = model({}, PartOutput(query_logits=sure))[0] > 0
        assert np.array_equal(classes_up.numpy(), classes > 0)


def test_queries_without_a_part_do_not_outvote_the_one_that_has_it():
    logits = torch.zeros(1, 50, 6)
    logits[..., 5] = 20.0  # no object
    logits[0, 0] = torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0, 0.0])
    mean = head("mean")({}, PartOutput(query_logits=logits))[0]
    confident = head("confidence")({}, PartOutput(query_logits=logits))[0]
    assert mean[2] < 0.2 and confident[2] == pytest.approx(9.0, abs=0.1)


def test_an_image_of_nothing_has_finite_logits_and_a_gradient():
    logits = torch.zeros(1, 5, 6)
    logits[..., 4:] = 200.0
    logits.requires_grad_()
    weights = part_weights(logits, 4)
    assert torch.allclose(weights.sum(dim=1), torch.ones(1, 1))
    result = head("confidence")({}, PartOutput(query_logits=logits))
    (slope,) = torch.autograd.grad(result.sum(), logits)
    assert torch.isfinite(result).all() and slope[..., :4].any()


def test_fewer_queries_than_top_k():
    logits = queries()[:, :2]
    wanted = logits[..., :4].mean(dim=1) @ torch.from_numpy(MATRIX)
    assert torch.allclose(head("topk")({}, PartOutput(query_logits=logits)), wanted, atol=1e-5)


def test_columns_are_divided_by_their_parts():
    logits = queries()
    plain, normal = (
        head()({}, PartOutput(query_logits=logits)),
        head(normalize=True)({}, PartOutput(query_logits=logits)),
    )
    assert torch.allclose(normal * torch.tensor([1.0, 2.0, 2.0]), plain, atol=1e-5)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="AGGREGATION.*'sum'"):
        head("sum")
    with pytest.raises(ValueError, match="TOP_K"):
        QueryHead(part_to_class=PartToClass(matrix=MATRIX), num_parts=4, top_k=0)
    with pytest.raises(ValueError, match="MaskDinoSegmenter"):
        head()({}, PartOutput(sem_seg_logits=torch.zeros(1, 5, 2, 2)))

"""An attacker who may change the pixels of a mask alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.attacks import PGD, ThreatModel, ThreatModelViolation, build_attack
from part_robust.attacks.square import bounding_box, double_bump, double_bumps, sides_in, window
from tests.attacks.nets import ATTACKS, DUAL, Curved, Linear, pictures, run, spec

SIDE = 5


def masks(count: int, seed: int, share: float = 0.4) -> torch.Tensor:
    """bool (N, 1, SIDE, SIDE); the first is empty."""
    drawn = torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) < share
    drawn[0] = False
    return drawn


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(ATTACKS)),
    st.sampled_from(sorted(DUAL)),
    st.sampled_from([0.5, 8.0, 60.0, 255.0]),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_no_pixel_outside_of_the_mask_moves(name, norm, eps, share, padded, seed):
    model, images = Curved(), pictures(4, seed=seed)
    labels, mask = model(images).argmax(dim=1), masks(4, seed, share)
    padding = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    padding[:, SIDE - 1 :] = padded
    steps = 5 if name == "apgd_schedule" else 4
    attack = spec(name, NORM=norm, EPS=eps, STEPS=steps, STEP_SIZE=eps / 2, SEED=seed)
    result = run(model, attack, images, labels, mask=mask, padding=padding)
    ThreatModel(norm, eps).verify(result.images, images)
    fixed = (~mask | padding[:, None]).expand_as(images)
    assert torch.equal(result.images[fixed], images[fixed])
    assert torch.equal(result.success, model(result.images).argmax(dim=1) != labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_mask_leaves_the_image_and_is_no_zero_gradient(name):
    model, images = Curved(), pictures(6)
    labels = model(images).argmax(dim=1)
    labels[1] = (labels[1] + 1) % 5
    result = run(model, spec(name), images, labels, mask=torch.zeros(6, 1, SIDE, SIDE))
    assert torch.equal(result.images, images)
    assert result.num_zero_gradient == 0
    assert result.success.tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab"])
def test_a_mask_without_gradient_is_reported(name):
    class Corner(Linear):
        def forward(self, images):
            return super().forward(images * (torch.arange(SIDE) > 2))

    model, images = Corner(), pictures(3)
    mask = torch.zeros(3, 1, SIDE, SIDE)
    mask[0, :, :, :2] = 1  # where the model sees nothing
    mask[1, :, :, 2:] = 1  # mask 2 is empty
    result = run(model, spec(name), images, model(images).argmax(dim=1), mask=mask)
    assert result.zero_gradient.tolist() == [True, False, False]


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_gradient_attacks_spend_the_radius_inside_the_mask(name, norm):
    """On a linear model the best change of a mask is known."""
    model, images, eps = Linear(classes=2), pictures(5), 6.0
    labels, mask = model(images).argmax(dim=1), masks(5, 3)
    result = run(
        model,
        spec(name, NORM=norm, EPS=eps, STEPS=40, STEP_SIZE=eps / 4, OBJECTIVE="margin"),
        images,
        labels,
        mask=mask,
    )
    slope = (model.weight[1] - model.weight[0]).view(3, SIDE, SIDE) * mask
    length = slope.flatten(1).norm(DUAL[norm], dim=1)

    def margin(x):
        logits = model(x)
        return logits.gather(1, 1 - labels[:, None]) - logits.gather(1, labels[:, None])

    gained = (margin(result.images) - margin(images))[:, 0]
    torch.testing.assert_close(gained, eps * length, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", DUAL)
def test_fab_finds_the_nearest_change_of_the_mask(norm):
    model, images = Linear(), pictures(6)
    labels, mask = model(images).argmax(dim=1), masks(6, 5, 0.5)
    found = run(model, spec("fab", NORM=norm, STEPS=20, NUM_TARGETS=4, EPS=255.0), images, labels, mask=mask)
    logits = model(images)
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = ((model.weight[labels][:, None] - model.weight[None]).view(6, 5, 3, SIDE, SIDE) * mask[:, None]).flatten(2)
    lengths = slopes.norm(DUAL[norm], dim=2)
    nearest = (gaps / lengths).scatter(1, labels[:, None], float("inf")).amin(dim=1)
    assert found.distance[0] == float("inf"), "the mask is empty"
    torch.testing.assert_close(found.distance[1:], nearest[1:], rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", DUAL)
def test_random_starts_fill_the_ball_of_the_mask(norm):
    images, mask = torch.full((200, 3, SIDE, SIDE), 128.0), masks(200, 1, 0.1)
    attack = {"NAME": "PGD", "STEPS": 0, "STEP_SIZE": 1.0, "NORM": norm, "EPS": 40.0}
    start = run(Curved(), attack, images, torch.zeros(200, dtype=torch.long), mask=mask).images
    assert torch.equal(start[~mask.expand_as(images)], images[~mask.expand_as(images)])
    length = ThreatModel(norm).distance(start, images)[mask.flatten(1).any(dim=1)]
    # Half of a ball of d dimensions lies beyond a share 0.5^(1 / d) of the radius, at least 0.79 for one pixel.
    assert length.median() > 0.79 * 40
    assert length.max() <= 40.001


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(1e-3, 1.0))
def test_squares_lie_in_the_box_of_the_mask(height, width, seed, share):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 1, height, width, generator=generator) < 0.2
    mask[0] = False
    box = bounding_box(mask)
    side = sides_in(box, share, 1)
    squares = window(torch.rand(6, 2, generator=generator), side, height, width, box)
    for row in range(1, 6):
        where = mask[row, 0].nonzero()
        if not len(where):
            assert box[row, 2:].tolist() == [0, 0]
            continue
        (top, left), (bottom, right) = where.amin(dim=0).tolist(), where.amax(dim=0).tolist()
        assert box[row].tolist() == [top, left, bottom - top + 1, right - left + 1]
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top : bottom + 1, left : right + 1] = True
        assert not (squares[row, 0] & ~inside).any()
        assert int(squares[row].sum()) == int(side[row]) ** 2 > 0


@pytest.mark.parametrize("norm", DUAL)
def test_square_wastes_no_query_outside_of_a_small_mask(norm):
    """Of squares anywhere in the image few would meet the mask, and the others would repeat a query."""
    asked = []

    class Watched(Curved):
        def forward(self, images):
            asked.append(images.clone())
            return super().forward(images)

    model, images = Watched(side=16), pictures(2, side=16)
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, 2:5, 9:13], mask[1, :, 12:, :3] = 1, 1
    attack = spec("square", NORM=norm, EPS=60.0, STEPS=60)
    labels = model(images).argmax(dim=1)
    run(model, attack, images, labels, mask=mask)
    queries = torch.stack(asked[2:])
    new = (queries[1:] != queries[:-1]).flatten(2).any(dim=2)
    assert new.float().mean() > 0.8


@pytest.mark.parametrize("reach", [3, 5, 9, 21])
def test_bumps_of_several_sides_are_those_of_each(reach):
    sides = torch.arange(3, reach + 1, 2)
    for norm in ("l2", "l1"):
        for side, bump in zip(sides.tolist(), double_bumps(sides, reach, norm), strict=True):
            torch.testing.assert_close(bump[:side, :side], double_bump(side, torch.device("cpu"), norm))
            assert bump[side:].abs().sum() + bump[:, side:].abs().sum() == 0


def test_the_mask_belongs_to_the_image_in_any_batch():
    model, images = Curved(), pictures(5)
    labels, mask, keys = model(images).argmax(dim=1), masks(5, 7), torch.tensor([9, 4, 7, 1, 3])
    for name in ("apgd", "square", "square_l2", "apgd_l1", "square_l1"):
        together = run(model, spec(name, EARLY_STOP=True, COMPACT_EVERY=2), images, labels, keys, mask=mask)
        for row in range(5):
            alone = run(model, spec(name, EARLY_STOP=True), images[[row]], labels[[row]], keys[[row]], mask=mask[[row]])
            assert torch.equal(alone.success[0], together.success[row])


class Careless(PGD):
    """A user's attack that forgets the mask."""

    def step(self, problem, state, step, scored):
        super().step(problem, state, step, scored)
        state.x = problem.images + 1.0


def test_an_attack_that_leaves_the_mask_is_caught():
    images, mask = pictures(3), masks(3, 0)
    attack = Careless(threat_model=ThreatModel(), objective=build_attack(spec("pgd")).objective, steps=2, step_size=1.0)
    labels = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ThreatModelViolation, match="outside of the mask"):
        run(Curved(), attack, images, labels, mask=mask)
    with pytest.raises(ThreatModelViolation, match="padding"):
        run(Curved(), attack, images, labels, padding=~mask[:, 0])
    run(Curved(), attack, images, labels)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask must be of shape \(3, 1, 5, 5\), got \(3, 5, 5\)"):
        run(Curved(), spec("pgd"), pictures(3), torch.zeros(3, dtype=torch.long), mask=torch.ones(3, 5, 5))

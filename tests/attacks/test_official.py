"""pyautoattack in the place of our attacks: the same results as by its own entry point, inside our rules."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from part_robust.attacks import AttackError, Official, ThreatModel, attack_mode, build_attack
from part_robust.attacks.model_view import attack_batch
from part_robust.config import attack_spec, get_part_robust_cfg
from tests.attacks.nets import Curved, pictures

NAMES = ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")
EPS = {"linf": 3.0, "l2": 9.0, "l1": 60.0}
SPECS = get_part_robust_cfg()


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("pyautoattack", reason="pip install part_robust[aa]")


def own(name: str, norm: str = "linf", **changes):
    changes = {"SEED": 3, "STEPS": 60 if name == "square" else 20, **changes}
    return build_attack(attack_spec(SPECS, name), **{"NORM": norm, "EPS": EPS[norm], **changes})


class Counting(nn.Module):
    """Counts what it is asked, and how often with a gradient."""

    def __init__(self, net: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.scale, self.images, self.with_gradient = net, scale, 0, 0

    def forward(self, images):
        self.images += len(images)
        self.with_gradient += len(images) if images.requires_grad else 0
        return self.net(self.scale * images)


def case(count: int = 16, classes: int = 5):
    """Images of the curved net, the last of which it gets wrong before any attack."""
    net = Curved(classes)
    images = pictures(count)
    labels = net(images).argmax(dim=1)
    labels[-1] = (labels[-1] + 1) % classes
    return net, images, labels


def run(attack, model, images, labels, **given):
    keys = torch.arange(len(images))
    with attack_mode(model) as inner:
        return attack(inner, images, labels, keys=keys, **given)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_images_as_by_its_own_entry_point(name, norm):
    from pyautoattack import AutoAttack

    net, images, labels = case()
    theirs = AutoAttack(
        Counting(net, 255.0), norm=norm.capitalize(), eps=EPS[norm] / 255, seed=3, version="custom",
        attacks=[name.replace("_", "-")],
    )  # fmt: skip
    theirs.apgd.n_restarts = theirs.apgd_targeted.n_restarts = 1
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 2
    theirs.apgd.use_largereps = theirs.apgd_targeted.use_largereps = norm == "l1"
    theirs.square.n_queries, theirs.fab.n_iter = 60, 15
    with attack_mode(theirs.model), torch.random.fork_rng():
        expected, _ = theirs.run_standard_evaluation(images / 255, labels, batch_size=len(images))
    counting = Counting(net)
    steps = {"square": 60, "fab_t": 15}.get(name, 100)  # its APGD has a hundred
    found = run(Official(own(name, norm, NUM_TARGETS=2, STEPS=steps)), counting, images, labels)
    torch.testing.assert_close(found.images, 255 * expected, atol=1e-3, rtol=0)
    assert torch.equal(found.success, net(found.images).argmax(dim=1) != labels)
    assert 1 < int(found.success.sum()) < len(images), "else this compares nothing"
    moved = (found.images != images).flatten(1).any(dim=1)
    assert torch.equal(moved[:-1], found.success[:-1]) and found.success[-1] and not moved[-1]
    ThreatModel(norm, EPS[norm]).verify(found.images, images)
    assert (found.forwards, found.backwards) == (counting.images, counting.with_gradient)
    assert (found.backwards == 0) == (name == "square") and not found.zero_gradient.any()


@pytest.mark.parametrize("norm", EPS)
def test_about_the_verdicts_of_ours(norm):
    net, images, labels = case(24)
    verdicts = []
    for make in (lambda attack: attack, Official):
        success = torch.zeros_like(labels, dtype=torch.bool)
        for name in ("apgd_ce", "fab_t"):
            changes = {"STEPS": 20, "NUM_TARGETS": 3, "EPS": EPS[norm] / 3}
            success |= run(make(own(name, norm, **changes)), net, images, labels).success
        verdicts.append(success)
    assert 4 < int(verdicts[0].sum()) < 20, "else this compares nothing"
    assert int((verdicts[0] != verdicts[1]).sum()) <= 1, "more than what may hang on the random start"


def test_repeatable_without_touching_the_random_state():
    net, images, labels = case()
    attack = Official(own("apgd_ce", RESTARTS=2))
    state = torch.random.get_rng_state()
    first = attack(net, images, labels, keys=torch.arange(16))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(attack(net, images, labels, keys=torch.arange(16)).images, first.images)
    other = Official(own("apgd_ce", RESTARTS=2, SEED=4))(net, images, labels, keys=torch.arange(16))
    assert not torch.equal(other.images, first.images)


class Letterboxed(nn.Module):
    """Its images are of two shapes; it refuses padding that is not the one of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Curved()
        self.batches: list[int] = []

    def preprocess(self, items):
        images = torch.stack([item["image"] for item in items])
        padding = torch.zeros(len(items), 5, 5, dtype=torch.bool)
        for row, item in enumerate(items):
            padding[row, :, item["width"] :] = True
        return images, padding

    def class_logits(self, images, padding):
        assert len(images) == len(padding)
        padded = padding[:, None].expand_as(images)
        assert torch.equal(images[padded], torch.full_like(images[padded], 7.0))
        assert (images[~padded] != 7.0).all(), "some other image's padding"
        self.batches.append(len(images))
        # Where the padding is decides the class, too.
        return self.net(images) + 2.0 * padding.flatten(1).float().mean(dim=1, keepdim=True) * torch.arange(5.0)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["apgd_ce", "fab_t", "square"])
def test_padding_stays_and_goes_with_its_images(name, norm):
    model, items = Letterboxed(), []
    for row, image in enumerate(pictures(12)):
        width = (5, 3)[row % 2]
        image = image.clone() + 0.25  # never 7
        image[:, :, width:] = 7.0
        items.append({"image": image.clamp(0, 255), "width": width})
    images, padding = model.preprocess(items)
    for item, label in zip(items, model.class_logits(images, padding).argmax(dim=1), strict=True):
        item["class_id"] = int(label)
    model.batches.clear()
    with attack_mode(model) as inner:
        result, _ = attack_batch(Official(own(name, norm, EPS=3 * EPS[norm])), inner, items, torch.arange(12))
        labels = torch.tensor([item["class_id"] for item in items])
        assert torch.equal(result.success, inner.class_logits(result.images, padding).argmax(dim=1) != labels)
    assert 0 < int(result.success.sum()) and result.forwards == sum(model.batches[:-1])
    padded = padding[:, None].expand_as(images)
    assert torch.equal(result.images[padded], images[padded])
    assert max(model.batches[1:-1]) <= 6 < model.batches[0], "each shape has a batch of its own"
    assert 6 in model.batches, "and images of one shape share it"


class Told:
    """A model that is told more of each image than its padding."""

    def __init__(self, net, factor, sizes) -> None:
        self.net, self.factor, self.sizes = net, factor, sizes

    def __call__(self, images):
        self.sizes.append(len(images))
        return self.net(images) * self.factor[:, None]

    def select(self, index):
        return Told(self.net, self.factor[index], self.sizes)


def test_what_tells_images_apart_gives_each_a_batch_of_its_own():
    net, images, _ = case(6)
    sizes: list[int] = []
    attack = Official(own("apgd_ce", EPS=1.0))
    told = Told(net, torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, -3.0]), sizes)
    right = told(images).argmax(dim=1)
    sizes.clear()
    with attack_mode(net):
        found = attack(told, images, right, keys=torch.arange(6))
        assert sizes[0] == 6 and set(sizes[1:]) == {1}
        for row in range(6):
            index = torch.tensor([row])
            alone = attack(told.select(index), images[index], right[index], keys=index)
            assert torch.equal(alone.images[0], found.images[row])
    assert torch.equal(found.success, told(found.images).argmax(dim=1) != right)
    assert 0 < int(found.success.sum()) < 6


def test_blind_where_there_is_no_gradient():
    class HalfFlat(nn.Module):
        """Constant logits on bright images."""

        def forward(self, images):
            bright = (images.flatten(1).mean(dim=1, keepdim=True) > 128).float()
            return net(images) * (1 - bright) + bright * torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0])

    net, _, _ = case()
    images = torch.cat([pictures(4) / 4, 200 + pictures(4) / 8])
    labels = HalfFlat()(images).argmax(dim=1)
    for name in ("apgd_ce", "apgd_t", "fab_t"):
        found = run(Official(own(name, EPS=0.5, RESTARTS=2)), HalfFlat(), images, labels)
        assert found.zero_gradient.tolist() == [False] * 4 + [True] * 4, name
    assert not run(Official(own("square")), HalfFlat(), images, labels).zero_gradient.any()


@pytest.mark.parametrize("name", NAMES)
def test_edges(name):
    net, images, labels = case(2)
    attack = Official(own(name))
    assert torch.equal(run(Official(own(name, EPS=0.0)), net, images, labels).images, images)
    assert run(attack, net, images[1:], labels[1:]).success.tolist() == [True], "wrong before, so nothing to do"
    alone = run(attack, net, images[:1], labels[:1])
    assert torch.equal(alone.success, net(alone.images).argmax(dim=1) != labels[:1])


def test_few_classes():
    for name, least in (("apgd_ce", 2), ("fab_t", 2), ("square", 2), ("apgd_dlr", 3), ("apgd_t", 4)):
        attack = Official(own(name))
        net, images, labels = case(4, least)
        assert attack.least_classes == least
        attack.check(least, 5, 5)
        run(attack, net, images, labels)
        with pytest.raises(ValueError, match=f"at least {least} classes and the model has {least - 1}"):
            attack.check(least - 1, 5, 5)
        if least > 2:
            net, images, labels = case(4, least - 1)
            with pytest.raises(AttackError, match="classes"):
                run(attack, net, images, labels)


@pytest.mark.parametrize(("side", "fits"), [(5, True), (10, True), (14, False), (15, True), (18, False), (21, True)])
def test_sizes_that_its_square_under_l2_cannot_have(side, fits):
    attack = Official(own("square", "l2", STEPS=3))
    net = Curved(side=side)
    images = pictures(3, side)
    labels = net(images).argmax(dim=1)
    if fits:
        attack.check(5, side, side)
        run(attack, net, images, labels)
        return
    with pytest.raises(ValueError, match=f"{side} x {side}"):
        attack.check(5, side, side)
    with pytest.raises(AttackError, match="do not fit"):
        run(attack, net, images, labels)
    scaled = (images / 255, labels)
    from pyautoattack.square import SquareAttack

    with pytest.raises(RuntimeError):  # or else there is no need to refuse
        SquareAttack(Counting(net, 255.0), norm="L2", n_queries=3, eps=0.01).perturb(*scaled)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("pgd20", {}, "no PGD that maximises cross_entropy"),
        ("apgd_margin", {}, "no APGD that maximises margin"),
        ("sea_js", {}, "no APGD that maximises jensen_shannon"),
        ("noise", {}, "no RandomNoise"),
        ("square", {"OBJECTIVE": "dlr"}, "no Square that maximises dlr"),
        ("apgd_ce", {"APGD_MOMENTUM": 0.5, "RANDOM_START": False}, "RANDOM_START False, APGD_MOMENTUM 0.5"),
        ("apgd_ce", {"RADIUS_SCHEDULE": ((2.0, 0.5), (1.0, 0.5))}, "RADIUS_SCHEDULE"),
        ("fab_t", {"TARGET_RANKING": "malt"}, "TARGET_RANKING malt"),
    ],
)
def test_what_it_does_not_have(name, changes, words):
    with pytest.raises(ValueError, match=words):
        Official(own(name, **changes))


def test_description_is_that_of_ours_with_the_package():
    described = Official.from_config({**attack_spec(SPECS, "apgd_t"), "EPS": 4.0, "SEED": 7}).describe()
    ours = build_attack(attack_spec(SPECS, "apgd_t"), EPS=4.0, SEED=7).describe()
    assert described["backend"] == "autoattack" and described["package"].startswith("pyautoattack ")
    assert ours["backend"] == "own" and "radius_schedule" not in described
    for key in ("attack", "objective", "threat_model", "steps", "restarts", "seed", "targets_number"):
        assert described[key] == ours[key]


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"pip install part_robust\[aa\]"):
        Official(own("apgd_ce"))

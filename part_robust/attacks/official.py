"""Attacks of pyautoattack, the official AutoAttack as a package, in the place of ours: a second opinion on a number.

Letters: N images of (3, H, W), RGB, 0..255, M of them in one batch; C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks.apgd import APGD
from part_robust.attacks.base import Attack
from part_robust.attacks.build import build_attack
from part_robust.attacks.fab import FAB
from part_robust.attacks.model_view import ModelView
from part_robust.attacks.problem import AttackError, Forward, PlainForward, Problem
from part_robust.attacks.radius_schedule import L1_SCHEDULE, ONE_RADIUS
from part_robust.attacks.square import Square
from part_robust.attacks.state import Run, where, worst_of

# What each of its attacks can maximise: our name -> its name.
LOSSES: dict[type[Attack], dict[str, str]] = {
    APGD: {"cross_entropy": "ce", "dlr": "dlr", "targeted_dlr": "dlr-targeted"},
    FAB: {"targeted_margin": ""},
    Square: {"margin": "margin", "cross_entropy": "ce"},
}
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# It sorts the logits and takes the third largest, or the fourth.
LEAST_CLASSES = {"dlr": 3, "targeted_dlr": 4}


class Official(Attack):
    """An attack of ours on the class, run by pyautoattack with the same radius, steps, restarts, targets and seed.

    Differences: its random numbers belong to the batch, so an image's result may depend on its batch; an image that it
    does not break is returned unchanged; it starts at a random point and ignores `starts`; it records no history and no
    distance.

    pyautoattack makes smaller batches of the images that are not broken yet, and does not report which these are. All
    images of a batch must therefore share the model's other inputs: images of equal padding share a batch, and where
    there are other inputs than the padding, each image has a batch of its own. Padding stays as it is; under L2 and
    L1, what pyautoattack spends on it is lost to the attack.
    """

    backend = "autoattack"

    def __init__(self, own: Attack) -> None:
        """Wrap one of our attacks.

        Args:
            own: the attack of ours. Its EARLY_STOP has no effect: pyautoattack never attacks a broken image again.

        Raises:
            ImportError: pyautoattack is not installed.
            ValueError: pyautoattack has no such attack, or not with these settings.
        """
        try:
            import pyautoattack
        except ImportError as error:
            raise ImportError("pyautoattack is not installed: pip install part_robust[aa]") from error
        losses = LOSSES.get(type(own), {})
        if own.objective.name not in losses:
            raise ValueError(f"pyautoattack has no {type(own).__name__} that maximises {own.objective.name}")
        if settings := _unknown_settings(own):
            raise ValueError(f"pyautoattack's {type(own).__name__} has no {', '.join(settings)}")
        super().__init__(
            threat_model=own.threat_model,
            objective=own.objective,
            steps=own.steps,
            restarts=own.restarts,
            seed=own.seed,
            early_stop=True,
            targets=own.targets,
        )
        self.own = own
        self.loss = losses[own.objective.name]
        self.package = f"pyautoattack {pyautoattack.__version__}"
        self.uses_gradient = own.uses_gradient
        self.full_gradient = own.full_gradient
        self.least_classes = LEAST_CLASSES.get(own.objective.name, 2)

    @classmethod
    def from_config(cls, node: Mapping) -> Official:
        """Build the attack from the config node of ours."""
        return cls(build_attack(node))

    def check(self, classes: int, height: int, width: int) -> None:
        """Check that pyautoattack can run on such a model and such images.

        Args:
            classes: C.
            height: H.
            width: W.

        Raises:
            ValueError: pyautoattack would fail on such a model or on such images.
        """
        if classes < self.least_classes:
            raise ValueError(_too_few(classes, self.least_classes))
        norm = self.threat_model.norm
        if isinstance(self.own, Square) and norm != "linf" and not _tiles_fit(height, width):
            raise ValueError(f"pyautoattack's first squares under {norm} do not fit into images of {height} x {width}")

    def search(self, problem: Problem, best: Run | None, scored: bool, history: list[Tensor]) -> Run:
        assert best is not None  # `offer_original`
        if problem.threat_model.eps == 0 or not len(problem):
            return best
        for rows in _rows_of_equal_padding(problem):
            part = problem if len(rows) == len(problem) else problem.select(rows)
            best = worst_of(best, self._attack(part), part.rows)
        return best

    def _attack(self, problem: Problem) -> Run:
        """One batch."""
        images = problem.images
        scaled = images / 255.0
        model = ScaledModel(problem, self.least_classes)
        # It seeds the global generator.
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            found = self._method(model, problem).perturb(scaled, problem.targets).detach()
        moved = (found != scaled).flatten(1).any(dim=1)
        # Projected again, as the two conversions lose the last bit.
        result = problem.project(where(moved, 255.0 * found, images))
        with torch.no_grad():
            found_score = self.objective.score_originals(problem.forward(result), problem.targets)
        zero_gradient = ~model.has_gradient if self.uses_gradient else torch.zeros_like(model.has_gradient)
        return Run(result, zero_gradient, margin_score=found_score.margin_score, success=found_score.success)

    def _method(self, model: ScaledModel, problem: Problem) -> Any:
        """Build pyautoattack's attack on images in 0..1, as its version "standard" has it except for our settings."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        shared = {
            "norm": NORMS[problem.threat_model.norm],
            "eps": problem.threat_model.eps / 255.0,
            "n_restarts": self.restarts,
            "seed": self.seed,
            "device": problem.images.device,
        }
        if problem.target_classes is not None:
            shared["n_target_classes"] = problem.target_classes.shape[1]  # never more than there are wrong ones
        if isinstance(self.own, APGD):
            shared |= {"n_iter": self.steps, "rho": self.own.success_share}
            shared["use_largereps"] = self.own.radius_schedule == L1_SCHEDULE
            if self.objective.targeted:
                return APGDAttack_targeted(model, **shared)
            return APGDAttack(model, loss=self.loss, **shared)
        if isinstance(self.own, FAB):
            own = {"alpha_max": self.own.alpha_max, "eta": self.own.overshoot, "beta": self.own.backward}
            return FABAttack_PT(model, n_iter=self.steps, targeted=True, **own, **shared)
        assert isinstance(self.own, Square)
        self._check_square(problem)
        return SquareAttack(
            model, n_queries=self.steps, p_init=self.own.area_share, loss=self.loss, resc_schedule=False, **shared
        )

    def _check_square(self, problem: Problem) -> None:
        try:
            self.check(self.least_classes, *problem.images.shape[2:])
        except ValueError as error:
            raise AttackError(str(error)) from error

    def describe(self) -> dict:
        described = self.own.describe() | super().describe()
        # Settings that only our attacks have.
        for key in ("offer_original", "early_stop", "compact_every", "final_search", "radius_schedule"):
            described.pop(key, None)
        return described | {"attack": type(self.own).__name__, "package": self.package}


class ScaledModel:
    """The model for pyautoattack: images in 0..1 -> logits, of any batch of images of equal padding.

    Attributes:
        has_gradient: bool (N,), an image's gradient was other than zero. Rows are known until pyautoattack removes an
            image. In a smaller batch only a gradient on every image counts, for all images.
    """

    def __init__(self, problem: Problem, least_classes: int) -> None:
        """Wrap the model of a problem.

        Args:
            problem: images of equal padding.
            least_classes: smallest number of classes for which the loss is defined.
        """
        self.problem = problem
        self.least_classes = least_classes
        self.has_gradient = torch.zeros(len(problem), dtype=torch.bool, device=problem.images.device)
        self.views: dict[int, Forward] = {len(problem): problem.model}
        # One row stands for all images, which have equal padding.
        self.original = problem.images[:1]
        self.perturbable = None if problem.perturbable is None else problem.perturbable[:1]
        self.classes = 0

    def __call__(self, images: Tensor) -> Tensor:
        if not len(images):  # an image exactly on the boundary is neither right nor broken for its Square
            return images.new_zeros(0, self.classes)
        images = 255.0 * images
        if images.requires_grad:
            images.register_hook(self._record_gradient)
        if self.perturbable is not None:
            images = torch.where(self.perturbable > 0, images, self.original)
        self.problem.counts.forwards += len(images)
        logits = self._view(len(images))(images)
        self.classes = logits.shape[1]
        if self.classes < self.least_classes:
            raise AttackError(_too_few(self.classes, self.least_classes))
        return logits

    def _view(self, count: int) -> Forward:
        if isinstance(self.problem.model, PlainForward):
            return self.problem.model
        if count not in self.views:
            self.views[count] = self.problem.model.select(torch.arange(count, device=self.has_gradient.device))
        return self.views[count]

    def _record_gradient(self, grad: Tensor) -> None:
        self.problem.counts.backwards += len(grad)
        some = (grad != 0).flatten(1).any(dim=1)
        self.has_gradient |= some if len(some) == len(self.has_gradient) else some.all()


def _too_few(classes: int, least: int) -> str:
    return f"pyautoattack's loss needs at least {least} classes and the model has {classes} (ours takes the margin)"


def _unknown_settings(own: Attack) -> list[str]:
    """Keys whose values pyautoattack does not have."""
    found = []
    if own.targets is not None and own.targets.ranking != "logits":
        found.append(f"TARGET_RANKING {own.targets.ranking}")
    if isinstance(own, APGD):
        if not own.starts_randomly:
            found.append("RANDOM_START False")
        if own.momentum != 0.75:
            found.append(f"APGD_MOMENTUM {own.momentum}")
        if own.radius_schedule not in ((ONE_RADIUS, L1_SCHEDULE) if own.sparse else (ONE_RADIUS,)):
            found.append("RADIUS_SCHEDULE")
    return found


def _tiles_fit(height: int, width: int) -> bool:
    """Its Square under L2 and L1 begins with a grid of squares that it counts from the height alone."""
    side = height // 5
    edge = (height - 5 * side) // 2
    return side > 0 and all(edge + side * (length // side) <= length for length in (height, width))


def _rows_of_equal_padding(problem: Problem) -> list[Tensor]:
    """Rows, int64 (M,), of the images that may share a batch."""
    rows = torch.arange(len(problem), device=problem.images.device)
    if not isinstance(problem.model, PlainForward | ModelView):
        return list(rows.split(1))
    if problem.perturbable is None:
        return [rows]
    padding = torch.where(problem.perturbable > 0, -1.0, problem.images).flatten(1)
    _, groups = padding.unique(dim=0, return_inverse=True)
    return [rows[groups == group] for group in range(int(groups.max()) + 1)]
